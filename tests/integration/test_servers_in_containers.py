"""Storage on NATS and MongoDB in containers, of the images that docker-compose.yml takes, started by testcontainers.

WHERRY_NATS_IMAGE and WHERRY_MONGO_IMAGE name other images, as they do for Compose.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import pytest
from pymongo import MongoClient
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from infra.compose.images import ImageError, choose
from infra.local.ports import LOOPBACK, free_port
from infra.local.servers import SERVER_LIMITS
from shared import channels
from shared.blobs import BlobClient
from shared.bus import Bus, Record, job_filter
from shared.channels import JOBS, Service
from shared.errors import Conflict, Unavailable
from shared.events import JobChanged
from shared.ids import new_id
from shared.job import Job
from shared.permissions import accounts_config
from shared.requests.blobs import CHUNK_BYTES, BlobRead, BlobScope
from shared.requests.jobs import EventQuery, JobQuery, JobView
from shared.states import JobState
from shared.wire import entry
from tests.integration.conftest import NODES, PASSWORDS, StorageProcess, running

# The first test may have to build the images.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

NATS_CONFIG = f"""\
listen: 0.0.0.0:4222
{SERVER_LIMITS}
jetstream {{ store_dir: "/data"
  sync_interval: always }}
{accounts_config(PASSWORDS, NODES)}
"""
DATA = random.Random(1).randbytes(10 * CHUNK_BYTES + 17)


@dataclass
class Server:
    """A server in a container, reached through one port of this machine."""

    container: DockerContainer
    port: int

    @classmethod
    def of(cls, image: str, inside: int, command: list[str]) -> Self:
        """Prepare one. The port is chosen here: of one that the engine chooses a restart makes another."""
        port = free_port()
        container = DockerContainer(image).with_command(command)
        container.ports[f"{inside}/tcp"] = (LOOPBACK, port)  # with_bind_ports would open it to the network
        return cls(container, port)

    def crash(self) -> None:
        """Kill it and start it again, on the data that it had."""
        wrapped = self.container.get_wrapped_container()
        wrapped.kill()
        wrapped.wait()
        wrapped.start()


class Nats(Server):
    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"


class Mongo(Server):
    @property
    def url(self) -> str:
        return f"mongodb://{LOOPBACK}:{self.port}/?directConnection=true"

    def initiate(self) -> None:
        """Make it a replica set of one, and return when that has its primary."""
        limit = time.monotonic() + 60
        member = {"_id": 0, "host": "127.0.0.1:27017"}  # as it sees itself
        with MongoClient[dict[str, Any]](self.url) as client:  # which waits half a minute for a server
            client.admin.command("replSetInitiate", {"_id": "rs0", "version": 1, "members": [member]})
            while not client.admin.command("hello").get("isWritablePrimary"):
                assert time.monotonic() < limit, self.container.get_logs()
                time.sleep(0.05)


@pytest.fixture(scope="module")
def images() -> Mapping[str, str]:
    try:
        return choose(os.environ, print)
    except ImageError as problem:
        pytest.skip(f"no registry is in reach, and images cannot be built here: {problem}")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Keep testcontainers from its reaper, whose image may be out of reach, and from leaving a DOCKER_HOST behind."""
    with patch.dict(os.environ, TESTCONTAINERS_RYUK_DISABLED="true"):
        yield


@pytest.fixture(scope="module")
def nats(images: Mapping[str, str], environment: None) -> Iterator[Nats]:
    server = Nats.of(images["WHERRY_NATS_IMAGE"], 4222, ["-c", "/nats.conf"])
    server.container.with_copy_into_container(NATS_CONFIG.encode(), "/nats.conf")
    server.container.with_kwargs(user="0:0")  # /data is made by the server, and not every image lets its user do that
    server.container.waiting_for(LogMessageWaitStrategy("Server is ready").with_startup_timeout(60))
    with server.container:
        yield server


@pytest.fixture(scope="module")
def mongo(images: Mapping[str, str], environment: None) -> Iterator[Mongo]:
    options = ["--replSet=rs0", "--bind_ip_all", "--oplogSize=64", "--wiredTigerCacheSizeGB=0.25", "--quiet"]
    server = Mongo.of(images["WHERRY_MONGO_IMAGE"], 27017, ["mongod", *options])
    with server.container:
        server.initiate()
        yield server


