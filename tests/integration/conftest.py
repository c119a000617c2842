"""Real servers for integration tests: mongod once for all, a database for each test, NATS and storage where wanted."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

from infra.bootstrap import bootstrap
from infra.local.servers import MongoServer, NatsServer
from services.storage.app import run
from services.storage.settings import StorageSettings
from shared.bus import Bus, Record, job_filter
from shared.channels import DLQ, FLEET, JOB_CHANGED, JOBS, LOGS, NOTIFY, PING, Service
from shared.errors import NotFound
from shared.events import Event, JobChanged
from shared.ids import new_id
from shared.job import Attempt, Job, Owner
from shared.model import Empty
from shared.permissions import OPERATOR, accounts_config, node_user, users
from shared.settings import ServiceSettings
from shared.spec import JobSpec
from shared.states import AttemptState, JobState
from tests import nursery
from tests.conftest import passing_folder
from tests.integration.gateway_stack import ADMIN, GatewayStack, Scheduler
from tests.integration.gateway_stack import PASSWORD as PERSONS_PASSWORD
from tests.nursery import Nursling

NODES = ("n1", "n2")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(NODES)}


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a replica set of one. WHERRY_TEST_MONGO_URL names one that runs already."""
    if url := os.environ.get("WHERRY_TEST_MONGO_URL"):
        yield url
        return
    with (
        passing_folder(tmp_path_factory, "mongo") as folder,
        MongoServer(folder, cache_gb=0.25, oplog_mb=256) as server,
    ):
        with MongoClient[dict[str, Any]](server.url) as client:  # what a test drops is room for the next at once
            client.admin.command({"setParameter": 1, "minSnapshotHistoryWindowInSeconds": 1})
        yield server.url


@pytest.fixture
def mongo_database(mongo_server: str) -> Iterator[Database[dict[str, Any]]]:
    """A database of this test's own, gone after it."""
    with MongoClient[dict[str, Any]](mongo_server) as client:
        name = new_id("test")
        yield client[name]
        client.drop_database(name)


@dataclass
class StorageStack:
    """NATS with accounts and streams, a database, and a storage in this process."""

    nats: NatsServer
    mongo_url: str
    database: Database[dict[str, Any]]
    log: Path
    extra: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def settings(self, user: str) -> ServiceSettings:
        return ServiceSettings(nats_url=self.nats.url, nats_user=user, nats_password=SecretStr(PASSWORDS[user]))

    @asynccontextmanager
    async def bus(self, service: Service, peer: str | None = None) -> AsyncIterator[Bus]:
        user = node_user(peer) if service is Service.NODE_AGENT and peer else service.value
        async with Bus.connect(self.settings(user), service, peer=peer) as bus:
            yield bus

    def environment(self) -> dict[str, str]:
        return {
            "WHERRY_NATS_URL": self.nats.url,
            "WHERRY_NATS_USER": "storage",
            "WHERRY_NATS_PASSWORD": PASSWORDS["storage"],
            "WHERRY_MONGO_URL": self.mongo_url,
            "WHERRY_MONGO_DATABASE": self.database.name,
            "WHERRY_ADMIN_PASSWORD": "the admin's password",
            **self.extra,
        }

    async def start(self) -> None:
        fields = {name.removeprefix("WHERRY_").lower(): value for name, value in self.environment().items()}
        self.task = asyncio.create_task(run(StorageSettings.model_validate(fields)))

    async def ready(self) -> None:
        async with self.bus(Service.GATEWAY, "g1") as bus:
            await bus.ask(PING, Empty(), retry_s=150)

    async def stop(self) -> None:
        assert self.task
        self.task.cancel()
        await asyncio.wait([self.task])

    async def record(self, job: Job, event: str) -> int:
        """Write an event as the scheduler does, and return its sequence."""
        async with self.bus(Service.SCHEDULER) as bus:
            last = await bus.last(JOBS, job_filter(job.id))
            envelope = Event[JobChanged](
                id=new_id("e"), source="/wherry/scheduler", type=f"io.wherry.job.{event}.v1", time=NOW, subject=job.id,
                data=JobChanged(job=job),
            )  # fmt: skip
            params = {"owner": job.owner.id, "job_id": job.id, "event": event}
            expect = (job_filter(job.id), last.seq if last else 0)
            return (await bus.record(Record(JOB_CHANGED, params, envelope, expect))).seq

    @staticmethod
    def job(job_id: str = "j1", node: str | None = "n1", *, owner: str = "u1", **fields: Any) -> Job:
        """Return a job whose first attempt is on *node*."""
        attempts = (Attempt(number=1, node=node, state=AttemptState.RUNNING, placed_at=NOW),) if node else ()
        whole: dict[str, Any] = {
            "spec": JobSpec(image="busybox"), "state": JobState.RUNNING if node else JobState.QUEUED, "created_at": NOW,
            "updated_at": NOW, "attempt": len(attempts), "attempts": attempts,
        }  # fmt: skip
        return Job(id=job_id, owner=Owner(id=owner, name=owner), **whole | fields)


