"""An agent as a process of its own, on a real broker, storage and runtimes; the test plays the scheduler."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from infra.local.servers import NatsServer
from shared.blobs import BlobClient
from shared.bus import Bus, Record, job_filter
from shared.channels import HEARTBEAT, JOB_CHANGED, OUTPUT, WAKE, Service
from shared.events import Event, JobChanged, LogLine, OutputBatch
from shared.fleet import Assignment, DesiredState, Heartbeat, Order, Wake
from shared.ids import new_id
from shared.job import Attempt, BlobRef, Job, Owner
from shared.manifest import Manifest
from shared.permissions import OPERATOR, accounts_config
from shared.requests.blobs import BlobRead, BlobScope
from shared.spec import JobSpec
from shared.states import AttemptState, JobState
from tests import nursery
from tests.integration.conftest import NODES, PASSWORDS, StorageProcess, set_up
from tests.nursery import Nursling

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = "wherry/busybox"
OWNER = Owner(id="u1", name="ann")


def zip_of(files: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


async def one(body: bytes) -> AsyncIterator[bytes]:
    yield body


@dataclass
class Head:
    """The scheduler's side of one node: what it wants, and what it heard."""

    stack: Any
    bus: Bus  # as the scheduler
    ears: Bus
    gateway: BlobClient
    want: dict[str, Assignment] = field(default_factory=dict)
    beats: list[Heartbeat] = field(default_factory=list)
    reports: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # job, name, data
    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    output_at: dict[str, float] = field(default_factory=dict)  # of the first batch
    batches: list[tuple[str, OutputBatch]] = field(default_factory=list)
    says: dict[str, Any] = field(default_factory=dict)  # of the answer to a heartbeat, over what it says else
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def answer(self, _: dict[str, str], beat: Heartbeat) -> DesiredState:
        self.beats.append(beat)
        await self.tell()
        answer: dict[str, Any] = {"epoch": 1, "interval_s": 0.5, "assignments": tuple(self.want.values())}
        return DesiredState(**(answer | self.says))

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, true: Callable[[], Any], timeout_s: float = 90) -> Any:
        async with self.changed:
            async with asyncio.timeout(timeout_s):
                while not (found := true()):
                    await self.changed.wait()
        return found

    async def watch(self) -> None:
        async for batch in self.bus.follow("WHERRY_JOBS", ["wherry.attempt.>"], start_seq=1):
            for message in batch:
                _, _, node, job_id, name = message.subject.split(".")
                assert node == "n1"
                if name == "finished":
                    await self.catch_up()
                self.reports.append((job_id, name, json.loads(message.body)["data"]))
            await self.tell()

    async def catch_up(self) -> None:
        """Return once all output is heard that was sent until now: it comes another way than reports do."""
        mark = new_id("j")
        while mark not in self.lines:
            await self.ears.publish(OUTPUT, OutputBatch(), node_id="n1", job_id=mark, attempt="1")
            with contextlib.suppress(TimeoutError):
                await self.until(lambda: mark in self.lines, 5)

    async def hear(self, message: Any) -> None:
        job_id = message.params["job_id"]
        self.output_at.setdefault(job_id, time.monotonic())
        self.batches.append((job_id, message.data))
        self.lines.setdefault(job_id, []).extend(message.data.lines)
        await self.tell()

    def told(self, job_id: str, name: str) -> dict[str, Any] | None:
        return next((data for job, what, data in self.reports if (job, what) == (job_id, name)), None)

    def text(self, job_id: str) -> list[str]:
        return [line.x for line in sorted(self.lines.get(job_id, []), key=lambda line: line.n)]

    async def upload(self, body: bytes) -> str:
        committed = await self.gateway.upload(one(body), BlobScope(owner_id=OWNER.id, name="source.zip"))
        assert committed.artifact_id
        return committed.artifact_id

    async def place(self, attempt: int = 1, job_id: str | None = None, **spec: Any) -> Order:
        """Record that a job is placed on the node."""
        job_id = job_id or new_id("j")
        attempts = (Attempt(number=attempt, node="n1", state=AttemptState.PLACED, placed_at=NOW),)
        job = Job(
            id=job_id, owner=OWNER, spec=JobSpec(**spec), state=JobState.PLACED, created_at=NOW, updated_at=NOW,
            attempt=attempt, attempts=attempts,
        )  # fmt: skip
        last = await self.bus.last("WHERRY_JOBS", job_filter(job_id))
        event = Event[JobChanged](
            id=new_id("e"), source="/wherry/scheduler", type="io.wherry.job.placed.v1", time=NOW, subject=job_id,
            data=JobChanged(job=job),
        )  # fmt: skip
        params = {"owner": OWNER.id, "job_id": job_id, "event": "placed"}
        stored = await self.bus.record(
            Record(JOB_CHANGED, params, event, (job_filter(job_id), last.seq if last else 0))
        )
        return Order(job_id=job_id, owner_id=OWNER.id, attempt=attempt, spec=job.spec, seq=stored.seq)

    async def say(self, order: Order, action: Any, **more: Any) -> None:
        self.want[order.job_id] = Assignment(
            job_id=order.job_id, attempt=order.attempt, action=action,
            order=order if action == "start" else None, **more,
        )  # fmt: skip
        await self.bus.publish(WAKE, Wake(), node_id="n1")

    async def run(self, timeout_s: float = 120, **spec: Any) -> tuple[Order, dict[str, Any]]:
        """Run a job to its end, and return its last report."""
        order = await self.place(**spec)
        await self.say(order, "start")
        finished = await self.until(lambda: self.told(order.job_id, "finished"), timeout_s)
        return order, finished

    async def forget(self, order: Order, agent: "AgentProcess") -> None:
        """Have an attempt removed, and wait until nothing of it is left."""
        await self.say(order, "forget")
        await self.until(lambda: order.job_id not in {held.job_id for held in self.beats[-1].attempts})
        async with asyncio.timeout(180):
            while any(order.job_id in name for name in await asyncio.to_thread(agent.left_behind)):
                await asyncio.sleep(0.2)  # the engine tells nobody, and to be asked keeps it from removing anything
        del self.want[order.job_id]

    async def manifest(self, finished: dict[str, Any]) -> Manifest:
        return Manifest.from_bytes(await self.read(BlobRef(**finished["outputs"]["manifest"])))

    async def read(self, blob: BlobRef) -> bytes:
        return await whole(self.gateway.read(BlobRead(sha256=blob.sha256)))


