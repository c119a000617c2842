"""``python -m benchmarks.serving``: predictions through wherry, beside the same container asked directly on its port.

One replica of a small model (`tests.e2e.served`): by turns its program alone, the same request through gateway, NATS
and agent to the program, and ``POST …/predict``, which makes one of it; by 1 and by 8 clients on connections that are
kept. Then 500 predictions from 8 clients, while one of two replicas is killed and another model is rolled out.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.http_load import load, post
from benchmarks.stack import ROOT, dump, machine
from tests.e2e.served import instance, model
from tests.e2e.stack import Stack, until

HERE = Path(__file__).parent
SMALL = {"cpus": 0.5, "memory": "128MiB", "disk": "64MiB"}
CLIENTS = (1, 8)
WAYS = ("directly", "through wherry", "predict")
_PREDICTIONS, _ASKING = 500, 8
#: Seconds between a client's predictions, so that they last as long as the roll-out.
_PAUSE_S = 0.15

PAGE = """# Serving, measured

Written by `python -m benchmarks.serving` ({when}) on {machine} (load average {load_before} before, {load_after} after);
raw figures in [serving.json](serving.json). NATS, MongoDB, all services, the engine, the replica and the clients share
these cores.

One replica of a model that is next to nothing (four numbers in, four out), so that what is between is what is measured.
*Directly*: the clients ask the container on its port. *Through wherry*: the very same request to
`/v1/deployments/{{id}}/v1/models/model:predict`: gateway, NATS, agent, container. *Predict*: `/v1/deployments/{{id}}/predict`.
Each for {seconds:g} s and in turn, {rounds} times; the median of the rounds.

| clients | | p50 | p99 | a second |
| ---: | --- | ---: | ---: | ---: |
{rows}

With one client a prediction took {extra:.1f} ms more through wherry (p50) than directly.

{count} predictions from {asking} clients, each with {pause_ms:.0f} ms between two, while one of two replicas was killed
and another model was rolled out: **{failed} failed**, {before} were answered by the old model and {after} by the new one. p50
{p50:.0f} ms, p99 {p99:.0f} ms, the longest {longest:.0f} ms.
"""


class Bench:
    """A stack, and an administrator's way to deployments in it."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.http = stack, stack.http

    def deploy(self, name: str, content: bytes, replicas: int = 1) -> str:
        """Serve a model, and return the deployment's id once all replicas run."""
        wish = {"name": name, "artifact": self.stored(content), "replicas": replicas, "resources": SMALL}
        made = self.http.post("/deployments", json=wish).raise_for_status().json()
        deployment = str(made["deployment_id"])
        until(lambda: self.shown(deployment)["running"] == replicas, f"{name} runs", 180)
        return deployment

    def stored(self, content: bytes) -> str:
        """Keep a zip, and return its id."""
        return str(self.http.put("/artifacts", content=content).raise_for_status().json()["artifact_id"])

    def shown(self, deployment: str) -> dict[str, Any]:
        """Return a deployment."""
        return self.http.get(f"/deployments/{deployment}").raise_for_status().json()

    def removed(self, deployment: str) -> None:
        """Take a deployment away, and return once it has gone."""
        self.http.delete(f"/deployments/{deployment}").raise_for_status()
        until(lambda: self.shown(deployment)["status"] == "removed", "it is gone", 120)

    def container(self, deployment: str, index: int = 0) -> str:
        """Return the container of a replica."""
        job_id = self.shown(deployment)["members"][index]["job_id"]
        return _docker("ps", "-q", "--filter", f"label=wherry.job={job_id}", "--filter", "label=wherry.role=job")


