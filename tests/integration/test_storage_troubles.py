"""MongoDB or the broker's trust goes away while storage works."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from infra.local.servers import MongoServer, NatsServer
from shared import channels as c
from shared.blobs import BlobClient
from shared.channels import Service
from shared.errors import WherryError
from shared.model import Empty
from shared.permissions import accounts_config
from shared.requests.blobs import CHUNK_BYTES, BlobRead, BlobScope
from shared.requests.jobs import JobListQuery
from tests.integration.conftest import NODES, PASSWORDS, StorageProcess, StorageStack, running


async def test_while_mongodb_is_away_answers_are_unavailable_and_nothing_is_lost(
    nats_with_accounts: NatsServer, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(40 * CHUNK_BYTES)
    with MongoServer(tmp_path / "mongo", cache_gb=0.25, oplog_mb=64) as mongo, MongoClient[Any](mongo.url) as client:
        stack = StorageStack(nats_with_accounts, mongo.url, client["away"], tmp_path / "log")
        async with running(stack), stack.bus(Service.GATEWAY, "g1") as bus:
            blobs, half, back = BlobClient(bus, "gateway", "g1"), asyncio.Event(), asyncio.Event()

            async def halting() -> AsyncIterator[bytes]:
                yield data[: 20 * CHUNK_BYTES]
                half.set()
                await back.wait()
                yield data[20 * CHUNK_BYTES :]

            upload = asyncio.create_task(blobs.upload(halting(), BlobScope(owner_id="u1")))
            await half.wait()
            await asyncio.to_thread(mongo.kill)
            back.set()
            await stack.record(stack.job(), "running")
            with pytest.raises(WherryError) as caught:
                await bus.ask(c.COUNTS, Empty())
            assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
            await asyncio.to_thread(mongo.start)
            committed = await upload
            assert b"".join([piece async for piece in blobs.read(BlobRead(sha256=committed.blob.sha256))]) == data
            async with asyncio.timeout(90):
                while not (listed := await bus.ask(c.JOB_LIST, JobListQuery())).jobs:
                    await asyncio.sleep(0.1)
            assert listed.jobs[0].job.id == "j1"


async def test_storage_starts_before_mongodb_does(nats_with_accounts: NatsServer, tmp_path: Path) -> None:
    mongo = MongoServer(tmp_path / "mongo", cache_gb=0.25, oplog_mb=64)
    with MongoClient[Any](mongo.url) as client:
        stack = StorageStack(nats_with_accounts, mongo.url, client["later"], tmp_path / "log")
        starting = asyncio.create_task(_until_ready(stack))
        try:
            await asyncio.to_thread(mongo.start)
            await starting
        finally:
            starting.cancel()
            await asyncio.to_thread(mongo.stop)


async def _until_ready(stack: StorageStack) -> None:
    async with running(stack):
        pass


async def test_a_credential_that_is_taken_away_ends_storage_with_a_request_to_start_it_again(
    mongo_server: str, mongo_database: Any, tmp_path: Path
) -> None:
    with NatsServer(tmp_path / "nats", accounts_config(PASSWORDS, NODES), sync_always=False) as nats:
        stack = StorageProcess(nats, mongo_server, mongo_database, tmp_path / "log")
        async with running(stack):
            assert stack.process
            await asyncio.to_thread(nats.stop)
            nats.accounts = accounts_config(PASSWORDS | {"storage": "another"}, NODES)
            await asyncio.to_thread(nats.start)
            async with asyncio.timeout(120):
                assert await stack.process.ended() == 75
