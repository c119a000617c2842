"""Logs, series and what was used, on a real stack: also beside a job that prints without end."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from shared.clock import utc_now
from tests.e2e.stack import Stack, until

SMALL = {"cpus": 0.2, "memory": "64MiB", "disk": "64MiB"}
#: How late a line of a quiet job may come while others print without end; without them it takes some tens of ms.
LATE_S = 30
GROWTH_MB = 100
FLOODS = {
    "stdout": "yes 'a line of a flood' | head -n 200000",
    "stderr": "yes 'a line of a flood' | head -n 200000 1>&2",
    "one endless line": "tr '\\0' x < /dev/zero | head -c 20000000",
}


def events(stack: Stack, job_id: str, **params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the server-sent events of a followed log, to their end."""
    with stack.http.stream("GET", f"/jobs/{job_id}/logs", params={"follow": "true", **params}, timeout=120) as answer:
        assert answer.status_code == 200
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def flooding(stack: Stack, command: str) -> str:
    """Hand in a job that prints as much as it can."""
    spec = stack.spec(f"{command}; echo; echo the last line")
    spec["resources"] = {"cpus": 1, "memory": "64MiB", "disk": "8GiB"}
    return stack.submit(spec)


def flood(stack: Stack, command: str) -> str:
    """Run a flood beside a quiet job; check that this one is followed in time and that nobody grows."""
    quiet = stack.spec("for n in $(seq 1 6000); do echo $(date +%s) line $n; sleep 0.2; done")
    quiet_id = stack.submit(quiet | {"resources": SMALL})
    services = ("node_agent", "gateway", "storage")
    before = {one: stack.peak_memory_mb(one) for one in services}
    delays: list[float] = []
    heard = threading.Event()

    def follow() -> None:
        for name, data in events(stack, quiet_id):
            if name == "log":
                delays.append(utc_now().timestamp() - int(data["text"].split()[0]))
                heard.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert heard.wait(180)
    job_id = flooding(stack, command)
    beside = threading.Thread(target=lambda: deque(events(stack, job_id), maxlen=0))
    beside.start()
    job = stack.wait_end(job_id, timeout=300)
    beside.join(180)
    printed = len(delays)
    until(lambda: len(delays) > printed, "the quiet job is still followed")
    stack.http.post(f"/jobs/{quiet_id}/cancel")
    follower.join(180)
    grown = {one: round(stack.peak_memory_mb(one) - before[one]) for one in services}
    print(f"{command}: {len(delays)} lines beside it, at most {max(delays):.1f} s late; memory grew by {grown} MB")
    assert job["state"] == "succeeded", job
    assert max(delays) < LATE_S
    assert all(mb < GROWTH_MB for mb in grown.values()), grown
    return job_id


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "stdout" else pytest.mark.slow) for kind in FLOODS]
)
def test_a_job_that_prints_without_end_harms_nobody(stack: Stack, kind: str) -> None:
    job_id = flood(stack, FLOODS[kind])
    # Of one stream: what was kept back of a flood comes at the end, behind what the other stream has said.
    last = {"tail": 1, "stream": "stdout"}
    until(lambda: stack.http.get(f"/jobs/{job_id}/logs", params=last).text == "the last line\n", "its last line")
    name = "_stderr.txt" if kind == "stderr" else "_stdout.txt"
    kept = len(stack.output(job_id, name))
    assert 1024 < kept <= 64 * 1024**2 + 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100_000_lines_a_second_harm_nobody(stack: Stack) -> None:
    """A whole minute of them is measured by `python -m benchmarks.flood`."""
    job_id = flood(stack, "timeout 20 yes 'a line of a flood'")
    last = stack.http.get(f"/jobs/{job_id}/logs", params={"tail": 1}, headers={"Accept": "application/json"}).json()
    print("lines printed:", last["lines"][-1]["n"])


def test_every_member_of_a_gang_is_seen_in_one_log(stack: Stack) -> None:
    tiny = {"resources": {"cpus": 0.1, "memory": "32MiB", "disk": "16MiB"}}
    wanted = {"roles": {"server": {"count": 1, **tiny}, "worker": {"count": 2, **tiny}}}
    gang_id = stack.submit(stack.spec('echo "$WHERRY_ROLE $WHERRY_INDEX"; sleep 1; echo bye', kind="gang", gang=wanted))
    seen = list(events(stack, gang_id))
    lines = sorted((data["member"], data["n"], data["text"]) for name, data in seen if name == "log")
    members = ("server-0", "worker-0", "worker-1")
    expected = [(one, n, text) for one in members for n, text in ((1, one.replace("-", " ")), (2, "bye"))]
    assert lines == expected
    assert seen[-1] == ("end", {"state": "succeeded"})
    stored = stack.http.get(f"/jobs/{gang_id}/logs").text
    assert stored == "".join(f"{member} | {text}\n" for member, _, text in expected)


def test_series_come_with_what_was_used_and_its_peaks(stack: Stack) -> None:
    measured = "for n in 1 2 3; do echo ::metric loss=0.$n step=$n; sleep 1; done"
    work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    job_id = stack.submit(stack.spec(f"{measured}; {work}") | {"resources": SMALL | {"cpus": 1}})
    job = stack.wait_end(job_id)
    assert job["state"] == "succeeded", job
    peaks = job["attempts"][-1]["peaks"]
    assert peaks["system.memory"] > 0
    assert peaks["system.cpu"] > 0
    found = stack.http.get(f"/jobs/{job_id}/metrics").json()
    series = {one["name"]: one for one in found["series"]}
    assert (series["loss"]["count"], series["loss"]["min"], series["loss"]["last"]) == (3, 0.1, 0.3)
    assert series["system.memory"]["max"] == peaks["system.memory"]
    own = stack.http.get(f"/jobs/{job_id}/metrics", params={"name": "loss", "points": 2}).json()
    assert [(one["step"], one["value"]) for one in own["points"]] == [(1, 0.1), (3, 0.3)]
