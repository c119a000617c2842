"""Uploads that are cut at random points, and what must be true afterwards.

python -m tests.chaos.uploads [--uploads N] [--seed S]
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import random
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient

from shared.requests.blobs import CHUNK_BYTES
from tests.integration.gateway_stack import ADMIN, SPEC, GatewayStack, until

WAYS = ("put", "form", "tus")
CUTS = ("client", "gateway", "nats", "storage", "mongo")
AT_ONCE = 4
_PIECE = 64 * 1024
_ANSWER_S = 120.0
_GIVE_UP_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One upload: which way it goes, what is cut after how many bytes, and whether its sender comes back."""

    number: int
    way: str
    cut: str
    after: int
    comes_back: bool
    body: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class Found:
    """What became of all uploads. `problems` is empty if all is well."""

    accepted: dict[int, str] = field(default_factory=dict[int, str])  # by plan: the digest that was promised
    cuts: Counter[str] = field(default_factory=Counter[str])
    listed: int = 0
    collected_chunks: int = 0
    problems: list[str] = field(default_factory=list[str])


def plans(count: int, rng: random.Random) -> list[Plan]:
    """Return *count* uploads: every way is cut by everything, some bytes are sent more than once."""
    bodies: list[bytes] = []
    found: list[Plan] = []
    pairs = [(way, cut) for cut in CUTS for way in WAYS]
    rng.shuffle(pairs)
    for number in range(count):
        way, cut = pairs[number % len(pairs)]
        body = _body(way, rng)
        if way != "form" and bodies and rng.random() < 0.2:
            body = rng.choice(bodies)
        bodies.append(body)
        found.append(Plan(number, way, cut, rng.randint(1, len(body)), rng.random() < 0.6, body))
    return found


def _body(way: str, rng: random.Random) -> bytes:
    size = rng.choice((rng.randint(1, 5000), rng.randint(1, 3 * CHUNK_BYTES), rng.randint(1, 12) * CHUNK_BYTES))
    data = rng.randbytes(size)
    if way != "form":
        return data
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.bin", data)
    return out.getvalue()


