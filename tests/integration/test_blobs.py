"""The blob protocol end to end: BlobClient, a broker with accounts, and storage in a process of its own."""

import asyncio
import contextlib
import hashlib
import random
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import gridfs
import pytest

from services.storage.shell.uploads import Uploads
from shared.blobs import BlobClient
from shared.bus import Bus
from shared.channels import BLOB_CHUNK, BLOB_OPEN, Service
from shared.errors import WherryError
from shared.job import BlobRef
from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS, BlobRead, BlobScope, Committed, UploadOpen
from shared.spec import JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWNER = BlobScope(owner_id="u1", name="ü\n.bin", media_type="application/zip")
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 2 * WINDOW_CHUNKS * CHUNK_BYTES + 5]


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def blob_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


async def pieces(data: bytes, size: int = 300_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.fixture
async def gateway(storage: Any) -> AsyncIterator[BlobClient]:
    async with storage.bus(Service.GATEWAY, "g1") as bus:
        yield BlobClient(bus, "gateway", "g1")


@pytest.fixture
async def far_gateway(storage_process: Any) -> AsyncIterator[BlobClient]:
    """Of a storage in a process of its own."""
    async with storage_process.bus(Service.GATEWAY, "g1") as bus:
        yield BlobClient(bus, "gateway", "g1")


@contextlib.asynccontextmanager
async def node(storage: Any, node_id: str) -> AsyncIterator[tuple[BlobClient, Bus]]:
    async with storage.bus(Service.NODE_AGENT, node_id) as bus:
        yield BlobClient(bus, "node", node_id), bus


async def test_blobs_of_every_size_come_back_bit_for_bit(gateway: BlobClient, storage: Any) -> None:
    for size in SIZES:
        data = data_of(size)
        committed = await gateway.upload(pieces(data), OWNER)
        assert committed.blob == blob_of(data)
        assert committed.artifact_id
        for target in (BlobRead(sha256=committed.blob.sha256), BlobRead(artifact_id=committed.artifact_id)):
            assert await whole(gateway.read(target)) == data
            assert await gateway.size(target) == size
        with gridfs.GridFSBucket(storage.database).open_download_stream_by_name(committed.blob.sha256) as stream:
            assert stream.read() == data


async def test_any_range_comes_back(gateway: BlobClient) -> None:
    data = data_of(SIZES[-1])
    target = BlobRead(sha256=(await gateway.upload(pieces(data), OWNER)).blob.sha256)
    ranges = [(0, 1), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (7, 20 * CHUNK_BYTES + 9), (len(data) - 1, None)]
    for start, end in [*ranges, (len(data), None), (len(data) + 5, len(data) + 9), (5, 5), (9, 10**12)]:
        assert await whole(gateway.read(target, start=start, end=end)) == data[start:end]


async def test_what_is_not_there_is_not_found(gateway: BlobClient) -> None:
    for target in (BlobRead(sha256="0" * 64), BlobRead(artifact_id="a" * 26), BlobRead()):
        with pytest.raises(WherryError) as caught:
            await gateway.size(target)
        assert caught.value.code == "not_found"


async def test_bytes_that_were_changed_in_the_store_are_found_out(gateway: BlobClient, storage: Any) -> None:
    committed = await gateway.upload(pieces(data_of(3 * CHUNK_BYTES)), OWNER)
    storage.database["fs.chunks"].update_one({"n": 1}, {"$set": {"data": b"x" * CHUNK_BYTES}})
    with pytest.raises(WherryError) as caught:
        await whole(gateway.read(BlobRead(sha256=committed.blob.sha256)))
    assert caught.value.code == "corrupt"


async def test_a_small_blob_that_is_sent_again_for_a_lost_answer_is_one_artifact(
    gateway: BlobClient, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, done = Uploads.put, list[Committed]()

    async def first_answer_is_lost(*args: Any) -> Committed:
        done.append(await put(*args))
        if len(done) == 1:
            await asyncio.Event().wait()
        return done[-1]

    monkeypatch.setattr(Uploads, "put", first_answer_is_lost)
    committed = await gateway.upload(pieces(b"small"), OWNER)
    assert done == [committed, committed]
    assert [one["_id"] for one in storage.database["artifacts"].find()] == [committed.artifact_id]
    assert (await gateway.upload(pieces(b"small"), OWNER)).artifact_id != committed.artifact_id


async def test_a_source_that_fails_leaves_nothing_behind(gateway: BlobClient, storage: Any) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield data_of(3 * CHUNK_BYTES)
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="went away"):
        await gateway.upload(broken(), OWNER)
    assert storage.database["fs.chunks"].count_documents({}) == 0
    assert storage.database["fs.files"].count_documents({}) == 0


async def test_a_cancelled_upload_leaves_nothing_behind(gateway: BlobClient, storage: Any) -> None:
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield data_of(CHUNK_BYTES)
        sent.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(gateway.upload(endless(), OWNER))
    await sent.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    async with asyncio.timeout(60):  # it is told, and not waited for as long as it may take
        while [document["state"] for document in storage.database["uploads"].find()] != ["dropped"]:
            await asyncio.sleep(0.05)
    chunks = storage.database["fs.chunks"].count_documents({})
    assert chunks <= 3  # at most what was under way at that moment, for the sweep
    assert storage.database["fs.files"].count_documents({}) == 0


async def test_a_reader_that_stops_early_leaves_no_task_behind(gateway: BlobClient) -> None:
    target = BlobRead(sha256=(await gateway.upload(pieces(data_of(SIZES[-1])), OWNER)).blob.sha256)
    before = len(asyncio.all_tasks())
    async with contextlib.aclosing(gateway.read(target)) as stream:
        assert await anext(stream) == data_of(SIZES[-1])[:CHUNK_BYTES]
    assert len(asyncio.all_tasks()) <= before


async def test_no_more_than_a_window_of_an_upload_and_two_of_a_reader_are_under_way(
    gateway: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = 0, 0
    ask = gateway._ask_raw

    async def counted(*args: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await ask(*args)
        finally:
            now -= 1

    monkeypatch.setattr(gateway, "_ask_raw", counted)
    committed = await gateway.upload(pieces(data_of(SIZES[-1])), OWNER)
    assert 1 < most <= WINDOW_CHUNKS
    most = 0
    await whole(gateway.read(BlobRead(sha256=committed.blob.sha256)))
    assert 1 < most <= 2 * WINDOW_CHUNKS


async def test_a_killed_storage_in_the_middle_of_an_upload_only_delays_it(
    far_gateway: BlobClient, storage_process: Any
) -> None:
    data = data_of(60 * CHUNK_BYTES + 3)
    half, back = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield data[: 30 * CHUNK_BYTES]
        half.set()
        await back.wait()
        yield data[30 * CHUNK_BYTES :]

    upload = asyncio.create_task(far_gateway.upload(halting(), OWNER))
    await half.wait()
    await storage_process.end(signal.SIGKILL)
    back.set()
    await storage_process.start()
    committed = await upload
    assert await whole(far_gateway.read(BlobRead(sha256=committed.blob.sha256))) == data


async def test_a_killed_storage_in_the_middle_of_a_read_only_delays_it(
    far_gateway: BlobClient, storage_process: Any
) -> None:
    data = data_of(60 * CHUNK_BYTES)
    committed = await far_gateway.upload(pieces(data), OWNER)
    got = bytearray()
    async for piece in far_gateway.read(BlobRead(sha256=committed.blob.sha256)):
        got += piece
        if len(got) == 2 * CHUNK_BYTES:
            await storage_process.end(signal.SIGKILL)
            await storage_process.start()
    assert bytes(got) == data


async def test_without_storage_a_call_gives_up_after_its_patience(
    far_gateway: BlobClient, storage_process: Any
) -> None:
    await storage_process.end(signal.SIGKILL)
    with pytest.raises(WherryError) as caught:
        await far_gateway.upload(pieces(b"x"), OWNER, patience_s=0.5)
    assert caught.value.retryable


async def test_a_node_stores_for_the_attempt_that_it_runs_and_for_no_other(storage: Any) -> None:
    await storage.record(storage.job(), "placed")
    data = data_of(2 * CHUNK_BYTES + 1)
    mine = BlobScope(job_id="j1", attempt=1)
    async with node(storage, "n1") as (n1, _), node(storage, "n2") as (n2, _):
        for body in (b"small", data):
            assert (await n1.upload(pieces(body), mine)).blob == blob_of(body)
            for client, scope in ((n2, mine), (n1, BlobScope(job_id="j1", attempt=2))):
                with pytest.raises(WherryError) as caught:
                    await client.upload(pieces(body), scope)
                assert caught.value.code == "not_current"
            with pytest.raises(WherryError) as caught:
                await n1.upload(pieces(body), OWNER)
            assert caught.value.code == "forbidden"
        with pytest.raises(WherryError) as caught:
            await n1.upload(pieces(b"x"), BlobScope(job_id="*", attempt=1))
        assert caught.value.code == "not_found"
    refs = storage.database["blob_refs"].find({"scope": "attempt:j1:1"})
    assert {one["sha256"] for one in refs} == {blob_of(b"small").sha256, blob_of(data).sha256}
    assert storage.database["artifacts"].count_documents({}) == 0


async def test_a_node_reads_the_source_of_its_job_and_nothing_else(gateway: BlobClient, storage: Any) -> None:
    zipped, other = await gateway.upload(pieces(b"zip"), OWNER), await gateway.upload(pieces(b"other"), OWNER)
    seq = await storage.record(storage.job(spec=JobSpec(image="x", source=zipped.artifact_id)), "placed")
    wanted = BlobRead(artifact_id=zipped.artifact_id, job_id="j1", min_seq=seq)
    async with node(storage, "n1") as (n1, _), node(storage, "n2") as (n2, _):
        assert await whole(n1.read(wanted)) == b"zip"
        for client, target in (
            (n2, wanted),
            (n1, wanted.model_copy(update={"artifact_id": other.artifact_id})),
            (n1, wanted.model_copy(update={"job_id": None})),
            (n1, BlobRead(sha256=zipped.blob.sha256, job_id="j1")),
        ):
            with pytest.raises(WherryError) as caught:
                await whole(client.read(target))
            assert caught.value.code == "not_found"


async def test_the_broker_does_not_let_a_node_speak_for_another(storage: Any) -> None:
    await storage.record(storage.job(), "placed")
    async with storage.bus(Service.NODE_AGENT, "n2") as bus:
        with pytest.raises(WherryError) as caught:
            message = UploadOpen(upload_id="b1", scope=BlobScope(job_id="j1", attempt=1))
            await bus.ask(BLOB_OPEN, message, kind="node", peer="n1")
        assert caught.value.code == "bus_forbidden"


async def test_a_chunk_without_its_headers_is_invalid(storage: Any) -> None:
    async with storage.bus(Service.GATEWAY, "g1") as bus:
        for headers in ({}, {"Wherry-Upload": "b1"}, {"Wherry-Upload": "b1", "Wherry-Chunk": "x"}):
            with pytest.raises(WherryError) as caught:
                await bus.ask_raw(BLOB_CHUNK, b"x", headers, kind="gateway", peer="g1")
            assert caught.value.code == "invalid"
        with pytest.raises(WherryError) as caught:
            named = {"Wherry-Upload": "nobody", "Wherry-Chunk": "0"}
            await bus.ask_raw(BLOB_CHUNK, b"x", named, kind="gateway", peer="g1")
        assert caught.value.code == "upload_gone"


@pytest.mark.slow
async def test_storage_stays_small_while_much_goes_in_and_out(far_gateway: BlobClient, storage_process: Any) -> None:
    block = data_of(1024 * 1024)
    blocks = 256

    async def source() -> AsyncIterator[bytes]:
        for number in range(blocks):
            yield number.to_bytes(8) + block[8:]

    committed = await far_gateway.upload(source(), OWNER)
    digest = hashlib.sha256()
    async for piece in far_gateway.read(BlobRead(sha256=committed.blob.sha256)):
        digest.update(piece)
    assert digest.hexdigest() == committed.blob.sha256
    assert storage_process.peak_mb() < 150
