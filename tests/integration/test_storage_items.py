"""Items in MongoDB: conditional upserts, and what is kept for them and goes with their job."""

from datetime import UTC, datetime, timedelta

import pytest

from services.storage.adapters.item_store import ItemStore
from services.storage.adapters.mongo import Mongo, ObjectId
from services.storage.adapters.retention_store import RetentionStore
from services.storage.adapters.schema import prepare
from services.storage.adapters.upload_store import UploadStore
from services.storage.core import projections as p
from services.storage.core.access import attempt_ref
from shared.events import JobChanged
from shared.job import BlobRef, Item, ItemFile, Job, Owner
from shared.spec import ItemSpec, JobSpec
from shared.states import ItemState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = JobSpec.model_validate({"kind": "map", "image": "busybox", "map": {"open": True}})
ARTIFACT = "a" * 26


@pytest.fixture
async def mongo(mongo_server: str, mongo_database):
    mongo = Mongo(mongo_server, mongo_database.name)
    await prepare(mongo)
    yield mongo
    mongo.close()


def job(job_id: str = "j1") -> Job:
    return Job(id=job_id, owner=Owner(id="u1", name="anna"), spec=SPEC, created_at=NOW, updated_at=NOW)


def item(number: int, state: ItemState = ItemState.WAITING, **changes: object) -> Item:
    spec = ItemSpec(name=f"n{number}", params={"$odd.key": number})
    made = Item(id=f"i{number}", index=number, spec=spec, state=state, added_at=NOW)
    return made.model_copy(update=changes)


async def write(store: ItemStore, seq: int, *items: Item, job_id: str = "j1") -> None:
    await store.write(p.item_upserts(seq, JobChanged(job=job(job_id), items=items)))


async def test_what_comes_late_or_twice_changes_nothing(mongo: Mongo):
    store = ItemStore(mongo)
    ended = item(1, ItemState.SUCCEEDED)
    await write(store, 7, ended)
    await write(store, 5, item(1), item(2))
    await write(store, 7, item(1))
    assert await store.items({"job_id": "j1"}, 10) == [ended, item(2)]
    retried = item(2, ItemState.FAILED, tries=1)
    upserts = [one for seq, state in ((9, retried), (8, item(2))) for one in p.item_upserts(seq, _event(state))]
    await store.write(upserts)  # of one batch the newest counts, whatever their order
    assert await store.item("j1", "i2") == retried


def _event(one: Item) -> JobChanged:
    return JobChanged(job=job(), items=(one,))


async def test_two_jobs_may_have_items_of_one_id(mongo: Mongo):
    store = ItemStore(mongo)
    await write(store, 1, item(1))
    await write(store, 2, item(1, ItemState.FAILED), job_id="j2")
    first, second = await store.item("j1", "i1"), await store.item("j2", "i1")
    assert first is not None
    assert second is not None
    assert (first.state, second.state) == ("waiting", "failed")
    assert await store.job_of("i1", "u1") == "j1"
    assert await store.job_of("i1", "u2") is None


async def test_files_are_those_that_the_items_own_attempt_has_stored(mongo: Mongo):
    store, uploads = ItemStore(mongo), UploadStore(mongo)
    mine, foreign = BlobRef(sha256="1" * 64, size=1), BlobRef(sha256="2" * 64, size=1)
    await uploads.add_refs([(attempt_ref("jw", 1), mine.sha256, ObjectId())], NOW)
    await uploads.add_refs([(attempt_ref("jother", 1), foreign.sha256, ObjectId())], NOW)
    files = (ItemFile(path="mine", blob=mine), ItemFile(path="foreign", blob=foreign))
    (held,) = await store.held([item(1, ItemState.SUCCEEDED, files=files, worker="jw", attempt=1)])
    assert [file.path for file in held.files] == ["mine"]
    (next_try,) = await store.held([item(1, ItemState.SUCCEEDED, files=files, worker="jw", attempt=2)])
    assert next_try.files == ()


async def test_an_artifact_is_kept_as_long_as_a_job_has_it_as_an_item(mongo: Mongo):
    store, retention = ItemStore(mongo), RetentionStore(mongo)
    await write(store, 1, item(1, spec=ItemSpec(artifact=ARTIFACT)))
    assert ARTIFACT in await retention.used_artifacts(())
    assert ARTIFACT not in await retention.used_artifacts({"j1"})
    await retention.remove_job("j1")
    assert await store.items({"job_id": "j1"}, 10) == []
    assert ARTIFACT not in await retention.used_artifacts(())


async def test_an_ended_map_job_goes_with_its_workers_and_they_do_not_go_before_it(mongo: Mongo):
    retention = RetentionStore(mongo)
    for job_id, gang_id in (("j1", None), ("jw", "j1")):
        document = {
            "_id": job_id, "state": "succeeded", "kind": "run" if gang_id else "map", "gang_id": gang_id, "seq": 1,
            "owner_id": "u1", "created_us": p.microseconds(NOW - timedelta(days=400)),
        }  # fmt: skip
        await mongo["jobs"].insert_one(document)
    ended = [one async for one in retention.ended()]
    assert [(one.id, one.is_gang) for one in ended] == [("j1", True)]
    assert [member for member, _, _ in await retention.members("j1")] == ["jw"]