class Uploader:
    """Sends uploads to a stack and cuts them."""

    def __init__(self, stack: GatewayStack, found: Found) -> None:
        self._stack = stack
        self._found = found
        self._token = stack.login(*ADMIN)
        self._turns = {cut: asyncio.Lock() for cut in CUTS}
        self._paths: dict[int, str] = {}

    async def carry_out(self, plan: Plan) -> None:
        """Send an upload as planned; note what was promised."""
        promised = await self._send(plan)
        if plan.comes_back and promised is None:
            promised = await self._again(plan)
        if promised is not None:
            self._found.accepted[plan.number] = promised
            if promised != plan.sha256:
                self._found.problems.append(f"upload {plan.number} ({plan.way}) was promised as {promised}")

    async def _again(self, plan: Plan) -> str | None:
        end = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < end:
            await asyncio.sleep(0.3)
            with contextlib.suppress(httpx.TransportError):
                if (promised := await self._once(plan)) is not None:
                    return promised
        self._found.problems.append(f"upload {plan.number} ({plan.way}, {plan.cut}) did not get through")
        return None

    async def _once(self, plan: Plan) -> str | None:
        """Send all of it (or the rest) by an ordinary client; return the promised digest if there is one."""
        async with self._client() as http:
            if plan.way == "put":
                answer = await http.put("/artifacts", content=plan.body)
                return answer.json()["sha256"] if answer.status_code == 201 else None
            if plan.way == "form":
                files = {"spec": (None, _spec(), "application/json"), "source": ("s.zip", plan.body, "application/zip")}
                answer = await http.post("/jobs", files=files, headers={"Idempotency-Key": f"key-{plan.number}"})
                return plan.sha256 if answer.status_code == 202 else None
            return await self._resumed(http, plan)

    async def _resumed(self, http: httpx.AsyncClient, plan: Plan) -> str | None:
        path = await self._tus_path(http, plan)
        told = await http.head(path, headers=_TUS) if path else None
        if path is None or told is None or told.status_code != 200:
            return None
        if "wherry-sha256" in told.headers:
            return told.headers["wherry-sha256"]
        at = int(told.headers["upload-offset"])
        headers = _TUS | {"Upload-Offset": str(at), "Content-Type": _OCTETS}
        answer = await http.patch(path, content=plan.body[at:], headers=headers)
        return answer.headers.get("wherry-sha256") if answer.status_code == 204 else None

    async def _tus_path(self, http: httpx.AsyncClient, plan: Plan) -> str | None:
        if plan.number not in self._paths:
            name = base64.b64encode(f"f{plan.number}".encode()).decode()
            headers = _TUS | {"Upload-Length": str(len(plan.body)), "Upload-Metadata": f"filename {name}"}
            answer = await http.post("/uploads", headers=headers)
            if answer.status_code != 201:
                return None
            self._paths[plan.number] = answer.headers["location"].removeprefix("/v1")
        return self._paths[plan.number]

    async def _send(self, plan: Plan) -> str | None:
        """Send it byte by byte as planned, with the cut in the middle."""
        head, body, before = await self._request(plan)
        left = [plan]  # until it is cut: also where something else has broken the connection before
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._sent(plan, head, body, before + plan.after, left)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            return None
        finally:
            if left:
                await self._cut(plan)

    async def _sent(self, plan: Plan, head: bytes, body: bytes, cut_at: int, left: list[Plan]) -> str | None:
        reader, writer = await self._connected()
        try:
            writer.write(head)
            at = 0
            while at < len(body):
                end = cut_at if at < cut_at < at + _PIECE else at + _PIECE
                writer.write(body[at:end])
                await writer.drain()
                at = min(end, len(body))
                if at >= cut_at and left:
                    left.clear()
                    if await self._cut(plan):
                        return None
            return _promised(plan, await _answer(reader))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", self._stack.port)
            await asyncio.sleep(0.1)

    async def _cut(self, plan: Plan) -> bool:
        """Do what is planned; return whether the sender goes away."""
        self._found.cuts[f"{plan.way} {plan.cut}"] += 1
        if plan.cut == "client":
            return True
        async with self._turns[plan.cut]:
            await asyncio.to_thread(_FAULTS[plan.cut], self._stack)
        return False

    async def _request(self, plan: Plan) -> tuple[bytes, bytes, int]:
        """Return an upload's request: its head, its body, and how many bytes of that come before the file's."""
        lines = ["Host: x", f"Authorization: Bearer {self._token}", "Connection: close"]
        body, before, first = plan.body, 0, "PUT /v1/artifacts HTTP/1.1"
        if plan.way == "form":
            first = "POST /v1/jobs HTTP/1.1"
            lines += [f"Content-Type: multipart/form-data; boundary={_BOUNDARY}", f"Idempotency-Key: key-{plan.number}"]
            start = _form_start()
            body, before = start + plan.body + f"\r\n--{_BOUNDARY}--\r\n".encode(), len(start)
        elif plan.way == "tus":
            first = f"PATCH /v1{await self._tus_begun(plan)} HTTP/1.1"
            lines += ["Tus-Resumable: 1.0.0", "Upload-Offset: 0", f"Content-Type: {_OCTETS}"]
        lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([first, *lines, "", ""]).encode(), body, before

    async def _tus_begun(self, plan: Plan) -> str:
        async with self._client() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if path := await self._tus_path(http, plan):
                        return path
                await asyncio.sleep(0.3)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._token}"}
        return httpx.AsyncClient(base_url=f"{self._stack.url}/v1", headers=headers, timeout=_ANSWER_S)


_TUS, _OCTETS, _BOUNDARY = {"Tus-Resumable": "1.0.0"}, "application/offset+octet-stream", "a-boundary-of-ours"


def _spec() -> str:
    return json.dumps(SPEC)


