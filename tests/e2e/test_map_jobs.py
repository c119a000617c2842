"""Map jobs as users work with them: the command line, many files, one that fails, and only that one again."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.e2e.stack import Stack, until, wherry, zip_of

#: Makes capitals of a file; one that says "bad" fails.
CAPITALS = 'grep -q bad "$WHERRY_IN" && { echo "it is bad" >&2; exit 3; }; tr a-z A-Z < "$WHERRY_IN" > "$WHERRY_OUT"'


def small(stack: Stack, folder: Path) -> Path:
    spec = folder / "spec.json"
    image: dict[str, Any] = {"image": stack.image} if stack.image else {}
    resources = {"cpus": 0.2, "memory": "64MiB", "disk": "64MiB"}
    spec.write_text(json.dumps({"runtime": stack.runtime, "resources": resources} | image))
    return spec


def test_a_command_runs_over_files_and_what_failed_runs_again_alone(stack: Stack, tmp_path: Path) -> None:
    files = [tmp_path / f"file{at}.txt" for at in range(12)]
    for at, file in enumerate(files):
        file.write_text("this one is bad" if at == 7 else f"text number {at}")
    out = tmp_path / "out"
    done = wherry(stack, "map", *files, "-c", CAPITALS, "--spec", small(stack, tmp_path), "-p", "2", "-o", out)
    assert done.returncode == 1, done.stderr
    assert "file7.txt:" in done.stderr
    job_id = next(line.split()[1] for line in done.stderr.splitlines() if line.startswith("job "))
    results = {path.name: path.read_text() for path in (out / job_id).iterdir()}
    assert results == {f"{at + 1:04d}-file{at}.txt": f"TEXT NUMBER {at}" for at in range(12) if at != 7}

    listed = json.loads(wherry(stack, "--json", "items", job_id, "--state", "failed").stdout)["items"]
    assert [(one["number"], one["name"], one["error"]["reason"]) for one in listed] == [(8, "file7.txt", "item_failed")]
    assert stack.job(job_id)["error"]["reason"] == "items_failed"

    where, as_json = f"/jobs/{job_id}/logs", {"Accept": "application/json"}  # its workers may end after it
    [said] = until(lambda: stack.http.get(where, headers=as_json).json()["lines"], "a line")
    assert (said["text"], said["member"][:7], said["stream"]) == ("it is bad", "worker-", "stderr")
    assert said["item"] == listed[0]["item_id"]
    followed = wherry(stack, "logs", "-f", job_id)
    assert f"{said['member']} | it is bad\n" in followed.stdout + followed.stderr
    refused = wherry(stack, "rerun", said["member_id"])
    assert refused.returncode != 0
    assert f"rerun {job_id}" in refused.stderr

    again = json.loads(wherry(stack, "--json", "rerun", job_id).stdout)["job_id"]
    job = stack.wait_end(again)
    assert job["items"] == {"total": 1, "succeeded": 0, "failed": 1, "closed": True}


def test_a_dataset_is_mapped_and_its_results_are_there_while_it_goes_on(stack: Stack, tmp_path: Path) -> None:
    body = zip_of({"data/a.txt": "first", "data/b.txt": "second", "data/readme.md": "not this one"})
    name = "words-to-capitals"
    stack.http.post("/datasets", data={"name": name}, files={"file": ("words.zip", body)}).raise_for_status()
    spec = json.loads(small(stack, tmp_path).read_text())
    spec |= {"kind": "map", "command": CAPITALS}
    job_id = stack.submit(spec | {"map": {"over": f"dataset:{name}", "pattern": "*.txt", "open": True}})
    until(lambda: (stack.job(job_id).get("items") or {}).get("succeeded") == 2, "both files are done")
    answer = stack.http.get(f"/jobs/{job_id}/outputs")
    assert answer.headers["wherry-partial"] == "true"
    with zipfile.ZipFile(BytesIO(answer.content)) as archive:
        found = {path: archive.read(path) for path in archive.namelist()}
    assert found == {f"{job_id}/0001-a.txt": b"FIRST", f"{job_id}/0002-b.txt": b"SECOND"}

    added = stack.http.post(f"/jobs/{job_id}/items", json={"items": [{"path": "over/data/readme.md"}], "close": True})
    assert added.status_code == 202, added.text
    job = stack.wait_end(job_id)
    assert (job["state"], job["items"]["succeeded"]) == ("succeeded", 3)
    assert stack.output(job_id, f"{job_id}/0003-readme.md") == b"NOT THIS ONE"
