"""``python -m benchmarks.flood``: what a job that prints as fast as it can does to everybody else.

A whole stack; a quiet job prints a line five times a second and is followed by server-sent events, first alone, then
beside a job that floods, which is followed too. How late each line comes is from the engine's own stamp to its arrival.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.stack import dump, machine
from shared.clock import utc_now
from tests.e2e.stack import Stack
from tests.e2e.test_logs import events

HERE = Path(__file__).parent
IMAGE = "wherry/busybox:latest"
SERVICES = ("gateway", "node_agent", "scheduler", "storage", "notifier")
TINY = {"cpus": 0.1, "memory": "64MiB", "disk": "64MiB"}
QUIET = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.2; done"
FLOOD = "timeout {seconds} yes 'a line of a flood that has about fifty characters'; echo; echo the last line"

PAGE = """# A flood, measured

Written by `python -m benchmarks.flood` ({when}) on {machine} (load average {load_average} before it); raw figures in
[flood.json](flood.json). NATS, MongoDB, all services, the engine and both followers share these cores.

A job prints as fast as it is read for {seconds} s and is followed, beside a quiet job that prints five lines a second: in
containers, where the engine reads first, and as plain processes, where only the agent does.

| | in containers | as processes |
| --- | ---: | ---: |
{rows}

* *kept*: `WHERRY_LOG_BYTES_MAX` lets so much through, the rest is marked as a gap; the last line is kept all the same, and was there.
* *late*: from the stamp of a line of the quiet job, made as it is read from the program, to who follows it: p50, p99, the latest.
* *memory*: of each service, at its peak before the flood and with it.
"""


class Follower:
    """Follows a job and notes how late each line comes."""

    def __init__(self, stack: Stack, job_id: str) -> None:
        self.delays: list[float] = []
        self._stack, self._job_id = stack, job_id
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for name, data in events(self._stack, self._job_id):
            if name == "log":
                self.delays.append((utc_now() - datetime.fromisoformat(data["t"])).total_seconds())

    def taken(self) -> list[float]:
        """Return the delays since the last call, in seconds."""
        taken, self.delays = self.delays, []
        return taken


def late(delays: list[float]) -> dict[str, float]:
    """Return what is told of *delays*, in milliseconds."""
    cuts = statistics.quantiles(delays, n=100)
    return {"lines": len(delays), "p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3, "max": max(delays) * 1e3}


def measure(stack: Stack, seconds: int) -> dict[str, Any]:
    """Return the figures of one flood."""
    quiet = stack.submit(stack.spec(QUIET, resources=TINY))
    stack.wait_state(quiet, "running")
    follower = Follower(stack, quiet)
    time.sleep(20)
    alone = late(follower.taken())
    before = {one: stack.peak_memory_mb(one) for one in SERVICES}
    big = {"cpus": 1, "memory": "64MiB", "disk": "16GiB"}
    flood = stack.submit(stack.spec(FLOOD.format(seconds=seconds), resources=big))
    beside = threading.Thread(target=lambda: deque(events(stack, flood), maxlen=0), daemon=True)
    beside.start()
    job = stack.wait_end(flood, timeout=seconds + 300)
    found = late(follower.taken())
    after = {one: stack.peak_memory_mb(one) for one in SERVICES}
    beside.join(120)
    stack.http.post(f"/jobs/{quiet}/cancel")
    params, accepts = {"tail": 1, "stream": "stdout"}, {"Accept": "application/json"}
    last = stack.http.get(f"/jobs/{flood}/logs", params=params, headers=accepts).json()["lines"][-1]
    if last["text"] != "the last line":
        raise RuntimeError(f"the last line is missing: {last}")
    return {
        "state": job["state"],
        "lines": last["n"],
        "rate": last["n"] / seconds,
        "kept": len(stack.output(flood, "_stdout.txt")),
        "alone": alone,
        "beside": found,
        "memory_mb": {one: [round(before[one]), round(after[one])] for one in SERVICES},
    }


def rows(by_runtime: Mapping[str, Any]) -> str:
    """Return the lines of flood.md's table."""

    def delays(one: dict[str, float]) -> str:
        return f"{one['p50']:.0f}, {one['p99']:.0f}, {one['max']:.0f} ms"

    cells: dict[str, list[str]] = {}
    for one in by_runtime.values():
        table = {
            "lines printed": f"{one['lines']:,}",
            "a second": f"{one['rate']:,.0f}",
            "kept": f"{one['kept'] / 2**20:.1f} MiB",
            "the quiet job's lines late, alone": delays(one["alone"]),
            "the same beside the flood": delays(one["beside"]),
        }
        table |= {f"memory: {name}": f"{was} → {now} MB" for name, (was, now) in one["memory_mb"].items()}
        for name, text in table.items():
            cells.setdefault(name, []).append(text)
    return "\n".join(f"| {name} | {' | '.join(texts)} |" for name, texts in cells.items())


def main() -> None:
    """Measure, and write flood.md and flood.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 1),
        "seconds": args.seconds,
    }
    found: dict[str, Any] = {runtime: flood(runtime, args.seconds) for runtime in ("docker", "process")}
    dump({**results, **found}, HERE / "flood.json")
    (HERE / "flood.md").write_text(PAGE.format(**results, rows=rows(found)))
    print("written: benchmarks/flood.md")


def flood(runtime: str, seconds: int) -> dict[str, Any]:
    """Return the figures of a whole stack of its own."""
    with tempfile.TemporaryDirectory(prefix="wherry-flood-") as home:
        stack = Stack.start(Path(home) / "home", runtime=runtime, image=IMAGE if runtime == "docker" else None)
        try:
            return measure(stack, seconds)
        finally:
            stack.http.timeout = httpx.Timeout(5)
            stack.stop()


if __name__ == "__main__":
    main()