def _form_start() -> bytes:
    return (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="spec"\r\nContent-Type: application/json\r\n\r\n'
        f'{_spec()}\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; name="source"; filename="s.zip"\r\n'
        "Content-Type: application/zip\r\n\r\n"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _promised(plan: Plan, answer: tuple[int, dict[str, str], bytes]) -> str | None:
    status, headers, body = answer
    if plan.way == "put" and status == 201:
        return json.loads(body)["sha256"]
    if plan.way == "form" and status == 202:
        return plan.sha256
    return headers.get("wherry-sha256") if plan.way == "tus" and status == 204 else None


def _kill_gateway(stack: GatewayStack) -> None:
    stack.stop("services.gateway", signal.SIGKILL)
    stack.start_gateway()


def _kill_storage(stack: GatewayStack) -> None:
    stack.stop("services.storage", signal.SIGKILL)
    stack.start_storage()
    until(stack.is_ready, "storage is there again")


def _kill_nats(stack: GatewayStack) -> None:
    stack.nats.kill()
    stack.nats.start()
    until(stack.is_ready, "the broker is there again")


def _kill_mongo(stack: GatewayStack) -> None:
    stack.mongo.kill()
    stack.mongo.start()
    until(stack.is_ready, "the database is there again")


_FAULTS: dict[str, Callable[[GatewayStack], None]] = {
    "gateway": _kill_gateway, "storage": _kill_storage, "nats": _kill_nats, "mongo": _kill_mongo,
}  # fmt: skip


# --- what must be true afterwards -----------------------------------------------------------------------------------


def collect(stack: GatewayStack) -> None:
    """Let storage collect all that nobody goes on with, as if its time were over."""
    stack.stop("services.storage")
    log = stack.home / "services.storage.log"
    before = log.read_text().count("uploads_swept")
    stack.start_storage(WHERRY_UPLOAD_EXPIRY_H="0.000000001")
    until(lambda: log.read_text().count("uploads_swept") > before, "storage has swept", lambda: log.read_text()[-3000:])
    stack.stop("services.storage")
    stack.start_storage()
    until(stack.is_ready, "storage is there again")


def check(stack: GatewayStack, made: Sequence[Plan], found: Found) -> None:
    """Read all that is listed, and look at what is stored beside it."""
    known = {plan.sha256 for plan in made}
    with stack.client(stack.login(*ADMIN)) as http:
        listed = _listed(http)
        for one in listed:
            body = http.get(f"/artifacts/{one['artifact_id']}").content
            if hashlib.sha256(body).hexdigest() != one["sha256"] or len(body) != one["size"]:
                found.problems.append(f"artifact {one['artifact_id']} does not read back")
            if one["sha256"] not in known:
                found.problems.append(f"artifact {one['artifact_id']} is not what anybody sent whole")
    found.listed = len(listed)
    digests = {one["sha256"] for one in listed}
    for number, sha256 in found.accepted.items():
        if sha256 not in digests:
            found.problems.append(f"upload {number} was accepted and is not there")
    _check_store(stack, digests, found)


def _listed(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = http.get("/artifacts", params={"limit": 100} | ({"cursor": cursor} if cursor else {})).json()
        found += page["artifacts"]
        cursor = page["cursor"]
        if cursor is None:
            return found


def _check_store(stack: GatewayStack, digests: set[str], found: Found) -> None:
    with MongoClient[dict[str, Any]](stack.mongo.url) as client:
        database = client["wherry"]
        files = {one["_id"]: one for one in database["fs.files"].find()}
        stored = {one["metadata"]["sha256"] for one in files.values()}
        if unlisted := stored - digests:
            found.problems.append(f"{len(unlisted)} files are stored that nothing lists: {sorted(unlisted)[:3]}")
        counts = {one["_id"]: one["count"] for one in database["fs.chunks"].aggregate(_BY_FILE)}
        if loose := counts.keys() - files.keys():
            found.problems.append(f"chunks of {len(loose)} files that are not there: {list(loose)[:3]}")
        for file_id, file in files.items():
            if counts.get(file_id, 0) != -(-file["length"] // CHUNK_BYTES):
                found.problems.append(f"file {file_id} has {counts.get(file_id, 0)} chunks for {file['length']} bytes")
        if left := database["resumables"].count_documents({"state": {"$in": ["open", "sealed"]}}):
            found.problems.append(f"{left} uploads are still open")


_BY_FILE: list[dict[str, Any]] = [{"$group": {"_id": "$files_id", "count": {"$sum": 1}}}]


async def _supervise(stack: GatewayStack) -> None:
    """Start again what has ended by itself, as it asks to be where the broker went away while it was starting."""
    while True:
        for name, process in list(stack.processes.items()):
            if process.poll() is not None and name == "services.storage":
                stack.start_storage()
            elif process.poll() is not None and name == "services.gateway":
                stack.run(name, "gateway", **stack.gateway_env)
        await asyncio.sleep(0.3)


async def run(stack: GatewayStack, count: int, seed: int) -> Found:
    """Carry out *count* uploads on a running stack, collect, and return what was found."""
    found, made = Found(), plans(count, random.Random(seed))
    uploader, places = Uploader(stack, found), asyncio.Semaphore(AT_ONCE)

    done: list[Plan] = []

    async def one(plan: Plan) -> None:
        async with places:
            await uploader.carry_out(plan)
        done.append(plan)
        if len(done) % 10 == 0:
            print(f"{len(done)} of {count} uploads; {found.problems or 'no problems'}", flush=True)

    supervision = asyncio.create_task(_supervise(stack))
    try:
        await asyncio.gather(*(one(plan) for plan in made))
    finally:
        supervision.cancel()
    await asyncio.to_thread(until, stack.is_ready, "all are there")
    await asyncio.to_thread(collect, stack)
    await asyncio.to_thread(check, stack, made, found)
    return found


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Uploads that are cut at random points.")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="wherry-uploads-") as home, GatewayStack(Path(home)) as stack:
        began = time.monotonic()
        found = asyncio.run(run(stack, given.uploads, given.seed))
        took = time.monotonic() - began
    print(f"{given.uploads} uploads in {took:.0f} s: {len(found.accepted)} accepted, {found.listed} listed")
    print("cuts: " + ", ".join(f"{what} {count}" for what, count in sorted(found.cuts.items())))
    for problem in found.problems:
        print(f"PROBLEM {problem}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
