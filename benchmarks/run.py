"""`make bench`: measure, and write benchmarks/results.md and results.json.

Everything is measured in one run on one machine; where a goal is a ratio, both sides are in the same run, in turn. NATS syncs every write to disk.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks import blobs
from benchmarks.http_load import load, post
from benchmarks.stack import BenchStack, dump, machine, wait_for

HERE = Path(__file__).resolve().parent
IMAGE = "wherry/busybox:latest"
MIB = 1024 * 1024
SPEC = {
    "name": "noop",
    "image": "busybox",
    "command": ["true"],
    "resources": {"cpus": 0.5, "memory": "64MiB"},
    "env": {"A": "1"},
    "labels": ["bench"],
}


def submit(stack: BenchStack, token: str, seconds: float, samples: int) -> dict[str, float]:
    """Jobs a second by POST /v1/jobs from 64 clients, one job a request, and 100 a request from 8."""
    one, many = json.dumps(SPEC).encode(), json.dumps({"jobs": [SPEC] * 100}).encode()

    def measure(path: str, body: bytes, connections: int) -> tuple[float, float]:
        request = post(path, body, token)
        outcome = asyncio.run(load("127.0.0.1", stack.port, lambda: request, connections=connections, seconds=seconds))
        wrong = {status: n for status, n in outcome.statuses.items() if status not in (200, 202)}
        if wrong:
            raise RuntimeError(f"{path}: answers other than 202: {wrong}")
        good = sum(outcome.statuses.values()) / outcome.seconds
        return good, outcome.percentile(0.5) * 1000

    measure("/v1/jobs", one, 64)  # warm: routes, token cache, connections
    singles = [measure("/v1/jobs", one, 64) for _ in range(samples)]
    batches = [measure("/v1/jobs/batch", many, 8) for _ in range(samples)]
    return {
        "single_per_s": statistics.median(rate for rate, _ in singles),
        "single_p50_ms": statistics.median(p50 for _, p50 in singles),
        "batched_per_s": statistics.median(rate for rate, _ in batches) * 100,
    }


def bench_submit(seconds: float, samples: int) -> dict[str, object]:
    """Submission with gateway, NATS and load only, and with every service running."""
    with BenchStack([]) as stack:
        for name in ("storage", "scheduler", "notifier", "gateway"):
            stack.service(name)
        token = stack.login()
        with stack.stopped("storage", "scheduler", "notifier"):
            alone = submit(stack, token, seconds, samples)
    with BenchStack([]) as stack:
        for name in ("storage", "scheduler", "notifier", "gateway"):
            stack.service(name)
        together = submit(stack, stack.login(), seconds, samples)
    return {"alone": alone, "all_services": together}


def bench_lifecycle(jobs: int, nodes: int, samples: int) -> dict[str, object]:
    """No-op jobs a second from POST to the recorded end, on simulated nodes that speak the real protocol."""
    names = [f"sim-{i}" for i in range(nodes)]
    rates: list[float] = []
    with BenchStack(names) as stack:
        for name in ("storage", "scheduler", "notifier", "gateway"):
            stack.service(name)
        token = stack.login()
        env = {**os.environ, "WHERRY_NATS_URL": stack.nats.url, "BENCH_PASSWORDS": json.dumps(stack.passwords)}
        agents = subprocess.Popen([sys.executable, "-m", "benchmarks.agents", *names], env=env)
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{stack.port}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60
            ) as http:
                wait_for(lambda: "ok" if http.get("/status").json()["nodes"]["online"] == nodes else None, 30)
                for sample in range(samples + 1):
                    goal = _succeeded(http) + jobs
                    started = time.perf_counter()
                    spec = {**SPEC, "name": f"noop-{sample}"}
                    for _ in range(jobs // 100):
                        http.post("/jobs/batch", json={"jobs": [spec] * 100}).raise_for_status()
                    wait_for(lambda: "ok" if _succeeded(http) >= goal else None, 300)
                    if sample:  # the first warms up
                        rates.append(jobs / (time.perf_counter() - started))
        finally:
            agents.kill()
            agents.wait()
    return {"jobs": jobs, "nodes": nodes, "per_s": statistics.median(rates), "samples": rates}


def _succeeded(http: httpx.Client) -> int:
    return http.get("/status").json()["jobs"]["by_state"].get("succeeded", 0)


def bench_first_output(samples: int) -> dict[str, object] | None:
    """Seconds from POST to the container's first output, and of a plain `docker run` of the same command to its own, in turn."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode != 0:
        return None
    seen: list[float] = []
    printed: list[float] = []
    plain: list[float] = []
    with BenchStack(["bench"]) as stack:
        for name in ("storage", "scheduler", "notifier", "gateway"):
            stack.service(name)
        stack.agent("bench", WHERRY_STOP_JOBS_ON_EXIT="1", WHERRY_RUNTIMES="docker")
        token = stack.login()
        headers = {"Authorization": f"Bearer {token}"}
        spec = {"name": "first", "image": IMAGE, "command": "echo hello", "resources": {"cpus": 1, "memory": "64MiB"}}
        with httpx.Client(base_url=f"http://127.0.0.1:{stack.port}/v1", headers=headers, timeout=60) as http:
            wait_for(lambda: "ok" if http.get("/status").json()["nodes"]["online"] == 1 else None, 30)
            for sample in range(samples + 2):
                started, wall = time.perf_counter(), time.time()  # noqa: TID251  compared with the engine's stamp
                job = http.post("/jobs", json=spec).json()["job_id"]
                line = next(_log_events(http, job))
                at = time.perf_counter() - started
                stamp = datetime.fromisoformat(line["t"]).timestamp() - wall
                _wait_end(http, job)
                run = _docker_run()
                if sample >= 2:
                    seen.append(at)
                    printed.append(stamp)
                    plain.append(run)
    return {
        "post_to_output_ms": statistics.median(printed) * 1000,
        "post_to_output_seen_ms": statistics.median(seen) * 1000,
        "docker_run_to_output_ms": statistics.median(plain) * 1000,
        "ratio": statistics.median(a / b for a, b in zip(printed, plain, strict=True)),
        "ratio_seen": statistics.median(a / b for a, b in zip(seen, plain, strict=True)),
        "samples": samples,
    }


