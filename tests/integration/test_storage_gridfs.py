"""GridFS as other clients see it, and what is left when an upload ends in the middle, on a real mongod."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import gridfs
import pytest
from bson import ObjectId
from pymongo.database import Database

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.mongo import Mongo
from services.storage.adapters.schema import INDEXES, NewerSchemaError, prepare
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.access import AttemptScope
from services.storage.shell.uploads import Put, Uploads
from shared.errors import WherryError
from shared.requests.blobs import CHUNK_BYTES, BlobScope, Committed, UploadCommit

GATEWAY = ("gateway", "g1")
SCOPE = BlobScope(owner_id="u1", name="x.bin")


@pytest.fixture
async def mongo(mongo_server: str, mongo_database: Database[dict[str, Any]]) -> AsyncIterator[Mongo]:
    mongo = Mongo(mongo_server, mongo_database.name)
    await prepare(mongo)
    yield mongo
    mongo.close()


@pytest.fixture
def uploads(mongo: Mongo) -> Uploads:
    return Uploads(GridFs(mongo), UploadStore(mongo))


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def commit_of(upload_id: str, data: bytes) -> UploadCommit:
    return UploadCommit(
        upload_id=upload_id, chunks=len(cut(data)), size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


async def send(uploads: Uploads, upload_id: str, data: bytes) -> None:
    await uploads.open(*GATEWAY, upload_id, SCOPE)
    await asyncio.gather(*(uploads.chunk(*GATEWAY, upload_id, n, chunk) for n, chunk in enumerate(cut(data))))


async def store(uploads: Uploads, upload_id: str, data: bytes) -> Committed:
    await send(uploads, upload_id, data)
    return await uploads.commit(*GATEWAY, commit_of(upload_id, data))


DATA = os.urandom(3 * CHUNK_BYTES + 17)


async def test_any_gridfs_client_reads_what_was_stored(uploads: Uploads, mongo_database: Database[Any]) -> None:
    committed = await store(uploads, "b1", DATA)
    bucket = gridfs.GridFSBucket(mongo_database)
    with bucket.open_download_stream_by_name(committed.blob.sha256) as stream:
        assert stream.read() == DATA
        assert stream.chunk_size == CHUNK_BYTES
        assert stream.metadata == {"sha256": committed.blob.sha256}


async def test_nothing_is_visible_before_the_commit(uploads: Uploads, mongo_database: Database[Any]) -> None:
    await send(uploads, "b1", DATA)
    assert mongo_database["fs.files"].count_documents({}) == 0
    assert mongo_database["fs.chunks"].count_documents({}) == 4


async def test_repeated_chunks_and_commits_are_harmless(uploads: Uploads, mongo_database: Database[Any]) -> None:
    await send(uploads, "b1", DATA)
    await send(uploads, "b1", DATA)
    first = await uploads.commit(*GATEWAY, commit_of("b1", DATA))
    assert await uploads.commit(*GATEWAY, commit_of("b1", DATA)) == first
    assert mongo_database["fs.chunks"].count_documents({}) == 4
    assert mongo_database["artifacts"].count_documents({}) == 1


async def test_the_same_bytes_are_stored_once_and_two_artifacts_have_them(
    uploads: Uploads, mongo_database: Database[Any]
) -> None:
    one, two = await store(uploads, "b1", DATA), await store(uploads, "b2", DATA)
    assert one.blob == two.blob
    assert one.artifact_id != two.artifact_id
    assert mongo_database["fs.files"].count_documents({}) == 1
    assert mongo_database["fs.chunks"].count_documents({}) == 4


async def test_uploads_of_the_same_bytes_at_the_same_time_end_in_one_file(
    uploads: Uploads, mongo_database: Database[Any]
) -> None:
    done = await asyncio.gather(*(store(uploads, f"b{number}", DATA) for number in range(6)))
    assert len({one.blob.sha256 for one in done}) == 1
    assert mongo_database["fs.files"].count_documents({}) == 1
    assert mongo_database["fs.chunks"].count_documents({}) == 4


async def test_bytes_that_are_not_what_was_meant_are_dropped(uploads: Uploads, mongo_database: Database[Any]) -> None:
    await send(uploads, "b1", DATA)
    wrong = commit_of("b1", DATA).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(WherryError) as caught:
        await uploads.commit(*GATEWAY, wrong)
    assert caught.value.code == "corrupt"
    assert mongo_database["fs.chunks"].count_documents({}) == 0
    assert mongo_database["fs.files"].count_documents({}) == 0


async def test_a_missing_chunk_is_found_out(uploads: Uploads) -> None:
    await uploads.open(*GATEWAY, "b1", SCOPE)
    for number in (0, 2, 3):
        await uploads.chunk(*GATEWAY, "b1", number, cut(DATA)[number])
    with pytest.raises(WherryError, match="not those") as caught:
        await uploads.commit(*GATEWAY, commit_of("b1", DATA))
    assert caught.value.code == "corrupt"


async def test_after_a_restart_the_upload_goes_on_and_is_checked_by_reading(
    uploads: Uploads, mongo: Mongo, mongo_database: Database[Any]
) -> None:
    await uploads.open(*GATEWAY, "b1", SCOPE)
    for number in (0, 1):
        await uploads.chunk(*GATEWAY, "b1", number, cut(DATA)[number])
    again = Uploads(GridFs(mongo), UploadStore(mongo))  # another process knows only what is stored
    for number in (1, 2, 3):
        await again.chunk(*GATEWAY, "b1", number, cut(DATA)[number])
    committed = await again.commit(*GATEWAY, commit_of("b1", DATA))
    assert committed.blob.size == len(DATA)
    # And if that one ends before it could answer, the next gives the same answer.
    assert await Uploads(GridFs(mongo), UploadStore(mongo)).commit(*GATEWAY, commit_of("b1", DATA)) == committed


@pytest.mark.parametrize("stored_before", [False, True])
async def test_a_commit_that_was_cut_off_anywhere_can_be_repeated(
    mongo: Mongo, mongo_database: Database[Any], *, stored_before: bool
) -> None:
    if stored_before:
        await store(Uploads(GridFs(mongo), UploadStore(mongo)), "b0", DATA)

    class Dies(UploadStore):
        async def commit(self, upload_id: str, committed: Committed, now: Any) -> None:  # noqa: ARG002
            raise ConnectionError("killed")

    dying = Uploads(GridFs(mongo), Dies(mongo))
    await send(dying, "b1", DATA)
    with pytest.raises(ConnectionError):
        await dying.commit(*GATEWAY, commit_of("b1", DATA))
    committed = await Uploads(GridFs(mongo), UploadStore(mongo)).commit(*GATEWAY, commit_of("b1", DATA))
    assert mongo_database["artifacts"].count_documents({"_id": committed.artifact_id}) == 1
    assert mongo_database["fs.chunks"].count_documents({}) == 4


async def test_a_digest_never_names_other_bytes_even_if_a_chunk_is_sent_in_two_versions(uploads: Uploads) -> None:
    await uploads.open(*GATEWAY, "b1", SCOPE)
    await uploads.chunk(*GATEWAY, "b1", 0, b"evil".ljust(CHUNK_BYTES))
    await send(uploads, "b1", DATA)
    with pytest.raises(WherryError) as caught:
        await uploads.commit(*GATEWAY, commit_of("b1", DATA))
    assert caught.value.code == "corrupt"


async def test_nobody_touches_somebody_elses_upload(uploads: Uploads) -> None:
    await send(uploads, "b1", DATA)
    for call in (
        uploads.chunk("node", "n1", "b1", 0, b"x"),
        uploads.commit("gateway", "g2", commit_of("b1", DATA)),
        uploads.open("gateway", "g2", "b1", SCOPE),
    ):
        with pytest.raises(WherryError) as caught:
            await call
        assert caught.value.code == "upload_gone"
    await uploads.abort("gateway", "g2", "b1")
    await uploads.commit(*GATEWAY, commit_of("b1", DATA))


async def test_an_aborted_upload_leaves_nothing_and_takes_nothing(
    uploads: Uploads, mongo_database: Database[Any]
) -> None:
    await send(uploads, "b1", DATA)
    await uploads.abort(*GATEWAY, "b1")
    assert mongo_database["fs.chunks"].count_documents({}) == 0
    with pytest.raises(WherryError) as caught:
        await uploads.chunk(*GATEWAY, "b1", 0, b"x")
    assert caught.value.code == "upload_gone"


async def test_the_sweep_drops_what_nobody_goes_on_with_and_keeps_the_rest(
    uploads: Uploads, mongo: Mongo, mongo_database: Database[Any]
) -> None:
    await send(uploads, "old", DATA)
    await store(uploads, "done", DATA[:-1])
    assert await uploads.sweep(timedelta(hours=24)) == 0
    assert await uploads.sweep(timedelta(seconds=-60)) == 1
    assert mongo_database["fs.chunks"].count_documents({}) == len(cut(DATA[:-1]))
    assert mongo_database["uploads"].count_documents({}) == 0
    with pytest.raises(WherryError):
        await Uploads(GridFs(mongo), UploadStore(mongo)).commit(*GATEWAY, commit_of("old", DATA))


async def test_the_sweep_finds_chunks_that_belong_to_nothing(uploads: Uploads, mongo_database: Database[Any]) -> None:
    mongo_database["fs.chunks"].insert_many([{"files_id": ObjectId(), "n": n, "data": b"x"} for n in range(2)])
    await send(uploads, "open", DATA)
    before = mongo_database["fs.chunks"].count_documents({})
    # All chunks are older than the sweep's limit, which lies in the future here; the upload is at work even then.
    mongo_database["uploads"].update_one({"_id": "open"}, {"$set": {"active_at": datetime(2100, 1, 1, tzinfo=UTC)}})
    assert await uploads.sweep(timedelta(seconds=-60)) == 2
    assert mongo_database["fs.chunks"].count_documents({}) == before - 2
    await uploads.commit(*GATEWAY, commit_of("open", DATA))


async def test_small_blobs_go_in_groups_and_each_digest_once(uploads: Uploads, mongo_database: Database[Any]) -> None:
    bodies = [b"%d" % (number % 50) for number in range(200)] + [b""]
    puts = [Put(body, hashlib.sha256(body).hexdigest(), AttemptScope("j1", 1)) for body in bodies]
    done = await asyncio.gather(*(uploads.put(put) for put in puts))
    assert [one.blob.size for one in done] == [len(body) for body in bodies]
    assert mongo_database["fs.files"].count_documents({}) == 51
    assert mongo_database["fs.chunks"].count_documents({}) == 50
    assert mongo_database["blob_refs"].count_documents({"scope": "attempt:j1:1"}) == 51
    bucket = gridfs.GridFSBucket(mongo_database)
    for body in (b"7", b""):
        with bucket.open_download_stream_by_name(hashlib.sha256(body).hexdigest()) as stream:
            assert stream.read() == body


async def test_any_range_of_a_blob_can_be_read(uploads: Uploads, mongo: Mongo) -> None:
    committed = await store(uploads, "b1", DATA)
    bucket = GridFs(mongo)
    file = await bucket.find(committed.blob.sha256)
    assert file
    for offset, length in (
        (0, 10), (CHUNK_BYTES - 5, 10), (CHUNK_BYTES, CHUNK_BYTES), (5, CHUNK_BYTES), (len(DATA) - 3, 100),
        (len(DATA), 10), (0, 0),
    ):  # fmt: skip
        assert await bucket.read(file, offset, length) == DATA[offset : offset + length]


async def test_the_schema_can_be_prepared_again_and_a_newer_one_is_left_alone(
    mongo: Mongo, mongo_database: Database[Any]
) -> None:
    await prepare(mongo)
    assert set(INDEXES) <= set(mongo_database.list_collection_names())
    mongo_database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 999}})
    with pytest.raises(NewerSchemaError):
        await prepare(mongo)


async def test_a_chunk_that_is_being_stored_while_its_upload_is_aborted_does_not_stay(
    mongo: Mongo, mongo_database: Database[dict[str, Any]]
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    class Slow(GridFs):
        """Stores when it is told to."""

        async def add_chunks(self, chunks):
            arrived.set()
            await go_on.wait()
            return await super().add_chunks(chunks)

    uploads = Uploads(Slow(mongo), UploadStore(mongo))
    await uploads.open(*GATEWAY, "late", SCOPE)
    storing = asyncio.create_task(uploads.chunk(*GATEWAY, "late", 0, b"x" * 1000))
    await arrived.wait()
    await uploads.abort(*GATEWAY, "late")
    go_on.set()
    with pytest.raises(WherryError) as refused:
        await storing
    assert refused.value.code == "upload_gone"
    assert mongo_database["fs.chunks"].count_documents({}) == 0