@dataclass
class StorageProcess(StorageStack):
    """The same with ``python -m services.storage`` in a process of its own, which can be killed."""

    process: Nursling | None = None

    async def start(self) -> None:
        env = os.environ | self.environment()
        self.process = await asyncio.to_thread(nursery.start, "services.storage", env, self.log)

    async def stop(self) -> None:
        await self.end(signal.SIGTERM)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.ended()

    def peak_mb(self) -> float:
        """Peak resident memory (VmHWM) of the process, in MB."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6


@pytest.fixture(scope="session")
def nats_with_accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A broker with the generated accounts. Writes are not fsynced: these tests cut no power."""
    accounts = accounts_config(PASSWORDS, NODES)
    with (
        passing_folder(tmp_path_factory, "nats") as folder,
        NatsServer(folder, accounts, sync_always=False) as server,
    ):
        yield server


async def set_up(operator: Bus) -> None:
    """Make all streams and consumers; those of jobs, nodes, logs, notifications and dead letters empty."""
    emptied = (JOBS, FLEET, LOGS, NOTIFY, DLQ)
    for name in emptied:
        with suppress(NotFound):
            await operator.api(f"STREAM.DELETE.{name}", {})
    await bootstrap(operator, recreate=emptied)


@pytest.fixture
async def storage(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> AsyncIterator[StorageStack]:
    """A running storage, fresh streams and a fresh database."""
    async with running(StorageStack(nats_with_accounts, mongo_server, mongo_database, tmp_path / "log")) as stack:
        yield stack


@pytest.fixture
async def storage_process(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> AsyncIterator[StorageStack]:
    """The same, in a process of its own."""
    async with running(StorageProcess(nats_with_accounts, mongo_server, mongo_database, tmp_path / "log")) as stack:
        yield stack


@asynccontextmanager
async def running(stack: StorageStack) -> AsyncIterator[StorageStack]:
    async with Bus.connect(stack.settings(OPERATOR), Service.STORAGE, purpose="set-up") as operator:
        await set_up(operator)
    await stack.start()
    try:
        await stack.ready()
        yield stack
    finally:
        await stack.stop()


# --- who is at a gateway: the `stack` is the file's own ---------------------------------------------------------------


@pytest.fixture(scope="module")
def admin(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        for user in ("anna", "bert"):
            client.post("/users", json={"name": user, "password": PERSONS_PASSWORD}).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("anna", PERSONS_PASSWORD)) as client:
        yield client


@pytest.fixture(scope="module")
def bert(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("bert", PERSONS_PASSWORD)) as client:
        yield client


@pytest.fixture
async def scheduler(stack: GatewayStack) -> AsyncIterator[Scheduler]:
    """Whoever plays the scheduler."""
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        yield Scheduler(bus)