def _log_events(http: httpx.Client, job: str) -> Iterator[dict[str, str]]:
    with http.stream("GET", f"/jobs/{job}/logs?follow=true") as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:") and name == "log":
                yield json.loads(line[5:])


def _wait_end(http: httpx.Client, job: str) -> None:
    def ended() -> str | None:
        state = http.get(f"/jobs/{job}").json()["state"]
        if state in {"failed", "cancelled", "timed_out"}:
            raise RuntimeError(f"the job ended {state}")
        return state if state == "succeeded" else None

    wait_for(ended, 60)


def _docker_run() -> float:
    started = time.perf_counter()
    with subprocess.Popen(
        ["docker", "run", "--rm", IMAGE, "sh", "-c", "echo hello"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        at = time.perf_counter() - started
        process.wait()
    return at


PAGE = """# Results

Written by `make bench` ({when}) on {machine}. All processes of a measurement, load generator, NATS, MongoDB and services, share these cores; NATS syncs every
write (`sync_interval: always`). Medians of {samples} samples after one that warms up. Absolute figures are this machine's; ratios have both sides in the same run, in turn.

| what | goal | here |
| --- | --- | --- |
{rows}

* *gateway, NATS and load only*: storage, scheduler and notifier are stopped (SIGSTOP) after the login; every request carries a token and is validated in full.
* *no-op jobs*: handed in 100 a request, placed by the scheduler on {nodes} simulated nodes that speak the real protocol with real credentials, ended by their reports;
  the clock stops when storage shows all as succeeded.
* *first output*: `sh -c "echo hello"` in a 2 MB image, hardened container with its own volumes, against `docker run --rm` of the same; by the engine's time stamp of the
  line, and as received over SSE.
* *artifacts*: {size_mib} MiB of random bytes through HTTP, gateway, NATS and storage, SHA-256 at both ends, beside pymongo's GridFS bucket straight to the same mongod with the
  same write concern; {pairs} pairs, the two sides in turn. The medians of the ratios inside each pair (least to greatest) are what counts: five processes share {cpus} cores
  with whatever else the machine does, and a plain read or write has two.
* *artifacts of 4 KiB*: the ratio depends on the disk. Ours are bound by the processor, plain ones by how long a flush takes.
"""


def page(results: dict[str, Any], samples: int) -> str:
    """Return results.md."""
    rows: list[str] = []

    def row(what: str, goal: str, here: str) -> None:
        rows.append(f"| {what} | {goal} | {here} |")

    if s := results.get("submit"):
        row(
            "jobs submitted a second, one a request, 64 clients: gateway, NATS and load only",
            ">= 2,000",
            f"{s['alone']['single_per_s']:,.0f} (p50 {s['alone']['single_p50_ms']:.0f} ms)",
        )
        row(
            "the same with all services running",
            "",
            f"{s['all_services']['single_per_s']:,.0f} (p50 {s['all_services']['single_p50_ms']:.0f} ms)",
        )
        row(
            "100 jobs a request, 8 clients: gateway, NATS and load only",
            "far more",
            f"{s['alone']['batched_per_s']:,.0f}",
        )
        row("the same with all services running", "", f"{s['all_services']['batched_per_s']:,.0f}")
    if s := results.get("lifecycle"):
        row("no-op jobs a second, end to end", ">= 300", f"{s['per_s']:,.0f}")
    if s := results.get("first_output"):
        row(
            "POST to the container's first output",
            "not above `docker run`",
            f"{s['post_to_output_ms']:.0f} ms ({s['ratio']:.2f} x)",
        )
        row(
            "POST to that line received over SSE", "", f"{s['post_to_output_seen_ms']:.0f} ms ({s['ratio_seen']:.2f} x)"
        )
        row("`docker run` of the same command to its first output", "", f"{s['docker_run_to_output_ms']:.0f} ms")
    for what, goal, here in blob_rows(results.get("artifacts") or {}):
        row(what, goal, here)
    nodes = (results.get("lifecycle") or {}).get("nodes", 0)
    large = (results.get("artifacts") or {}).get("blobs", {})
    return PAGE.format(
        when=results["when"],
        machine=results["machine"],
        samples=samples,
        rows="\n".join(rows),
        nodes=nodes,
        size_mib=large.get("bytes", 0) // MIB,
        pairs=large.get("pairs", 0),
        cpus=os.cpu_count(),
    )


def blob_rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows (what, goal, here) about blobs."""

    def ratio(part: dict[str, Any], way: str) -> str:
        least, most = part[f"{way}_spread"]
        return f"{part[f'{way}_ratio']:.2f} x ({least:.2f} to {most:.2f})"

    if s := found.get("blobs"):
        for way, up, goal in (("upload", "up", ">= 0.55, better 0.62"), ("download", "down", ">= 0.40, better 0.45")):
            figures = f"{s[up] / MIB:.0f} MiB/s beside {s[f'raw_{up}'] / MIB:.0f}"
            yield f"artifact {way}, beside plain GridFS", goal, f"{ratio(s, way)}; {figures}"
    if s := found.get("together"):
        for way in ("upload", "download"):
            yield f"{s['transfers']} {way}s at once in sum, beside one", ">= 1", ratio(s, way)
        if "peak_mib" in s:
            yield f"resident memory at most, {s['transfers']} transfers at once", "", _megabytes(s["peak_mib"])
    if s := found.get("small"):
        figures = f"{s['per_s']:,.0f} a second beside {s['raw_per_s']:,.0f}"
        yield "artifacts of 4 KiB, 64 clients, beside plain GridFS", ">= 2.5", f"{ratio(s, 'small')}; {figures}"
    if s := found.get("memory"):
        what = f"resident memory at most, {s['bytes'] // MIB:,} MiB up and down"
        yield what, "< 150 MB each", _megabytes(s["peak_mib"])


def _megabytes(peaks: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mib * MIB / 1e6:.0f} MB" for name, mib in peaks.items())


def main() -> None:
    """Run the chosen measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "only", nargs="*", choices=["submit", "lifecycle", "first_output", "artifacts", []], help="default: all"
    )
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--blob-mib", type=int, default=1024, help="size of a large artifact")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if args.only and path.exists() else {}
    results |= {"when": time.strftime("%Y-%m-%d"), "machine": machine()}
    for name, measure in {
        "submit": lambda: bench_submit(args.seconds, args.samples),
        "lifecycle": lambda: bench_lifecycle(2000, 8, args.samples),
        "first_output": lambda: bench_first_output(args.samples * 4) if shutil.which("docker") else None,
        "artifacts": lambda: blobs.measure(args.blob_mib * MIB, max(7, args.samples), 10 * args.blob_mib * MIB),
    }.items():
        if args.only and name not in args.only:
            continue
        print(f"{name} …", flush=True)
        results[name] = measure()
        print(json.dumps(results[name], indent=2), flush=True)
    dump(results, path)
    (HERE / "results.md").write_text(page(results, args.samples))
    print(f"written: {HERE.name}/results.md")


if __name__ == "__main__":
    main()
