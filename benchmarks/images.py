"""Photographs through POST /images: one after another, and by several clients at once, each result compared with Pillow.

Beside them, of the same files: the same filter in one process on this machine, and one ``docker run`` for each image.

    python -m benchmarks.images [--count 200] [--filter blur] [--clients 8]
"""

import argparse
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.photographs import photographs, variants
from benchmarks.stack import ROOT, BenchStack, dump, machine, wait_for
from images.filters.pictures import apply

HERE = Path(__file__).parent
IMAGE = "wherry/filters:latest"
NODE = "bench"
PAGE = """# Image workloads, measured

Written by `python -m benchmarks.images` ({when}) on {machine} (load average {load_average} before it); raw figures in
[images.json](images.json). NATS, MongoDB, all services, the engine, the worker and the clients share these cores.

{images} photographs ({mib:.0f} MiB; five sizes, PNG and JPEG) through `POST /images` with the filter {filter}, until the last
result is there. Every result was compared with what Pillow makes of the same original here: {verdict}.

| | images a second |
| --- | ---: |
| one after another, by one client | {one_after_another_per_s:.1f} |
| by {clients} clients at once | {clients_per_s:.1f} |
| the same filter in one process on this machine, nothing around it | {one_local_process_per_s:.1f} |
| one `docker run` for each image, files on this machine ({docker_runs} of them) | {docker_run_each_per_s:.1f} |
"""
#: The longer side of the photographs in pixels.
SIDES = (120, 240, 480, 800, 1200)
_TOLD_S = 0.1


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to filter."""

    name: str
    body: bytes


def pictures(count: int, sides: tuple[int, ...] = SIDES) -> list[Picture]:
    """Return *count* different files of real photographs, at least 20 of which are distinct where it is 200.

    Raises:
        NoPhotographs: they cannot be fetched.
    """
    per_photograph = 2 * len(sides)
    chosen = dict(list(photographs().items())[: -(-count // per_photograph)])
    return [Picture(name, body) for name, body in variants(chosen, sides)][:count]


class Server:
    """A workload's way in, over HTTP."""

    def __init__(self, url: str, token: str) -> None:
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=120, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def filtered(self, filter_: str, originals: Sequence[Picture], clients: int) -> tuple[float, list[str]]:
        """Filter images; return the seconds until the last was done, and what is wrong with the results."""
        workload_id = self.http.post("/workloads", json={"filter": filter_}).raise_for_status().json()["workload_id"]

        def send(one: Picture) -> str:
            sent = self.http.post("/images", data={"workload_id": workload_id}, files={"data": (one.name, one.body)})
            return sent.raise_for_status().json()["image_id"]

        started = time.monotonic()
        if clients == 1:
            ids = [send(one) for one in originals]
        else:
            with ThreadPoolExecutor(clients) as pool:
                ids = list(pool.map(send, originals))
        document = self._completed(workload_id)
        took = time.monotonic() - started
        wrong = self._wrong(filter_, originals, ids, document, in_order=clients == 1)
        self.http.delete(f"/workloads/{workload_id}").raise_for_status()
        return took, wrong

    def _completed(self, workload_id: str) -> dict[str, Any]:
        while True:
            document = self.http.get(f"/workloads/{workload_id}").raise_for_status().json()
            if document["status"] == "completed":
                return document
            time.sleep(_TOLD_S)

    def _wrong(
        self,
        filter_: str,
        originals: Sequence[Picture],
        ids: Sequence[str],
        document: dict[str, Any],
        *,
        in_order: bool,
    ) -> list[str]:
        """Return what is not as it must be: an image that failed or is not its original's, or the order."""
        wrong = [f"{one['name']}: {one['message']}" for one in document["failed_images"]]
        results = [f"f{one[1:]}" for one in ids]
        found = document["filtered_images"]
        if (found if in_order else sorted(found)) != (results if in_order else sorted(results)):
            wrong.append(f"{len(found)} results of {len(results)} images, or not in the order of upload")
        for original, result in zip(originals, results, strict=True):
            answer = self.http.get(f"/images/{result}")
            if answer.status_code != 200 or not is_right(filter_, original.body, answer.content):
                wrong.append(f"{original.name}: {answer.status_code}, not what Pillow makes of it")
        return wrong


