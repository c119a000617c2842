"""What belongs to nobody is collected and nothing else, on a real mongod."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from pymongo.database import Database

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import Mongo, ObjectId
from services.storage.adapters.resumable_store import ResumableStore
from services.storage.adapters.schema import prepare
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.access import OwnerScope
from services.storage.shell.artifacts import Artifacts
from services.storage.shell.jobs import Jobs
from services.storage.shell.resumables import Resumables
from services.storage.shell.uploads import Put, Uploads
from shared.clock import utc_now
from shared.errors import Unavailable, WherryError
from shared.requests.artifacts import ResumableAdvance, ResumableBegin, ResumableCreate
from shared.requests.blobs import CHUNK_BYTES, BlobScope, UploadCommit

DATA = os.urandom(2 * CHUNK_BYTES + 3)
SCOPE = OwnerScope("u1", "x", "text/plain")
AT_ONCE, NEVER = timedelta(0), timedelta(days=1)


class _NoJobs:
    """There are no jobs, so there is no log to wait for."""

    async def catch_up(self) -> None:
        return


class Parts:
    """Storage without a bus."""

    def __init__(self, mongo: Mongo, expiry: timedelta = NEVER, open_max: int = 2) -> None:
        self.gridfs, self.store = GridFs(mongo), UploadStore(mongo)
        self.uploads = Uploads(self.gridfs, self.store)
        self.resumables = Resumables(self.gridfs, ResumableStore(mongo), self.uploads, expiry=expiry, open_max=open_max)
        self.artifacts = Artifacts(self.gridfs, self.store, cast("Jobs", _NoJobs()), JobStore(mongo))

    async def sweep(self, expiry: timedelta = AT_ONCE) -> None:
        await self.resumables.sweep(expiry)
        await self.uploads.sweep(expiry)
        await self.artifacts.collect(utc_now() - expiry)

    async def begun(self, upload_id: str, length: int, data: bytes) -> int:
        """Write the beginning of an upload and return its writer's epoch."""
        await self.resumables.create(ResumableCreate(upload_id=upload_id, owner_id="u1", length=length))
        turn = await self.resumables.begin(ResumableBegin(upload_id=upload_id, offset=0))
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = data[at : at + CHUNK_BYTES]
            await self.resumables.chunk(upload_id, turn.epoch, at // CHUNK_BYTES, chunk)
        return turn.epoch

    async def put(self, data: bytes) -> str:
        done = await self.uploads.put(Put(data, hashlib.sha256(data).hexdigest(), SCOPE))
        assert done.artifact_id
        return done.artifact_id


@pytest.fixture
async def mongo(mongo_server: str, mongo_database: Database[dict[str, Any]]) -> AsyncIterator[Mongo]:
    mongo = Mongo(mongo_server, mongo_database.name)
    await prepare(mongo)
    yield mongo
    mongo.close()


@pytest.fixture
def parts(mongo: Mongo) -> Parts:
    return Parts(mongo)


def held(database: Database[Any]) -> tuple[int, int]:
    return database["fs.files"].count_documents({}), database["fs.chunks"].count_documents({})


async def test_an_upload_that_nobody_goes_on_with_is_dropped_and_told_so(parts: Parts, mongo_database: Database[Any]):
    await parts.begun("u", len(DATA), DATA[:CHUNK_BYTES])
    await parts.sweep(NEVER)
    assert (await parts.resumables.get("u")).offset == CHUNK_BYTES
    await parts.sweep()
    assert held(mongo_database) == (0, 0)
    with pytest.raises(WherryError) as caught:
        await parts.resumables.get("u")
    assert caught.value.code == "upload_ended"
    await parts.sweep()
    with pytest.raises(WherryError) as caught:
        await parts.resumables.get("u")
    assert caught.value.code == "not_found"


async def test_an_upload_is_too_old_before_it_is_swept(mongo: Mongo):
    parts = Parts(mongo, expiry=AT_ONCE)
    await parts.resumables.create(ResumableCreate(upload_id="u", owner_id="u1", length=5))
    with pytest.raises(WherryError) as caught:
        await parts.resumables.get("u")
    assert caught.value.code == "upload_ended"


async def test_an_owner_may_have_so_many_open_and_no_more(parts: Parts):
    for number in range(2):
        await parts.resumables.create(ResumableCreate(upload_id=f"u{number}", owner_id="u1", length=5))
    again = ResumableCreate(upload_id="u1", owner_id="u1", length=5)
    assert (await parts.resumables.create(again)).upload_id == "u1", "a repeat is no new one"
    with pytest.raises(WherryError) as caught:
        await parts.resumables.create(ResumableCreate(upload_id="u2", owner_id="u1", length=5))
    assert caught.value.code == "uploads_open"
    await parts.resumables.create(ResumableCreate(upload_id="u3", owner_id="u2", length=5))
    await parts.resumables.end("u0")
    await parts.resumables.create(ResumableCreate(upload_id="u2", owner_id="u1", length=5))


async def test_a_writer_that_was_shut_out_changes_nothing_however_late(parts: Parts, mongo: Mongo):
    old = await parts.begun("u", len(DATA), DATA[:CHUNK_BYTES])
    other = Parts(mongo)  # another storage lets the next writer in
    turn = await other.resumables.begin(ResumableBegin(upload_id="u", offset=CHUNK_BYTES))
    for number in (1, 2):
        chunk = DATA[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        await other.resumables.chunk("u", turn.epoch, number, chunk)
    with pytest.raises(WherryError) as caught:
        await parts.resumables.chunk("u", old, 1, b"e" * CHUNK_BYTES)  # this one has not heard of it
    assert caught.value.code == "offset_mismatch"
    with pytest.raises(WherryError):
        await parts.resumables.advance(ResumableAdvance(upload_id="u", epoch=old, offset=len(DATA)))
    done = await parts.resumables.advance(ResumableAdvance(upload_id="u", epoch=turn.epoch, offset=len(DATA)))
    assert done.sha256 == hashlib.sha256(DATA).hexdigest(), "read again by the one that did not store it"
    assert await other.resumables.get("u") == done


async def test_an_upload_that_was_whole_when_all_were_killed_is_ended_by_whoever_asks(parts: Parts, mongo: Mongo):
    await parts.begun("u", len(DATA), DATA)
    found = await Parts(mongo).resumables.get("u")
    assert (found.state, found.sha256) == ("committed", hashlib.sha256(DATA).hexdigest())


async def test_the_same_bytes_by_tus_and_by_put_are_one_file(parts: Parts, mongo_database: Database[Any]):
    data = DATA[:1000]
    await parts.put(data)
    epoch = await parts.begun("u", len(data), data)
    done = await parts.resumables.advance(ResumableAdvance(upload_id="u", epoch=epoch, offset=len(data)))
    assert done.artifact_id
    await parts.sweep()
    assert held(mongo_database) == (1, 1)
    assert mongo_database["artifacts"].count_documents({}) == 2


async def test_what_a_kill_left_between_any_two_steps_is_collected(parts: Parts, mongo_database: Database[Any]):
    kept = await parts.put(b"kept")
    published, referred = ObjectId(), ObjectId()
    now = utc_now() - timedelta(minutes=1)
    await parts.gridfs.publish([(published, "1" * 64, 3), (referred, "2" * 64, 3)], now)
    mongo_database["fs.chunks"].insert_many({"files_id": one, "n": 0, "data": b"abc"} for one in (published, referred))
    await parts.store.add_refs([("artifact:anever", "2" * 64, referred)], now)
    half_gone = await parts.put(b"half gone")
    await parts.store.remove_artifact(half_gone)
    mongo_database["fs.files"].update_one({"filename": hashlib.sha256(b"half gone").hexdigest()}, {"$set": _DOOMED})
    await parts.sweep(NEVER)
    assert held(mongo_database) == (4, 4)
    await parts.sweep()
    assert held(mongo_database) == (1, 1)
    assert mongo_database["blob_refs"].distinct("scope") == [f"artifact:{kept}"]
    await parts.sweep()
    assert held(mongo_database) == (1, 1)


_DOOMED = {"filename": "deleted:x", "metadata.sha256": "deleted:x", "metadata.doomed": True}


async def test_chunks_that_a_kill_left_of_a_dropped_upload_go_with_its_record(
    parts: Parts, mongo_database: Database[Any]
):
    await parts.begun("u", len(DATA), DATA[:CHUNK_BYTES])
    mongo_database["resumables"].update_one({"_id": "u"}, {"$set": {"state": "dropped"}})
    await parts.uploads.sweep(AT_ONCE)  # orphans are looked for up to now, and never again before
    mongo_database["fs.chunks"].insert_one(
        {"files_id": mongo_database["resumables"].find_one({"_id": "u"})["file_id"], "n": 7, "data": b"late"}  # type: ignore[index]
    )
    await parts.sweep()
    assert held(mongo_database) == (0, 0)


async def test_who_stores_the_same_bytes_while_they_are_collected_is_never_left_without(
    parts: Parts, mongo_database: Database[Any]
):
    """Removing and storing the same bytes at once: what is listed in the end can be read."""
    data = b"the same"
    sha256 = hashlib.sha256(data).hexdigest()

    async def put() -> str | None:
        while True:
            try:
                return await parts.put(data)
            except WherryError as error:
                assert error.retryable, error

    for _ in range(25):
        artifact = await parts.put(data)
        removing = [parts.artifacts.delete(artifact), parts.artifacts.collect(utc_now() + timedelta(hours=1))]
        await asyncio.gather(*removing, put(), put())
        file = await parts.gridfs.find(sha256)
        assert file is not None
        assert await parts.gridfs.read(file, 0, 100) == data
    await parts.sweep()
    assert held(mongo_database) == (1, 1)


async def test_a_file_that_another_collector_condemns_after_its_pardon_is_not_doomed_by_the_first(
    parts: Parts, mongo: Mongo, monkeypatch: pytest.MonkeyPatch
):
    data = b"pardoned"
    await parts.store.remove_artifact(await parts.put(data))
    file = await parts.gridfs.find(hashlib.sha256(data).hexdigest())
    assert file is not None
    other, condemned, go_on = UploadStore(mongo), asyncio.Event(), asyncio.Event()
    dooming: list[asyncio.Task[bool]] = []

    class Refs:
        def __init__(self, then: Callable[[], Awaitable[Any]]) -> None:
            self._then = then

        async def find_one(self, *wanted: Any) -> Any:
            found = await mongo["blob_refs"].find_one(*wanted)
            await self._then()
            return found

    async def wait() -> None:
        condemned.set()
        await go_on.wait()

    async def pardon_and_condemn() -> None:
        await Parts(mongo).put(data)
        dooming.append(asyncio.create_task(other.doom(file.id)))
        await condemned.wait()

    monkeypatch.setattr(other, "_refs", Refs(wait))
    monkeypatch.setattr(parts.store, "_refs", Refs(pardon_and_condemn))
    assert not await parts.store.doom(file.id)
    go_on.set()
    assert not await dooming[0]
    assert await parts.gridfs.find(file.sha256) == file


async def test_a_second_removal_of_an_artifact_leaves_alone_what_was_stored_after_the_first(
    parts: Parts, mongo_database: Database[Any]
):
    data = b"removed twice"
    sha256, fresh = hashlib.sha256(data).hexdigest(), ObjectId()
    artifact = await parts.put(data)
    asked = parts.artifacts.needed_by

    async def meanwhile(_: Any) -> None:
        asked.remove(meanwhile)
        await parts.artifacts.delete(artifact)
        await parts.gridfs.publish([(fresh, sha256, len(data))], utc_now())  # its reference is still to come

    asked.append(meanwhile)
    await parts.artifacts.delete(artifact)
    found = await parts.gridfs.find(sha256)
    assert found is not None
    assert found.id == fresh


async def test_what_is_published_stays_for_the_commit_that_is_repeated(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    scope = BlobScope(owner_id="u1", name="x")
    commit = UploadCommit(upload_id="b", chunks=1, size=3, sha256=hashlib.sha256(b"abc").hexdigest())

    async def breaks(*_: Any) -> None:
        raise Unavailable("MongoDB went away.")

    await parts.uploads.open("gateway", "g1", "b", scope)
    await parts.uploads.chunk("gateway", "g1", "b", 0, b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(parts.uploads, "keep", breaks)
        with pytest.raises(Unavailable):
            await parts.uploads.commit("gateway", "g1", commit)
    await parts.artifacts.collect(utc_now() + timedelta(hours=1))
    await parts.uploads.commit("gateway", "g1", commit)
    file = await parts.gridfs.find(commit.sha256)
    assert file is not None
    assert await parts.gridfs.read(file, 0, 10) == b"abc"


async def test_who_drops_an_upload_while_it_becomes_an_artifact_takes_no_bytes_from_it(
    parts: Parts, mongo: Mongo, monkeypatch: pytest.MonkeyPatch
):
    data = DATA[:1000]
    epoch = await parts.begun("u", len(data), data)
    keep = parts.uploads.keep

    async def drop_first(*kept: Any) -> None:
        await Parts(mongo).resumables.end("u")
        await keep(*kept)

    monkeypatch.setattr(parts.uploads, "keep", drop_first)
    done = await parts.resumables.advance(ResumableAdvance(upload_id="u", epoch=epoch, offset=len(data)))
    file = await parts.gridfs.find(hashlib.sha256(data).hexdigest())
    assert done.artifact_id
    assert file is not None
    assert await parts.gridfs.read(file, 0, len(data)) == data


async def test_an_upload_that_is_committed_while_it_is_swept_keeps_its_bytes(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    commit = UploadCommit(upload_id="b", chunks=1, size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    await parts.uploads.open("gateway", "g1", "b", BlobScope(owner_id="u1", name="x"))
    await parts.uploads.chunk("gateway", "g1", "b", 0, b"abc")
    checked, go_on, publish = asyncio.Event(), asyncio.Event(), parts.gridfs.publish
    committing: list[asyncio.Task[Any]] = []

    async def slowly(*files: Any) -> Any:
        checked.set()
        await go_on.wait()
        return await publish(*files)

    async def not_yet(_: Any) -> bool:
        if not committing:
            committing.append(asyncio.create_task(parts.uploads.commit("gateway", "g1", commit)))
        await checked.wait()
        return False

    with monkeypatch.context() as patch:
        patch.setattr(parts.gridfs, "publish", slowly)
        patch.setattr(parts.gridfs, "has_file", not_yet)
        await asyncio.sleep(0.01)  # MongoDB's times have milliseconds
        await parts.uploads.sweep(AT_ONCE)
        go_on.set()
        await committing[0]
    file = await parts.gridfs.find(commit.sha256)
    assert file is not None
    assert await parts.gridfs.read(file, 0, 10) == b"abc"
