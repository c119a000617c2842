"""Blobs through the gateway beside plain GridFS: the same bytes, mongod and write concern, taken in turn.

A pair is one transfer each way through HTTP, gateway, NATS and storage, and at once the same with pymongo's GridFS
bucket. Only the ratio inside a pair counts: the machine may be busy with other things, but then with both.
"""

import argparse
import http.client
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gridfs
from pymongo import MongoClient, WriteConcern

from benchmarks.stack import BenchStack, dump, machine

HERE = Path(__file__).parent
MIB = 1024 * 1024
SMALL_BYTES = 4096
_SERVICES = ("storage", "gateway")


class Client:
    """HTTP with nothing around it, so that the figures are the server's."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}

    def put(self, blocks: Sequence[bytes]) -> str:
        """Store an artifact and return its id."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            headers = {**self._headers, "Content-Length": str(sum(map(len, blocks)))}
            connection.request("PUT", "/v1/artifacts", body=iter(blocks), headers=headers)
            return _artifact_id(connection.getresponse())
        finally:
            connection.close()

    def get(self, artifact: str) -> int:
        """Read an artifact and return its length in bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        buffer, size = bytearray(MIB), 0
        try:
            connection.request("GET", f"/v1/artifacts/{artifact}", headers=self._headers)
            answer = connection.getresponse()
            while got := answer.readinto(buffer):
                size += got
        finally:
            connection.close()
        return size

    def put_many(self, bodies: Sequence[bytes]) -> None:
        """Store small artifacts one after the other on one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            for body in bodies:
                connection.request("PUT", "/v1/artifacts", body=body, headers=self._headers)
                _artifact_id(connection.getresponse())
        finally:
            connection.close()


def _artifact_id(answer: http.client.HTTPResponse) -> str:
    body = answer.read()
    if answer.status != 201:
        raise RuntimeError(f"{answer.status}: {body[:500]!r}")
    return json.loads(body)["artifact_id"]