@dataclass
class AgentProcess:
    """``python -m services.node_agent`` with a data folder that outlives it."""

    stack: Any
    data: Path
    stack_id: str
    env: dict[str, str] = field(default_factory=dict)
    process: Nursling | None = None

    async def start(self, **env: str) -> None:
        settings = self.stack.settings("node-n1")
        full = os.environ | {
            "WHERRY_NATS_URL": settings.nats_url,
            "WHERRY_NATS_USER": settings.nats_user,
            "WHERRY_NATS_PASSWORD": settings.nats_password.get_secret_value(),
            "WHERRY_NODE_ID": "n1",
            "WHERRY_WORKER_NAME": "first",
            "WHERRY_TAGS": "here,there",
            "WHERRY_RUNTIMES": "docker,process",
            "WHERRY_CAPACITY": "cpus=1.5",
            "WHERRY_STACK_ID": self.stack_id,
            "WHERRY_DATA_DIR": str(self.data),
            **self.env,
            **env,
        }
        log = self.data.parent / "agent.log"
        self.process = await asyncio.to_thread(nursery.start, "services.node_agent", full, log)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.ended()

    def left_behind(self) -> list[str]:
        """Return what the agent still has of attempts: containers, volumes, networks, folders."""
        label = f"label=wherry.stack={self.stack_id}"
        containers = docker("ps", "-a", "--format", "{{.Names}}", "--filter", label)
        volumes = docker("volume", "ls", "-q", "--filter", label)
        networks = docker("network", "ls", "--format", "{{.Name}}", "--filter", label)
        folders = [path.name for name in ("attempts", "processes") for path in (self.data / name).glob("*")]
        return [*containers.split(), *volumes.split(), *networks.split(), *folders]

    def log(self) -> str:
        return (self.data.parent / "agent.log").read_text()

    def peak_mb(self) -> float:
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6


def docker(*words: str, check: bool = True) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=check).stdout.strip()


@contextlib.asynccontextmanager
async def head_of(storage: Any) -> AsyncIterator[Head]:
    """A scheduler of one's own, that hears everything."""
    async with (
        storage.bus(Service.SCHEDULER) as bus,
        storage.bus(Service.GATEWAY, "g1") as gateway,
        Bus.connect(storage.settings(OPERATOR), Service.STORAGE, purpose="ears") as ears,
    ):
        blobs = BlobClient(gateway, "gateway", "g1")
        head = Head(storage, bus, ears, blobs)
        await bus.serve(HEARTBEAT, head.answer, queue=None)
        await ears.listen(OUTPUT, head.hear)
        watching = asyncio.create_task(head.watch())
        try:
            yield head
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


@contextlib.asynccontextmanager
async def agent_of(storage: Any, head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    """A started agent, known to *head*; whatever happens, nothing of it is left."""
    agent = AgentProcess(storage, folder / "data", new_id("t"))
    agent.data.mkdir(parents=True)
    head.want.clear()
    head.says.clear()
    head.beats.clear()
    await agent.start()
    try:
        await head.until(lambda: head.beats)
        yield agent
    finally:
        await agent.stop(signal.SIGKILL)
        print(agent.log()[-6000:])
        clean_up(agent.stack_id)


@contextlib.asynccontextmanager
async def storage_of(mongo_url: str, folder: Path) -> AsyncIterator[StorageProcess]:
    """A broker with accounts and streams, and a storage: for all tests of a module."""
    with (
        NatsServer(folder / "nats", accounts_config(PASSWORDS, NODES), sync_always=True) as nats,
        MongoClient[dict[str, Any]](mongo_url) as client,
    ):
        storage = StorageProcess(nats, mongo_url, client[new_id("test")], folder / "storage.log")
        async with Bus.connect(storage.settings(OPERATOR), Service.STORAGE, purpose="set-up") as operator:
            await set_up(operator)
        await storage.start()
        try:
            await storage.ready()
            yield storage
        finally:
            await storage.stop()
            client.drop_database(storage.database.name)


def clean_up(stack_id: str) -> None:
    """Remove what a stack has on the engine; again where the engine is still removing a user of it."""
    label, give_up_at = f"label=wherry.stack={stack_id}", time.monotonic() + 120
    while True:
        containers = docker("ps", "-aq", "--filter", label).split()
        volumes = docker("volume", "ls", "-q", "--filter", label).split()
        networks = docker("network", "ls", "-q", "--filter", label).split()
        if not containers and not volumes and not networks:
            return
        assert time.monotonic() < give_up_at, f"still there: {containers} {volumes} {networks}"
        for words, names in (("rm -fv", containers), ("volume rm -f", volumes), ("network rm", networks)):
            if names:
                docker(*words.split(), *names, check=False)


def busybox() -> None:
    """Build the test image from Debian's busybox, where it is missing."""
    subprocess.run([ROOT / "infra/docker/build-busybox.sh"], check=True, stdout=subprocess.DEVNULL)
