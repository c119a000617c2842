"""The main job through the front door, on all services."""

import hashlib
import io
import json
import os
import zipfile

import pytest

from tests.e2e.stack import ENDS, Stack, until, zip_of

RUN_SH = """set -e
echo "::progress 0.1::begins"
. ./lib/deep/functions.sh
mkdir -p "$WHERRY_OUTPUTS/nested/deeper" "$WHERRY_OUTPUTS/hollow/inside"
: > "$WHERRY_OUTPUTS/empty.txt"
cp data/table.csv "$WHERRY_OUTPUTS/nested/deeper/table.csv"
printf 'caf\\303\\251 \\346\\227\\245\\346\\234\\254' > "$WHERRY_OUTPUTS/nested/$(unicode_name)"
printf '#!/bin/sh\\n' > "$WHERRY_OUTPUTS/tool.sh" && chmod 755 "$WHERRY_OUTPUTS/tool.sh"
dd if=/dev/urandom of="$WHERRY_OUTPUTS/nested/big.bin" bs=1M count=200 2>/dev/null
echo "::metric accuracy=0.93 step=3"
echo "to stderr" >&2
cd "$WHERRY_OUTPUTS" && find . -type f -exec sha256sum {} \\;
echo "::progress 1::done"
"""
FUNCTIONS = "unicode_name() { printf 'na\\303\\257ve \\346\\227\\245\\346\\234\\254.txt'; }\n"


def test_what_the_container_wrote_comes_back_bit_for_bit(stack: Stack, tmp_path) -> None:
    table = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(1000))
    source = zip_of({"run.sh": RUN_SH, "lib/deep/functions.sh": FUNCTIONS, "data/table.csv": table})
    job_id = stack.submit(stack.spec("sh ./run.sh", name="bit-identical"), source)
    job = stack.wait_end(job_id, timeout=240)
    assert job["state"] == "succeeded", job

    printed = stack.output(job_id, "_stdout.txt").decode()
    sums = dict(reversed(line.split("  ./", 1)) for line in printed.splitlines() if "  ./" in line)
    assert set(sums) == {"empty.txt", "tool.sh", "nested/big.bin", "nested/deeper/table.csv", "nested/naïve 日本.txt"}
    for path, expected in sums.items():
        digest, size = hashlib.sha256(), 0
        with stack.http.stream("GET", f"/jobs/{job_id}/outputs/{path}") as answer:
            assert answer.status_code == 200
            for part in answer.iter_bytes():
                digest.update(part)
                size += len(part)
        assert digest.hexdigest() == expected, path
        if path == "nested/big.bin":
            assert size == 200 * 1024 * 1024
    assert stack.output(job_id, "_stderr.txt") == b"to stderr\n"

    entries = {entry["path"]: entry for entry in stack.http.get(f"/jobs/{job_id}/outputs?list=true").json()["entries"]}
    assert entries["hollow/inside"]["kind"] == "dir"
    assert entries["empty.txt"]["size"] == 0
    assert entries["tool.sh"]["mode"] & 0o777 == 0o755
    assert stack.job(job_id)["progress"]["fraction"] == 1
    points = stack.http.get(f"/jobs/{job_id}/metrics").json()["points"]
    own = [point for point in points if not point["name"].startswith("system.")]
    assert [(point["name"], point["value"], point["step"]) for point in own] == [("accuracy", 0.93, 3)]


def test_all_outputs_as_one_zip_hold_the_same_bytes(stack: Stack) -> None:
    job_id = stack.submit(stack.spec('mkdir -p "$WHERRY_OUTPUTS/a/b"; echo hello > "$WHERRY_OUTPUTS/a/b/c.txt"'))
    assert stack.wait_end(job_id)["state"] == "succeeded"
    archive = zipfile.ZipFile(io.BytesIO(stack.http.get(f"/jobs/{job_id}/outputs").content))
    assert archive.read("a/b/c.txt") == b"hello\n"
    assert archive.testzip() is None


def test_a_range_of_an_output_is_those_bytes(stack: Stack) -> None:
    job_id = stack.submit(stack.spec('printf 0123456789 > "$WHERRY_OUTPUTS/digits"'))
    assert stack.wait_end(job_id)["state"] == "succeeded"
    answer = stack.http.get(f"/jobs/{job_id}/outputs/digits", headers={"Range": "bytes=3-5"})
    assert (answer.status_code, answer.content) == (206, b"345")
    assert answer.headers["content-range"] == "bytes 3-5/10"