class Bench:
    """A running stack, and plain GridFS on its mongod."""

    def __init__(self, stack: BenchStack) -> None:
        for name in _SERVICES:
            stack.service(name)
        self.stack = stack
        self.client = Client(stack.port, stack.login())
        self.mongo: MongoClient[dict[str, Any]] = MongoClient(stack.mongo.url, w="majority", journal=True)
        database = self.mongo.get_database("raw", write_concern=WriteConcern("majority", j=True))
        self.bucket = gridfs.GridFSBucket(database)

    def clear(self) -> None:
        """Forget the bytes of both sides: a bench that ran for long would fill the disk."""
        for database in ("raw", "wherry"):
            for collection in ("fs.files", "fs.chunks"):
                self.mongo[database][collection].delete_many({})

    def blobs(self, size: int, pairs: int) -> dict[str, Any]:
        """Measure single transfers of *size* bytes in *pairs* interleaved pairs, after one that warms up."""
        rows: list[dict[str, float]] = []
        for pair in range(pairs + 1):
            blocks = _blocks(size)
            row: dict[str, float] = {}
            # Whoever comes second finds warmer or busier caches: they take turns at that.
            sides = [self._through_gateway, self._raw]
            for side in sides if pair % 2 else reversed(sides):
                row |= side(blocks, size)
            self.clear()
            if pair:
                rows.append(row)
                print({name: round(value / MIB) for name, value in row.items()}, flush=True)
        return _summary(rows, [("upload", "up", "raw_up"), ("download", "down", "raw_down")]) | {"bytes": size}

    def _through_gateway(self, blocks: Sequence[bytes], size: int) -> dict[str, float]:
        artifact, up_s = _timed(lambda: self.client.put(blocks))
        got, down_s = _timed(lambda: self.client.get(artifact))
        assert got == size
        return {"up": size / up_s, "down": size / down_s}

    def _raw(self, blocks: Sequence[bytes], size: int) -> dict[str, float]:
        body = b"".join(blocks)
        file_id, up_s = _timed(lambda: self.bucket.upload_from_stream("raw", body))

        def read() -> int:
            stream, got = self.bucket.open_download_stream(file_id), 0
            while piece := stream.read(MIB):
                got += len(piece)
            return got

        got, down_s = _timed(read)
        assert got == size
        return {"raw_up": size / up_s, "raw_down": size / down_s}

    def together(self, size: int, pairs: int, transfers: int = 8) -> dict[str, Any]:
        """Measure *transfers* at once beside one alone, of the same bytes in sum."""
        rows: list[dict[str, float]] = []
        with ThreadPoolExecutor(transfers) as pool:
            for pair in range(pairs + 1):
                parts = [_blocks(size // transfers) for _ in range(transfers)]
                whole = _blocks(size // transfers * transfers)
                one, one_s = _timed(lambda blocks=whole: self.client.put(blocks))
                many, many_s = _timed(lambda blocks=parts: list(pool.map(self.client.put, blocks)))
                _, one_down_s = _timed(lambda artifact=one: self.client.get(artifact))
                _, many_down_s = _timed(lambda artifacts=many: list(pool.map(self.client.get, artifacts)))
                self.clear()
                if pair:
                    rows.append({
                        "up": size / many_s, "one_up": size / one_s,
                        "down": size / many_down_s, "one_down": size / one_down_s,
                    })  # fmt: skip
        return _summary(rows, [("upload", "up", "one_up"), ("download", "down", "one_down")]) | {
            "transfers": transfers,
            "bytes": size,
            "peak_mib": self.peaks(),
        }

    def small(self, objects: int, pairs: int, clients: int = 64) -> dict[str, Any]:
        """Measure artifacts of 4 KiB a second, *clients* at once on each side."""
        rows: list[dict[str, float]] = []
        per_client = math.ceil(objects / clients)
        with ThreadPoolExecutor(clients) as pool:
            for pair in range(pairs + 1):
                row: dict[str, float] = {}
                for name, act in (("per_s", self.client.put_many), ("raw_per_s", self._raw_many)):
                    bodies = [[os.urandom(SMALL_BYTES) for _ in range(per_client)] for _ in range(clients)]
                    _, seconds = _timed(lambda do=act, given=bodies: list(pool.map(do, given)))
                    row[name] = per_client * clients / seconds
                self.clear()
                if pair:
                    rows.append(row)
        return _summary(rows, [("small", "per_s", "raw_per_s")]) | {"objects": per_client * clients, "clients": clients}

    def _raw_many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self.bucket.upload_from_stream("raw", body)

    def memory(self, size: int) -> dict[str, Any]:
        """Stream *size* bytes up and down and return each service's peak of resident memory, in MiB."""
        block = os.urandom(MIB)
        blocks = [block] * (size // MIB)  # the same bytes again and again: they are not held twice here either
        before = {name: self._resident(name, "VmRSS") for name in _SERVICES}
        artifact = self.client.put(blocks)
        assert self.client.get(artifact) == size
        return {"bytes": size, "before_mib": before, "peak_mib": self.peaks()}

    def peaks(self) -> dict[str, float]:
        """Return what each service's resident memory ever was at most, in MiB."""
        return {name: self._resident(name, "VmHWM") for name in _SERVICES}

    def _resident(self, service: str, field: str) -> float:
        pid = self.stack.processes[f"services.{service}"].pid
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024, 1)


def _blocks(size: int) -> list[bytes]:
    return [os.urandom(min(MIB, size - at)) for at in range(0, size, MIB)]


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return act(), time.perf_counter() - started


def _summary(rows: Sequence[dict[str, float]], ratios: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    summary: dict[str, Any] = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    for name, ours, theirs in ratios:
        found = [row[ours] / row[theirs] for row in rows]
        summary[f"{name}_ratio"] = statistics.median(found)
        summary[f"{name}_spread"] = [min(found), max(found)]
    return summary | {"pairs": len(rows)}


def measure(size: int, pairs: int, stream: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure blobs of *size* bytes, many at once, small ones, and memory over a stream of *stream* bytes."""
    measurements: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "blobs": lambda bench: bench.blobs(size, pairs),
        "together": lambda bench: bench.together(size, max(3, pairs // 2)),
        "small": lambda bench: bench.small(8192, max(3, pairs // 2)),
        "memory": lambda bench: bench.memory(stream),
    }
    found: dict[str, Any] = {}
    for name, act in measurements.items():
        if not only or name in only:
            with BenchStack([]) as stack:  # each its own: what one needed is not another's memory
                bench = Bench(stack)
                found[name] = act(bench)
                bench.mongo.close()
            print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    """Run the measurements and print them; ``make bench`` writes them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="blobs, together, small, memory; default: all")
    parser.add_argument("--mib", type=int, default=1024, help="size of a sample")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--stream-mib", type=int, default=3072)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    found = {"machine": machine()} | measure(args.mib * MIB, args.pairs, args.stream_mib * MIB, args.only)
    if args.out:
        dump(found, args.out)


if __name__ == "__main__":
    main()
