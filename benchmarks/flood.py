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

A job printed as fast as its container's engine takes it for {seconds} s: {lines:,} lines, {rate:,.0f} a second, of which
{kept_mib:.1f} MiB are kept (`WHERRY_LOG_BYTES_MAX`). It ended {state}, and its last line was the last that it printed.

How late the lines of a quiet job came (p50, p99, the latest), from the engine's stamp to who follows it:

| | lines | p50 | p99 | latest |
| --- | ---: | ---: | ---: | ---: |
| alone | {alone[lines]} | {alone[p50]:.0f} ms | {alone[p99]:.0f} ms | {alone[max]:.0f} ms |
| beside the flood | {beside[lines]} | {beside[p50]:.0f} ms | {beside[p99]:.0f} ms | {beside[max]:.0f} ms |

| service | memory at its peak before | with the flood |
| --- | ---: | ---: |
{rows}
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
        "seconds": seconds,
        "lines": last["n"],
        "rate": last["n"] / seconds,
        "kept": len(stack.output(flood, "_stdout.txt")),
        "alone": alone,
        "beside": found,
        "memory_mb": {one: [round(before[one]), round(after[one])] for one in SERVICES},
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of flood.md."""
    rows = (f"| {one} | {was} MB | {now} MB |" for one, (was, now) in results["memory_mb"].items())
    return PAGE.format(**results, rows="\n".join(rows), kept_mib=results["kept"] / 2**20)


def main() -> None:
    """Measure, and write flood.md and flood.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="wherry-flood-") as home:
        stack = Stack.start(Path(home) / "home", runtime="docker", image=IMAGE)
        try:
            found = measure(stack, args.seconds)
        finally:
            stack.http.timeout = httpx.Timeout(5)
            stack.stop()
    results: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": round(load, 1),
        **found,
    }
    dump(results, HERE / "flood.json")
    (HERE / "flood.md").write_text(page(results))
    print("written: benchmarks/flood.md")


if __name__ == "__main__":
    main()