def is_right(filter_: str, original: bytes, result: bytes) -> bool:
    """Return whether *result* is what Pillow makes of *original*; JPEG, which is lossy, may be off by a little."""
    with Image.open(io.BytesIO(original)) as before, Image.open(io.BytesIO(result)) as after:
        wanted = before.convert("L") if filter_ == "grayscale" else before.filter(ImageFilter.GaussianBlur(2))
        if (wanted.size, wanted.mode, before.format) != (after.size, after.mode, after.format):
            return False
        off = np.abs(np.asarray(wanted, np.int16) - np.asarray(after, np.int16))
        return not off.any() if after.format == "PNG" else bool(off.mean() < 2.5)


def local(filter_: str, originals: Sequence[Picture]) -> float:
    """Return the seconds that the same filter takes in this process, from files to files."""
    with tempfile.TemporaryDirectory(prefix="wherry-images-") as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        for one in originals:
            (source / one.name).write_bytes(one.body)
        started = time.monotonic()
        for one in originals:
            apply(source / one.name, target / one.name, {"filter": filter_})
        return time.monotonic() - started


def by_docker_run(filter_: str, originals: Sequence[Picture]) -> float:
    """Return the seconds that one ``docker run`` for each image takes."""
    with tempfile.TemporaryDirectory(prefix="wherry-images-") as folder:
        Path(folder).chmod(0o777)
        started = time.monotonic()
        for one in originals:
            Path(folder, one.name).write_bytes(one.body)
            command = ["docker", "run", "--rm", "--network", "none", "-v", f"{folder}:/data", IMAGE]
            subprocess.run([*command, filter_, f"/data/{one.name}", f"/data/out-{one.name}"], check=True)
        return time.monotonic() - started


def measure(filter_: str, originals: Sequence[Picture], clients: int, docker_runs: int) -> dict[str, Any]:
    """Return images per second of each way, and what was wrong."""
    with BenchStack([NODE]) as stack:
        for service in ("storage", "scheduler", "gateway"):
            stack.service(service)
        stack.agent(NODE)
        with Server(f"http://127.0.0.1:{stack.port}/v1", stack.login()) as server:
            wait_for(lambda: "yes" if server.http.get("/nodes").json()["nodes"] else None, 60)
            server.filtered(filter_, originals[:2], 1)  # what is only the first time: caches fill
            alone, wrong = server.filtered(filter_, originals, 1)
            together, also_wrong = server.filtered(filter_, originals, clients)
    few = originals[:: max(1, len(originals) // docker_runs)][:docker_runs]
    return {
        "filter": filter_,
        "images": len(originals),
        "bytes": sum(len(one.body) for one in originals),
        "one_after_another_per_s": len(originals) / alone,
        "clients": clients,
        "clients_per_s": len(originals) / together,
        "one_local_process_per_s": len(originals) / local(filter_, originals),
        "docker_runs": len(few),
        "docker_run_each_per_s": len(few) / by_docker_run(filter_, few),
        "wrong": wrong + also_wrong,
    }


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--filter", default="blur", choices=["blur", "grayscale"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--docker-runs", type=int, default=10, help="images of the slowest way")
    given = parser.parse_args()
    subprocess.run(["bash", str(ROOT / "infra/docker/build-filters.sh")], check=True, stdout=subprocess.DEVNULL)
    before: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    results = before | measure(given.filter, pictures(given.count), given.clients, given.docker_runs)
    dump(results, HERE / "images.json")
    verdict = "all were right" if not results["wrong"] else f"{len(results['wrong'])} WERE NOT"
    (HERE / "images.md").write_text(PAGE.format(**results, mib=results["bytes"] / 2**20, verdict=verdict))
    print(json.dumps(results, indent=2))
    if results["wrong"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
