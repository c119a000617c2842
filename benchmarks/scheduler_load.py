"""``python -m benchmarks.scheduler_load``: what one scheduler process needs under a steady load; writes scheduler.md.

A real NATS server that syncs every write, the real service, simulated nodes that speak the real protocol on their own
connections and credentials, and jobs handed in as the gateway does. The process's CPU seconds are read from /proc, the
events from the log's own sequence, the heartbeats from the service's metrics.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from pydantic import SecretStr

from benchmarks.scheduler_page import write
from benchmarks.stack import BenchStack
from infra.local.ports import free_port
from shared import channels, clock
from shared.bus import Bus, Record, job_filter
from shared.channels import Service
from shared.events import JobChanged
from shared.ids import new_id
from shared.job import Job, Owner
from shared.settings import ServiceSettings
from shared.spec import MIB, JobSpec, Resources

OWNERS = [Owner(id=f"u{n}", name=f"user {n}") for n in range(10)]
SPEC = JobSpec(image="busybox", command=("true",), resources=Resources(cpus=0.5, memory=64 * MIB, disk=MIB))
_STEP_S = 0.05


async def hand_in(bus: Bus, jobs_per_s: float, seconds: float) -> int:
    """Hand in jobs at a steady rate, not more than the log takes; return the log's sequence of the last."""
    began, count, seq = time.monotonic(), 0, 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * jobs_per_s) - count
        seqs = await asyncio.gather(*(_create(bus, OWNERS[(count + n) % len(OWNERS)]) for n in range(due)))
        seq = max(seqs, default=seq)
        count += due
        await asyncio.sleep(_STEP_S)
    return seq


async def _create(bus: Bus, owner: Owner) -> int:
    now, job_id = clock.utc_now(), new_id("j")
    job = Job(id=job_id, owner=owner, spec=SPEC, created_at=now, updated_at=now)
    params = {"owner": owner.id, "job_id": job_id}
    event = bus.event(channels.JOB_CREATED, JobChanged(job=job), subject=job_id, **params)
    stored = await bus.record(
        Record(channels.JOB_CREATED, params, event, expect=(job_filter(job_id), 0)), deadline_s=60
    )
    return stored.seq


async def measure(stack: BenchStack, port: int, *, jobs_per_s: float, seconds: float) -> dict[str, float]:
    """Let the load run in, then count for *seconds*."""
    pid = stack.processes["services.scheduler"].pid
    settings = ServiceSettings(
        nats_url=stack.nats.url, nats_user="gateway", nats_password=SecretStr(stack.passwords["gateway"])
    )
    async with Bus.connect(settings, Service.GATEWAY) as bus:
        seq = await hand_in(bus, jobs_per_s, 5)
        before = await asyncio.to_thread(_look, pid, port, seq)
        seq = await hand_in(bus, jobs_per_s, seconds)
        after = await asyncio.to_thread(_look, pid, port, seq)
    took = after["at"] - before["at"]
    rates = {name: (after[name] - before[name]) / took for name in ("cpu_s", "log", "beats", "decisions")}
    return {
        "seconds": took,
        "cpu_per_s": rates["cpu_s"],
        "log_entries_per_s": rates["log"],
        "heartbeats_per_s": rates["beats"],
        "decisions_per_s": rates["decisions"],
        "memory_mib": after["memory_mib"],
    }


def _look(pid: int, port: int, seq: int) -> dict[str, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = Path(f"/proc/{pid}/status").read_text()
    shown = _metrics(port)
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    return {
        "at": time.monotonic(),
        "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        "log": float(seq),
        "beats": _sum(shown, "wherry_scheduler_heartbeats_total"),
        "decisions": _sum(shown, "wherry_scheduler_decisions_total"),
        "memory_mib": int(memory[1]) / 1024 if memory else 0.0,
    }


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def _sum(shown: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", shown, re.MULTILINE))


def run(nodes: int, interval_s: float, jobs_per_s: float, seconds: float) -> dict[str, float]:
    """Start all of it, measure, and stop it."""
    names, port = [f"sim-{n}" for n in range(nodes)], free_port()
    with BenchStack(names) as stack:
        stack.service(
            "scheduler",
            WHERRY_SCHEDULER_METRICS_PORT=str(port),
            WHERRY_SCHEDULER_HEARTBEAT_INTERVAL_S=str(interval_s),
            WHERRY_SCHEDULER_HEARTBEATS_PER_S_MAX="100000",
        )
        env = {**os.environ, "WHERRY_NATS_URL": stack.nats.url, "BENCH_PASSWORDS": json.dumps(stack.passwords)}
        agents = subprocess.Popen([sys.executable, "-m", "benchmarks.agents", *names], env=env)
        try:
            _wait_for_fleet(port, nodes)
            figures = asyncio.run(measure(stack, port, jobs_per_s=jobs_per_s, seconds=seconds))
        finally:
            agents.kill()
            agents.wait()
    return {"nodes": nodes, "interval_s": interval_s, "jobs_per_s": jobs_per_s} | figures


def _wait_for_fleet(port: int, nodes: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if _sum(_metrics(port), "wherry_scheduler_nodes") >= nodes:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise TimeoutError("not all nodes were heard")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two heartbeats of a node")
    parser.add_argument("--jobs", type=float, default=130, help="jobs a second; each makes four entries in the log")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--no-page", action="store_true", help="only print")
    args = parser.parse_args()
    figures = run(args.nodes, args.interval, args.jobs, args.seconds)
    print(json.dumps(figures, indent=2), flush=True)
    if not args.no_page:
        print(f"written: {write(Path(__file__).parent, 'load', figures)}")


if __name__ == "__main__":
    main()
