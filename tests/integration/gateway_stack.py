"""A gateway on real servers: NATS with the generated accounts, MongoDB and storage, each a process of its own."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from pymongo import MongoClient

from infra.local.ports import free_port
from infra.local.servers import MongoServer, NatsServer
from shared.bus import Bus, Record, job_filter
from shared.channels import JOB_CHANGED, Service
from shared.events import JobChanged
from shared.ids import new_id
from shared.job import Attempt, Job
from shared.permissions import accounts_config, users
from shared.settings import ServiceSettings
from shared.states import AttemptState, JobState
from tests import nursery

ROOT = Path(__file__).resolve().parents[2]
NODE, OTHER_NODE = "n1", "n2"
ADMIN = ("admin", "admin password 1")
PASSWORD = "a password of anna 1"  # and of everybody else
SPEC = {"name": "one", "image": "busybox", "command": ["true"]}


class GatewayStack:
    """Starts everything, and plays scheduler and node where a test needs one.

    With *mongo_url* it has a database of its own on a server that runs, and none of its own to kill.
    """

    def __init__(self, home: Path, *, mongo_url: str = "", **gateway_env: str) -> None:
        self.home = home
        self.passwords = {user.name: secrets.token_hex(8) for user in users([NODE, OTHER_NODE])}
        self.nats = NatsServer(home / "nats", accounts_config(self.passwords, [NODE, OTHER_NODE]))
        self.mongo = MongoServer(home / "mongo", cache_gb=0.25, oplog_mb=256)
        self.shared_mongo_url = mongo_url
        self.database = new_id("gateway") if mongo_url else "wherry"
        self.port = free_port()
        self.gateway_env = {
            "WHERRY_PORT": str(self.port), "WHERRY_GATEWAY_KEY": secrets.token_hex(32), "WHERRY_GATEWAY_ID": "gtest",
            **gateway_env,
        }  # fmt: skip
        self.processes: dict[str, nursery.Nursling] = {}

    def __enter__(self) -> Self:
        for part in ("nats", "mongo"):
            (self.home / part).mkdir(parents=True, exist_ok=True)
        try:
            self.nats.start()
            if not self.shared_mongo_url:
                self.mongo.start()
            env = self.environment("operator")
            subprocess.run(
                [sys.executable, "-m", "infra.bootstrap"], cwd=ROOT, env=env, capture_output=True, check=True
            )
            self.start_storage()
            self.start_gateway()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("services.gateway", "services.storage"):
            if name in self.processes:
                self.stop(name)
        if self.shared_mongo_url:
            with MongoClient[dict[str, Any]](self.shared_mongo_url) as client:
                client.drop_database(self.database)
        else:
            self.mongo.stop()
        self.nats.stop()

    @property
    def mongo_url(self) -> str:
        return self.shared_mongo_url or self.mongo.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, user: str, **env: str) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("WHERRY_")},
            "WHERRY_NATS_URL": self.nats.url, "WHERRY_NATS_USER": user,
            "WHERRY_NATS_PASSWORD": self.passwords[user], **env,
        }  # fmt: skip

    def run(self, module: str, user: str, **env: str) -> nursery.Nursling:
        log = self.home / f"{module}.log"
        self.processes[module] = nursery.start(module, self.environment(user, **env), log)
        return self.processes[module]

    def start_storage(self, **env: str) -> None:
        self.run(
            "services.storage", "storage", WHERRY_MONGO_URL=self.mongo_url, WHERRY_MONGO_DATABASE=self.database,
            WHERRY_ADMIN_USER=ADMIN[0], WHERRY_ADMIN_PASSWORD=ADMIN[1], WHERRY_ADMIN_EMAIL="admin@example.com", **env,
        )  # fmt: skip

    def start_gateway(self) -> None:
        self.run("services.gateway", "gateway", **self.gateway_env)
        until(self.is_ready, "the gateway is ready", lambda: (self.home / "services.gateway.log").read_text()[-3000:])

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, name: str, signum: int = signal.SIGTERM) -> int | None:
        process = self.processes.pop(name, None)
        if process is None:
            return None
        process.send_signal(signum)
        try:
            return process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(5)

    def is_kept(self, collection: str, key: str) -> bool:
        """Whether the database has a document: what is read from the log is known before."""
        with MongoClient[dict[str, Any]](self.mongo_url) as client:
            return client[self.database][collection].find_one({"_id": key}) is not None

    def peak_memory_mb(self, name: str) -> float:
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def login(self, user: str, password: str) -> str:
        answer = httpx.post(f"{self.url}/v1/login", auth=(user, password), timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["token"]

    def client(self, token: str | None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=60, **options)

    @asynccontextmanager
    async def bus(self, service: Service, user: str, peer: str | None = None) -> AsyncIterator[Bus]:
        settings = ServiceSettings(
            nats_url=self.nats.url,
            nats_user=user,
            nats_password=self.passwords[user],  # pyright: ignore[reportArgumentType]
        )
        async with Bus.connect(settings, service, peer=peer) as bus:
            yield bus


class Scheduler:
    """Moves jobs along as the scheduler does: one event each, the whole job in it, the last sequence expected."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def last(self, job_id: str) -> tuple[int, Job]:
        found = await self.bus.last("WHERRY_JOBS", job_filter(job_id))
        assert found is not None
        assert isinstance(found.data, JobChanged)
        return found.seq, found.data.job

    async def move(self, job_id: str, event: str, **changes: Any) -> int:
        seq, job = await self.last(job_id)
        state = {"pending": "queued", "cancelling": job.state, "requeued": "queued"}.get(event, event)
        moved = job.model_copy(update={"state": JobState(state), **changes})
        data = JobChanged(job=moved, epoch=1)
        told = self.bus.event(JOB_CHANGED, data, subject=job_id, event=event)
        params = {"owner": job.owner.id, "job_id": job_id, "event": event}
        stored = await self.bus.record(Record(JOB_CHANGED, params, told, (job_filter(job_id), seq)))
        return stored.seq

    async def run(self, job_id: str, attempt: int = 1) -> None:
        _, job = await self.last(job_id)
        one = Attempt(number=attempt, node=NODE, state=AttemptState.RUNNING, placed_at=job.created_at)
        await self.move(job_id, "placed", attempt=attempt, attempts=(*job.attempts, one))
        await self.move(job_id, "running")

    async def end(self, job_id: str, event: str = "succeeded", **changes: Any) -> None:
        _, job = await self.last(job_id)
        await self.move(job_id, event, ended_at=job.created_at, **changes)


def until(condition: Any, what: str, said: Any = lambda: "", timeout_s: float = 60) -> Any:
    """Return what *condition* returns as soon as it is true."""
    end = time.monotonic() + timeout_s
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not in {timeout_s} s: {what}\n{said()}")
        time.sleep(0.05)


async def eventually(condition: Any, what: str, timeout_s: float = 60) -> Any:
    """Return what awaiting *condition* returns as soon as it is true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
        return found


__all__ = [
    "ADMIN", "NODE", "OTHER_NODE", "PASSWORD", "SPEC", "GatewayStack", "Scheduler", "eventually", "new_id", "until",
]  # fmt: skip
