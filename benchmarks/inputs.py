"""``python -m benchmarks.inputs``: the time to start of a job with a large input, with it on its node and without.

Two machines on this one, each with an engine of its own in a network namespace (`tests.engines`): the first job brings
the input to one of them; the next ones start there. Then that node is filled, a job has to go to the other one and
brings the input there too, and the next start there. Storage counts the bytes that it sends. Needs root.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.stack import dump, machine
from infra.local.ports import free_port
from tests.e2e.stack import Stack, until
from tests.engines import Engines, why_not

HERE = Path(__file__).parent
IMAGE = "wherry/busybox:latest"
MIB = 1024 * 1024
TINY = {"cpus": 0.1, "memory": "64MiB", "disk": "64MiB"}

PAGE = """# Inputs, measured

Written by `python -m benchmarks.inputs` ({when}) on {machine} (load average {load_before} before,
{load_after} after); raw figures in [inputs.json](inputs.json). Two nodes, each with an engine of its own in a
network namespace; NATS, MongoDB, all services, both agents and both engines share these cores and one disk.

The input is a file of {mib:,} MiB of random bytes. *Time to start* is from the job's record to its program's start, as its
timeline has both. Storage's own counter says how much it sent.

| the job | node | time to start | sent by storage |
| --- | --- | ---: | ---: |
{rows}

Without the input on its node a job started after {cold:.1f} s (median of {colds}), with it after {warm:.2f} s (median of
{warms}): {times:,.0f} times as soon. Every later job went to the node that had the input, as long as that had room.
"""


class Bench:
    """A stack with two engines, and one large input."""

    def __init__(self, stack: Stack, size: int) -> None:
        self.stack = stack
        answer = stack.http.put("/artifacts", content=_blocks(size), timeout=1200)
        answer.raise_for_status()
        self.artifact: dict[str, Any] = answer.json()

    def run(self, what: str) -> dict[str, Any]:
        """Run one job with the input, and return where it started, when, and what was moved for it."""
        before = self._sent()
        inputs = {"data": {"source": f"artifact:{self.artifact['artifact_id']}", "unpack": False}}
        job_id = self.stack.submit(self.stack.spec('test -s "$WHERRY_INPUTS/data"', inputs=inputs, resources=TINY))
        job = self.stack.wait_end(job_id, timeout=1200)
        if job["state"] != "succeeded":
            raise RuntimeError(json.dumps(job))
        attempt = job["attempts"][-1]
        seconds = _seconds(attempt["running_at"]) - _seconds(job["created_at"])
        until(lambda: self._is_held(attempt["node"]), "the heartbeat says that it is there")
        found = {"what": what, "node": attempt["node"], "start_s": seconds, "sent": self._sent() - before}
        print(json.dumps(found), flush=True)
        return found

    def fill(self, node: str) -> str:
        """Leave no room on a node."""
        resources = TINY | {"cpus": 1}
        job_id = self.stack.submit(self.stack.spec("sleep 3600", resources=resources, placement={"node": node}))
        self.stack.wait_state(job_id, "running")
        return job_id

    def _is_held(self, node: str) -> bool:
        held = self.stack.http.get(f"/nodes/{node}").json()["inputs"]
        return any(one["key"] == self.artifact["sha256"] for one in held)

    def _sent(self) -> int:
        text = httpx.get(f"http://127.0.0.1:{self.stack.env['WHERRY_STORAGE_METRICS_PORT']}/metrics").text
        name = "wherry_storage_blob_bytes_sent_total "
        return int(float(next(line for line in text.splitlines() if line.startswith(name)).split()[1]))


def _blocks(size: int) -> Iterator[bytes]:
    for at in range(0, size, MIB):
        yield os.urandom(min(MIB, size - at))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def measure(size: int, samples: int) -> dict[str, Any]:
    """Return the runs on both nodes."""
    load = os.getloadavg()[0]
    with Engines(2, on_disk=True) as engines, tempfile.TemporaryDirectory(prefix="wherry-inputs-") as home:
        for engine in engines:
            engine.load(IMAGE)
        env = {"WHERRY_RUNTIMES": "process", "WHERRY_STORAGE_METRICS_PORT": str(free_port())}
        stack = Stack.start(Path(home), runtime="docker", image=IMAGE, env=env, engines=list(engines))
        try:
            stack.join(*engines, WHERRY_CAPACITY="cpus=1")
            bench = Bench(stack, size)
            runs = [bench.run("the first of all")]
            runs += [bench.run("a later one") for _ in range(samples)]
            filler = bench.fill(runs[0]["node"])
            runs += [bench.run("the first while that node is full")]
            runs += [bench.run("a later one") for _ in range(samples)]
            stack.http.post(f"/jobs/{filler}/cancel").raise_for_status()
            stack.wait_end(filler)
        finally:
            stack.stop()
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "bytes": size,
        "runs": runs,
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of inputs.md."""
    cold = [run["start_s"] for run in results["runs"] if run["what"] != "a later one"]
    warm = [run["start_s"] for run in results["runs"] if run["what"] == "a later one"]
    rows = (
        f"| {run['what']} | {run['node']} | {run['start_s']:.2f} s | {run['sent'] / MIB:,.0f} MiB |"
        for run in results["runs"]
    )
    return PAGE.format(
        when=results["when"],
        machine=results["machine"],
        load_before=results["load_average"][0],
        load_after=results["load_average"][1],
        mib=results["bytes"] // MIB,
        rows="\n".join(rows),
        cold=statistics.median(cold),
        colds=len(cold),
        warm=statistics.median(warm),
        warms=len(warm),
        times=statistics.median(cold) / statistics.median(warm),
    )


def main() -> None:
    """Measure, and write inputs.md and inputs.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the input")
    parser.add_argument("--samples", type=int, default=5, help="later jobs on each node")
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    results = measure(args.mib * MIB, args.samples)
    dump(results, HERE / "inputs.json")
    (HERE / "inputs.md").write_text(page(results))
    print("written: benchmarks/inputs.md")


if __name__ == "__main__":
    main()