@pytest.fixture
async def stack(nats: Nats, mongo: Mongo, tmp_path: Path) -> AsyncIterator[StorageProcess]:
    """Storage as a process of its own on both servers, with the streams that infra.bootstrap makes."""
    with MongoClient[dict[str, Any]](mongo.url) as client:
        async with running(StorageProcess(nats, mongo.url, client[new_id("test")], tmp_path / "log")) as stack:
            yield stack


@pytest.fixture
async def gateway(stack: StorageProcess) -> AsyncIterator[Bus]:
    async with stack.bus(Service.GATEWAY, "g1") as bus:
        yield bus


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def first_event(scheduler: Bus, job: Job) -> Record:
    """The record of a job's first event, which nobody else may have written yet."""
    event = scheduler.event(channels.JOB_CHANGED, JobChanged(job=job), subject=job.id, event="queued")
    params = {"owner": job.owner.id, "job_id": job.id, "event": "queued"}
    return Record(channels.JOB_CHANGED, params, event, (job_filter(job.id), 0))


async def answer(gateway: Bus, job_id: str) -> JobView:
    """Ask for a job until its server is back: till then storage says that it is unavailable."""
    async with asyncio.timeout(120):
        while True:
            with suppress(Unavailable):
                return await gateway.ask(channels.JOB_GET, JobQuery(job_id=job_id))
            await asyncio.sleep(0.1)


async def test_what_the_scheduler_records_is_read_back_from_mongodb(stack: StorageProcess, gateway: Bus) -> None:
    for state in (JobState.QUEUED, JobState.PLACED, JobState.RUNNING):
        seq = await stack.record(stack.job(state=state), state.value)
        view = await gateway.ask(channels.JOB_GET, JobQuery(job_id="j1"))
        assert (view.job.state, view.seq) == (state, seq)
    async with asyncio.timeout(60):
        while stack.database["jobs"].count_documents({"_id": "j1"}) != 1:  # jobs themselves are read from the log
            await asyncio.sleep(0.05)


async def test_a_blob_goes_in_and_comes_out(stack: StorageProcess, gateway: Bus) -> None:
    blobs = BlobClient(gateway, "gateway", "g1")
    committed = await blobs.upload(pieces(DATA), BlobScope(owner_id="u1"))
    assert stack.database["fs.chunks"].count_documents({}) == 11
    assert b"".join([piece async for piece in blobs.read(BlobRead(sha256=committed.blob.sha256))]) == DATA


async def test_one_stale_entry_keeps_a_whole_batch_out(stack: StorageProcess) -> None:
    async with stack.bus(Service.SCHEDULER) as scheduler:
        stored = await scheduler.write([entry(first_event(scheduler, stack.job(name))) for name in ("j1", "j2")], JOBS)
        assert [place.seq for place in stored] == [1, 2]
        with pytest.raises(Conflict):
            await scheduler.write([entry(first_event(scheduler, stack.job(name))) for name in ("j3", "j2")], JOBS)
        assert await scheduler.stream_last_seq(JOBS) == 2


@pytest.mark.parametrize("name", ["nats", "mongo"])
async def test_storage_goes_on_after_a_crash_of_its_server(
    name: str, stack: StorageProcess, gateway: Bus, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    blobs = BlobClient(gateway, "gateway", "g1")
    before = await stack.record(stack.job(state=JobState.PLACED), "placed")
    committed = await blobs.upload(pieces(DATA), BlobScope(owner_id="u1"))

    await asyncio.to_thread(server.crash)

    after = await stack.record(stack.job(state=JobState.RUNNING), "running")
    view = await answer(gateway, "j1")
    assert (view.job.state, view.seq) == (JobState.RUNNING, after)
    async with asyncio.timeout(120):
        while True:  # what is read from MongoDB is waited for a while only
            with suppress(Unavailable):
                events = await gateway.ask(channels.JOB_EVENTS, EventQuery(job_id="j1"))
                seen = [event.seq for event in events.events]
                assert seen == [before, after][: len(seen)]
                if len(seen) == 2:
                    break
            await asyncio.sleep(0.1)
    assert b"".join([piece async for piece in blobs.read(BlobRead(sha256=committed.blob.sha256))]) == DATA
    assert stack.process
    assert stack.process.returncode is None