def test_output_and_progress_are_seen_while_the_job_runs(stack: Stack) -> None:
    job_id = stack.submit(
        stack.spec("trap 'echo last; exit' TERM; echo '::progress 0.5::half'; echo first; sleep 600 & wait")
    )
    seen: list[tuple[str, dict]] = []
    with stack.http.stream("GET", f"/jobs/{job_id}/logs?follow=true", timeout=180) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                seen.append((name, json.loads(line[5:])))
                if name == "log" and seen[-1][1]["text"] == "first":
                    assert stack.job(job_id)["state"] in {"running", "starting", "placed"}
                    assert stack.http.post(f"/jobs/{job_id}/cancel").status_code == 202
    texts = [data["text"] for name, data in seen if name == "log" and not data["text"].startswith("::")]
    assert texts == ["first", "last"]
    assert ("progress", 0.5) in [(name, data.get("fraction")) for name, data in seen]
    assert seen[-1][0] == "end"
    assert seen[-1][1]["state"] == "cancelled"


def test_a_failed_job_keeps_its_outputs_and_says_why(stack: Stack) -> None:
    job_id = stack.submit(stack.spec('echo partial > "$WHERRY_OUTPUTS/left.txt"; exit 3'))
    job = stack.wait_end(job_id)
    assert job["state"] == "failed"
    assert job["error"]["reason"] == "exit_code"
    assert job["attempts"][-1]["exit_code"] == 3
    assert stack.output(job_id, "left.txt") == b"partial\n"


def test_a_cancelled_job_ends_cancelled_and_repeating_the_cancel_is_harmless(stack: Stack) -> None:
    job_id = stack.submit(stack.spec("echo on; sleep 300"))
    stack.wait_state(job_id, "running")
    assert stack.http.post(f"/jobs/{job_id}/cancel").status_code == 202
    assert stack.http.post(f"/jobs/{job_id}/cancel").status_code == 202
    assert stack.wait_end(job_id)["state"] == "cancelled"
    assert stack.http.post(f"/jobs/{job_id}/cancel").status_code in {200, 202}


def test_the_same_key_is_the_same_job_and_another_body_is_a_conflict(stack: Stack) -> None:
    spec, key = stack.spec("true"), f"key-{os.getpid()}"
    first = stack.submit(spec, key=key)
    assert stack.submit(spec, key=key) == first
    other = stack.post_job(stack.spec("false"), key=key)
    assert other.status_code == 409
    assert other.headers["content-type"].startswith("application/problem+json")


def test_parameters_and_environment_reach_the_program(stack: Stack) -> None:
    command = 'cat "$WHERRY_PARAMS"; echo; echo "$GREETING $WHERRY_JOB_ID $WHERRY_ATTEMPT"; pwd'
    job_id = stack.submit(stack.spec(command, params={"rate": 0.5}, env={"GREETING": "hello"}))
    assert stack.wait_end(job_id)["state"] == "succeeded"
    lines = stack.output(job_id, "_stdout.txt").decode().splitlines()
    assert json.loads(lines[0]) == {"rate": 0.5}
    assert lines[1] == f"hello {job_id} 1"


def test_the_submitter_gets_an_email_and_a_signed_webhook(stack: Stack) -> None:
    from standardwebhooks import Webhook  # noqa: PLC0415

    receiver = json.loads((stack.home / "run.json").read_text())["sinks"]
    notify = [{"webhook": {"url": receiver["webhook_url"]}}, {"email": "someone@example.com"}]
    job_id = stack.submit(stack.spec("true", notify=notify))
    assert stack.wait_end(job_id)["state"] == "succeeded"

    def delivered() -> list[dict]:
        found = stack.http.get(f"/jobs/{job_id}/notifications").json()["notifications"]
        return found if len(found) == 2 and all(one["state"] == "delivered" for one in found) else []

    until(delivered, "both notifications delivered")
    inbox = stack.home / "inbox"
    mail = [path.read_text() for path in inbox.glob("*.eml")]
    assert any(job_id in text and "someone@example.com" in text for text in mail)
    secret = stack.http.get("/webhook-secret").json()["secret"]
    hooks = [json.loads(path.read_text()) for path in inbox.glob("*.json")]
    (hook,) = [one for one in hooks if job_id in one["body"]]
    event = Webhook(secret).verify(hook["body"], hook["headers"])
    assert event["type"] == "io.wherry.job.succeeded.v1"


@pytest.mark.parametrize("path", ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "nothing-here"])
def test_an_output_that_is_not_there_is_a_404_problem(stack: Stack, path: str) -> None:
    job_id = stack.submit(stack.spec("true"))
    assert stack.wait_end(job_id)["state"] in ENDS
    answer = stack.http.get(f"/jobs/{job_id}/outputs/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("application/problem+json")