def latencies(bench: Bench, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each way, number of clients and round."""
    deployment = bench.deploy("bench", model("a", "b", "c", "d"))
    address = _docker(
        "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", bench.container(deployment)
    )
    body, token = (
        json.dumps({"instances": [instance(1)]}).encode(),
        bench.stack.http.headers["Authorization"].split()[1],
    )
    path = "/v1/models/model:predict"
    where = {
        "directly": (address, 8080, post(path, body, "")),
        "through wherry": ("127.0.0.1", bench.stack.port, post(f"/v1/deployments/{deployment}{path}", body, token)),
        "predict": ("127.0.0.1", bench.stack.port, post(f"/v1/deployments/{deployment}/predict", body, token)),
    }
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for clients in CLIENTS:
            for way in WAYS:
                host, port, request = where[way]
                outcome = asyncio.run(
                    load(host, port, lambda request=request: request, connections=clients, seconds=seconds)
                )
                rows.append(
                    {
                        "round": number, "clients": clients, "way": way, "statuses": dict(outcome.statuses),
                        "p50_ms": outcome.percentile(0.5) * 1000, "p99_ms": outcome.percentile(0.99) * 1000,
                        "a_second": outcome.rate(200),
                    }
                )  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
                if set(outcome.statuses) != {200}:
                    raise RuntimeError(f"not all were answered: {outcome.statuses}")
    bench.removed(deployment)
    return rows


class Askers:
    """Clients that ask again and again; what each answer took, and the word in it, or what was wrong."""

    def __init__(self, bench: Bench, deployment: str) -> None:
        self._url = f"{bench.http.base_url}deployments/{deployment}/predict"
        self._headers = {"Authorization": bench.http.headers["Authorization"]}
        self.answers: list[tuple[float, str]] = []
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def ask(self, number: int, count: int) -> None:
        """Send *count* predictions, one after the other."""
        with httpx.Client(headers=self._headers, timeout=120) as http:
            for _ in range(count):
                began = time.monotonic()
                answer = http.post(self._url, json={"instances": [instance(number % 4)]})
                took = time.monotonic() - began
                word = answer.json()["predictions"][0]["class"] if answer.status_code == 200 else ""
                with self._lock:
                    self.answers.append((took, word))
                    if word not in ("abcd"[number % 4], "wxyz"[number % 4]):
                        self.failures.append(answer.text)
                time.sleep(_PAUSE_S)


def rolled_out(bench: Bench) -> dict[str, Any]:
    """Return what became of predictions while a replica was killed and another model was rolled out."""
    deployment = bench.deploy("bench-roll", model("a", "b", "c", "d"), replicas=2)
    askers = Askers(bench, deployment)
    with ThreadPoolExecutor(_ASKING) as pool:
        asking = [pool.submit(askers.ask, n, -(-_PREDICTIONS // _ASKING)) for n in range(_ASKING)]
        until(lambda: len(askers.answers) > _PREDICTIONS // 10, "predictions go on")
        _docker("kill", bench.container(deployment))
        changes = {"artifact": bench.stored(model("w", "x", "y", "z"))}
        bench.http.patch(f"/deployments/{deployment}", json=changes).raise_for_status()
        for one in asking:
            one.result()
    bench.removed(deployment)
    took = sorted(seconds * 1000 for seconds, _ in askers.answers)
    return {
        "predictions": len(took), "failed": len(askers.failures), "failures": askers.failures[:10],
        "by_old": sum(word in "abcd" for _, word in askers.answers if word),
        "by_new": sum(word in "wxyz" for _, word in askers.answers if word),
        "p50_ms": took[len(took) // 2], "p99_ms": took[int(len(took) * 0.99)], "longest_ms": took[-1],
    }  # fmt: skip


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """Return all figures."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="wherry-serving-") as home:
        stack = Stack.start(Path(home), runtime="docker", image=None, env={"WHERRY_RUNTIMES": "docker"})
        try:
            bench = Bench(stack)
            rows, rolled = latencies(bench, seconds, rounds), rolled_out(bench)
        finally:
            stack.stop()
    load_average = [round(before, 1), round(os.getloadavg()[0], 1)]
    return {
        "when": time.strftime("%Y-%m-%d"), "machine": machine(), "load_average": load_average, "seconds": seconds,
        "rounds": rounds, "rows": rows, "rolled_out": rolled,
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """Return the text of serving.md."""

    def middle(clients: int, way: str, figure: str) -> float:
        return statistics.median(
            one[figure] for one in results["rows"] if (one["clients"], one["way"]) == (clients, way)
        )

    rows = (
        f"| {clients} | {way} | {middle(clients, way, 'p50_ms'):.1f} ms | {middle(clients, way, 'p99_ms'):.1f} ms |"
        f" {middle(clients, way, 'a_second'):,.0f} |"
        for clients in CLIENTS
        for way in WAYS
    )
    rolled = results["rolled_out"]
    return PAGE.format(
        when=results["when"], machine=results["machine"], load_before=results["load_average"][0],
        load_after=results["load_average"][1], seconds=results["seconds"], rounds=results["rounds"], rows="\n".join(rows),
        extra=middle(1, "through wherry", "p50_ms") - middle(1, "directly", "p50_ms"), count=rolled["predictions"],
        asking=_ASKING, pause_ms=_PAUSE_S * 1000, failed=rolled["failed"], before=rolled["by_old"],
        after=rolled["by_new"], p50=rolled["p50_ms"], p99=rolled["p99_ms"], longest=rolled["longest_ms"],
    )  # fmt: skip


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure, and write serving.md and serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    subprocess.run([ROOT / "infra/docker/build-serving.sh"], check=True)
    results = measure(args.seconds, args.rounds)
    dump(results, HERE / "serving.json")
    (HERE / "serving.md").write_text(page(results))
    print("written: benchmarks/serving.md")


if __name__ == "__main__":
    main()
