"""Real servers for integration tests: mongod once for all, a database for each test, NATS and storage where wanted."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

from infra.local.servers import MongoServer, NatsServer
from shared.bus import Bus
from shared.channels import PING, Service
from shared.ids import new_id
from shared.permissions import OPERATOR, accounts_config, node_user, users
from shared.requests import Empty
from shared.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
NODES = ("n1", "n2")
PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(NODES)}

STREAMS: dict[str, dict[str, Any]] = {
    "WHERRY_JOBS": {
        "subjects": ["wherry.job.>", "wherry.attempt.>", "wherry.request.>"],
        "republish": {"src": "wherry.job.>", "dest": "wherry.feed.>"},
    },
    "WHERRY_LOGS": {"subjects": ["wherry.log.>"], "storage": "memory", "allow_atomic": False},
    "WHERRY_NOTIFY": {"subjects": ["wherry.delivery.>"]},
}
DURABLES = (("WHERRY_JOBS", "storage"), ("WHERRY_LOGS", "storage-log"), ("WHERRY_NOTIFY", "storage-delivery"))
FILTERS = {"storage": {"filter_subject": "wherry.job.>"}}


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a replica set of one. WHERRY_TEST_MONGO_URL names one that runs already."""
    if url := os.environ.get("WHERRY_TEST_MONGO_URL"):
        yield url
        return
    with MongoServer(tmp_path_factory.mktemp("mongo"), cache_gb=0.25, oplog_mb=256) as server:
        yield server.url


@pytest.fixture
def mongo_database(mongo_server: str) -> Iterator[Database[dict[str, Any]]]:
    """A database of this test's own, gone after it."""
    with MongoClient[dict[str, Any]](mongo_server) as client:
        name = new_id("test")
        yield client[name]
        client.drop_database(name)


@dataclass
class StorageProcess:
    """NATS with accounts and streams, a database, and ``python -m services.storage`` in a process of its own."""

    nats: NatsServer
    mongo_url: str
    database: Database[dict[str, Any]]
    log: Path
    extra: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    def settings(self, user: str) -> ServiceSettings:
        return ServiceSettings(nats_url=self.nats.url, nats_user=user, nats_password=SecretStr(PASSWORDS[user]))

    @asynccontextmanager
    async def bus(self, service: Service, peer: str | None = None) -> AsyncIterator[Bus]:
        user = node_user(peer) if service is Service.NODE_AGENT and peer else service.value
        async with Bus.connect(self.settings(user), service, peer=peer) as bus:
            yield bus

    async def start(self) -> None:
        env = os.environ | {
            "WHERRY_NATS_URL": self.nats.url,
            "WHERRY_NATS_USER": "storage",
            "WHERRY_NATS_PASSWORD": PASSWORDS["storage"],
            "WHERRY_MONGO_URL": self.mongo_url,
            "WHERRY_MONGO_DATABASE": self.database.name,
            "WHERRY_ADMIN_PASSWORD": "the admin's password",
            **self.extra,
        }
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.storage", cwd=ROOT, env=env, stderr=log
            )

    async def ready(self) -> None:
        async with self.bus(Service.GATEWAY, "g1") as bus:
            await bus.ask(PING, Empty(), retry_s=20)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()

    def peak_mb(self) -> float:
        """Peak resident memory (VmHWM) of the process, in MB."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6


@pytest.fixture
def nats_with_accounts(tmp_path: Path) -> Iterator[NatsServer]:
    """A broker with the generated accounts, without streams. Writes are not fsynced: these tests cut no power."""
    with NatsServer(tmp_path / "nats", accounts_config(PASSWORDS, NODES), sync_always=False) as server:
        yield server


async def set_up(operator: Bus) -> None:
    whole = {"storage": "file", "allow_atomic": True, "allow_direct": True}
    for name, config in STREAMS.items():
        await operator.api(f"STREAM.CREATE.{name}", {"name": name, **whole, **config})
    for stream, durable in DURABLES:
        config = {"durable_name": durable, "ack_policy": "explicit", "ack_wait": 30_000_000_000}
        call = f"CONSUMER.DURABLE.CREATE.{stream}.{durable}"
        await operator.api(call, {"stream_name": stream, "config": config | FILTERS.get(durable, {})})


@pytest.fixture
async def storage(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> AsyncIterator[StorageProcess]:
    """A running storage."""
    stack = StorageProcess(nats_with_accounts, mongo_server, mongo_database, tmp_path / "storage.log")
    async with Bus.connect(stack.settings(OPERATOR), Service.STORAGE, purpose="set-up") as operator:
        await set_up(operator)
    await stack.start()
    try:
        await stack.ready()
        yield stack
    finally:
        await stack.stop()
