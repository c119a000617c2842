"""What retention hides and removes, on real MongoDB and NATS: only what the log no longer has and nobody needs."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from infra.local.servers import NatsServer
from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import Mongo
from services.storage.adapters.retention_store import RetentionStore
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.projections import microseconds
from services.storage.shell.artifacts import Artifacts
from services.storage.shell.jobs import Jobs, ProjectionMark
from shared.blobs import BlobClient
from shared.bus import Bus
from shared.channels import (
    ARTIFACT_GET,
    JOB_EVENTS,
    JOB_GET,
    JOB_LIST,
    JOB_LOGS,
    JOB_OUTPUTS,
    JOBS,
    OUTPUT,
    RETENTION_GET,
    RETENTION_RUN,
    Service,
)
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.events import LogLine, OutputBatch
from shared.ids import new_id
from shared.job import Attempt, BlobRef, GangPlace, Job, OutputsRef
from shared.manifest import Entry, Manifest
from shared.permissions import OPERATOR
from shared.requests.administration import RetentionAsk, RetentionQuery, RetentionRun
from shared.requests.artifacts import ArtifactQuery
from shared.requests.blobs import BlobRead, BlobScope
from shared.requests.jobs import EventQuery, JobListQuery, JobQuery, LogQuery
from shared.requests.outputs import OutputQuery
from shared.spec import Gang, GangRole, Input, JobSpec, Map, Need
from shared.spec import Service as ServiceSpec
from shared.states import AttemptState, JobState
from tests.integration.conftest import NOW, StorageStack, running

OWNER = "u1"
GANG = Gang(roles={"w": GangRole(command="x")})


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run wait for what the log has as long as that takes: by itself it is given up after 5 s."""
    monkeypatch.setattr("services.storage.shell.jobs.WAIT_S", 60.0)


@pytest.fixture
async def stack(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> AsyncIterator[StorageStack]:
    extra = {"WHERRY_RETENTION_GRACE_S": "0", "WHERRY_RETENTION_JOBS_PER_OWNER": "3"}
    one = StorageStack(nats_with_accounts, mongo_server, mongo_database, tmp_path / "log", extra)
    async with running(one) as stack:
        yield stack


@pytest.fixture
async def door(stack: StorageStack) -> AsyncIterator[Bus]:
    async with stack.bus(Service.GATEWAY, "g1") as bus:
        yield bus


async def retain(stack: StorageStack, door: Bus, *, dry_run: bool = False, limit: int = 100) -> RetentionRun:
    settle(stack)
    run = await door.ask(RETENTION_RUN, RetentionAsk(run_id=new_id("r"), dry_run=dry_run, limit=limit, by="admin"))
    async with asyncio.timeout(120):
        while run.ended_at is None:
            run = await door.ask(RETENTION_GET, RetentionQuery(run_id=run.run_id))
    assert not run.error, run
    return run


def settle(stack: StorageStack) -> None:
    """Make all files so old that they can be nobody's."""
    stack.database["fs.files"].update_many({}, {"$set": {"uploadDate": NOW}})


def sums(run: RetentionRun) -> dict[str, tuple[int, int]]:
    return {kind: (one.count, one.bytes) for kind, one in sorted(run.removed.items())}


async def one(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


async def upload(door: Bus, body: bytes) -> str:
    done = await BlobClient(door, "gateway", "g1").upload(one(body), BlobScope(owner_id=OWNER, name="x"))
    assert done.artifact_id
    return done.artifact_id


async def read(door: Bus, blob: BlobRef) -> bytes:
    client = BlobClient(door, "gateway", "g1")
    return b"".join([piece async for piece in client.read(BlobRead(sha256=blob.sha256))])


async def ended(stack: StorageStack, files: dict[str, bytes], **fields: Any) -> Job:
    """A job that has run on n1, printed a line, left *files* and ended long ago."""
    job = stack.job(new_id("j"), **fields)
    await stack.record(job, "running")
    entries: list[Entry] = []
    async with stack.bus(Service.NODE_AGENT, "n1") as bus:
        client, scope = BlobClient(bus, "node", "n1"), BlobScope(job_id=job.id, attempt=1)
        for path, body in files.items():
            entries.append(Entry(path=path, blob=(await client.upload(one(body), scope)).blob))
        body = Manifest(job_id=job.id, attempt=1, entries=tuple(entries)).to_bytes()
        manifest = (await client.upload(one(body), scope)).blob
        lines = OutputBatch(lines=(LogLine(n=1, t=NOW, x="a line"),))
        await bus.put(OUTPUT.subject(node_id="n1", job_id=job.id, attempt="1"), lines.to_bytes())
    outputs = OutputsRef(manifest=manifest, files=len(files), bytes=sum(map(len, files.values())))
    attempt = Attempt(number=1, node="n1", state=AttemptState.SUCCEEDED, placed_at=NOW, ended_at=NOW, outputs=outputs)
    update = {"state": JobState.SUCCEEDED, "ended_at": NOW, "outputs": outputs, "attempts": (attempt,)}
    job = job.model_copy(update=update)
    await stack.record(job, "succeeded")
    async with asyncio.timeout(90):  # the line comes by another stream
        while stack.database["logs"].count_documents({"key": {"$regex": job.id}}) == 0:
            await asyncio.sleep(0.02)
    return job


async def forget_log(stack: StorageStack) -> None:
    """Let the stream end its keeping of all events so far, once storage has them."""
    async with Bus.connect(stack.settings(OPERATOR), Service.STORAGE, purpose="purge") as operator:
        last = await operator.stream_last_seq(JOBS)
        async with asyncio.timeout(90):
            while stack.database["events"].find_one({"_id": last}) is None:
                await asyncio.sleep(0.02)
        await operator.api(f"STREAM.PURGE.{JOBS}", {})


def age(stack: StorageStack, name: str = "artifacts", days: float = 31) -> None:
    """Make all artifacts older."""
    stack.database[name].update_many({}, {"$set": {"created_us": microseconds(utc_now() - timedelta(days=days))}})


async def gone(door: Bus, job: Job) -> bool:
    try:
        await door.ask(JOB_GET, JobQuery(job_id=job.id))
    except NotFound:
        return True
    return False


async def test_an_old_job_goes_with_all_that_hangs_on_it_and_what_others_have_too_stays(
    stack: StorageStack, door: Bus
) -> None:
    shared, own = os.urandom(3000), os.urandom(2000)
    old = await ended(stack, {"shared": shared, "own": own})
    kept = await ended(stack, {"shared": shared}, owner="u2", created_at=utc_now())
    kept = kept.model_copy(update={"ended_at": utc_now()})
    await stack.record(kept, "succeeded")
    await forget_log(stack)

    planned = await retain(stack, door, dry_run=True)
    assert not await gone(door, old)
    done = await retain(stack, door)
    manifest = old.outputs.manifest.size if old.outputs else 0
    expected = {"bytes": (2, 2000 + manifest), "jobs": (1, 5000)}
    assert sums(planned) == sums(done) == expected
    assert planned.items == done.items
    assert [(item.kind, item.id, item.owner_id) for item in done.items] == [("jobs", old.id, OWNER)]
    assert "kept for 90 days" in done.items[0].reason

    assert await gone(door, old)
    assert not (await door.ask(JOB_EVENTS, EventQuery(job_id=old.id))).events
    for name in ("logs", "metrics", "progress", "events", "blob_refs"):
        assert old.id not in str(list(stack.database[name].find())), name
    page = await door.ask(JOB_OUTPUTS, OutputQuery(job_id=kept.id))
    assert [entry.path for entry in page.entries] == ["shared"]
    assert page.entries[0].blob
    assert await read(door, page.entries[0].blob) == shared
    assert (await door.ask(JOB_LOGS, LogQuery(job_id=kept.id))).lines
    assert stack.database["fs.files"].count_documents({}) == 2
    assert stack.database["fs.chunks"].count_documents({}) == 2
    assert sums(await retain(stack, door)) == {}


async def test_a_job_stays_as_long_as_the_log_has_an_event_of_it_for_a_rebuild_would_bring_it_back(
    stack: StorageStack, door: Bus
) -> None:
    job = await ended(stack, {"x": b"x"})
    assert sums(await retain(stack, door)) == {"logs": (1, 0)}, "lines are in no log that is replayed"
    assert not await gone(door, job)
    assert not (await door.ask(JOB_LOGS, LogQuery(job_id=job.id))).lines
    await forget_log(stack)
    assert sums(await retain(stack, door))["jobs"] == (1, 1)
    assert await gone(door, job)


async def test_what_an_unfinished_job_needs_stays_and_so_does_a_gang_whose_member_the_log_still_has(
    stack: StorageStack, door: Bus
) -> None:
    needed, asked, other = [await ended(stack, {"x": os.urandom(10)}) for _ in range(3)]
    gang = await ended(stack, {}, spec=JobSpec(kind="gang", gang=GANG, image="i"))
    await forget_log(stack)
    spec = JobSpec(image="i", needs=(Need(job=needed.id),), inputs={"in": Input(source=f"job:{asked.id}")})
    await stack.record(stack.job(new_id("j"), None, spec=spec), "pending")
    place = GangPlace(gang_id=gang.id, round=1, role="w", index=0, rank=0, size=1)
    member = await ended(stack, {}, member_of=place)
    await retain(stack, door)
    assert [await gone(door, job) for job in (needed, asked, other, gang, member)] == [False, False, True, False, False]
    await forget_log(stack)
    await retain(stack, door)
    assert [await gone(door, job) for job in (needed, asked, gang, member)] == [False, False, True, True]


async def test_replicas_that_ended_long_ago_go_while_their_service_goes_on_and_workers_of_a_map_job_stay(
    stack: StorageStack, door: Bus
) -> None:
    service = stack.job(new_id("j"), None, spec=JobSpec(kind="service", service=ServiceSpec(port=80), image="i"))
    maps = stack.job(new_id("j"), None, spec=JobSpec(kind="map", map=Map(open=True), image="i"))
    for parent in (service, maps):
        await stack.record(parent, "pending")

    def place(parent: Job, role: str) -> GangPlace:
        return GangPlace(gang_id=parent.id, round=1, role=role, index=0, rank=0, size=0)

    old = await ended(stack, {"x": os.urandom(10)}, member_of=place(service, "replica"))
    needed = await ended(stack, {}, member_of=place(service, "replica"))
    fresh = await ended(stack, {}, member_of=place(service, "replica"))
    await stack.record(fresh.model_copy(update={"ended_at": utc_now()}), "succeeded")
    worker = await ended(stack, {}, member_of=place(maps, "worker"))
    going = stack.job(new_id("j"), spec=JobSpec(image="i"), member_of=place(service, "replica"))
    await stack.record(going, "running")
    await stack.record(stack.job(new_id("j"), None, spec=JobSpec(image="i", needs=(Need(job=needed.id),))), "pending")
    assert sums(await retain(stack, door)).get("jobs") is None  # the log has them still
    await forget_log(stack)
    assert sums(await retain(stack, door, dry_run=True))["jobs"][0] == 1
    run = await retain(stack, door)
    assert (sums(run)["jobs"][0], run.items[0].id) == (1, old.id)
    there = (old, needed, fresh, worker, going, service, maps)
    assert [await gone(door, job) for job in there] == [True, False, False, False, False, False, False]
    assert stack.database["logs"].count_documents({"key": {"$regex": old.id}}) == 0


async def test_a_replica_is_hidden_before_it_goes(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    async with (
        running(StorageStack(nats_with_accounts, mongo_server, mongo_database, tmp_path / "log")) as stack,
        stack.bus(Service.GATEWAY, "g1") as door,
    ):
        service = stack.job(new_id("j"), None, spec=JobSpec(kind="service", service=ServiceSpec(port=80), image="i"))
        await stack.record(service, "pending")
        place = GangPlace(gang_id=service.id, round=1, role="replica", index=0, rank=0, size=0)
        replica = await ended(stack, {}, member_of=place)
        await forget_log(stack)
        for _ in range(2):
            run = await retain(stack, door)
            assert "jobs" not in run.removed
            assert await gone(door, replica)
        await stack.record(
            stack.job(new_id("j"), None, spec=JobSpec(image="i", needs=(Need(job=replica.id),))), "pending"
        )
        await retain(stack, door)
        assert not await gone(door, replica)


async def test_of_one_owner_s_ended_jobs_the_newest_are_kept_by_number(stack: StorageStack, door: Bus) -> None:
    now = utc_now()
    jobs: list[Job] = []
    for number in range(5):
        job = await ended(stack, {}, created_at=now - timedelta(minutes=number))
        job = job.model_copy(update={"ended_at": now})
        await stack.record(job, "succeeded")
        jobs.append(job)
    await forget_log(stack)
    run = await retain(stack, door, limit=1)
    assert sums(run)["jobs"] == (2, 0)
    assert (len(run.items), run.more) == (1, True)
    assert run.items[0].reason == "3 newer ended jobs of its owner are kept"
    assert [await gone(door, job) for job in jobs] == [False, False, False, True, True]
    assert len((await door.ask(JOB_LIST, JobListQuery())).jobs) == 3


async def test_an_old_artifact_goes_unless_a_kept_job_or_a_dataset_has_it(stack: StorageStack, door: Bus) -> None:
    body = os.urandom(1000)
    unused, source, given, dataset = [await upload(door, body + bytes([number])) for number in range(4)]
    await ended(stack, {}, spec=JobSpec(image="i", source=source), owner="u2", created_at=utc_now())
    spec = JobSpec(image="i", inputs={"in": Input(source=f"artifact:{given}", artifact=given)})
    await stack.record(stack.job(new_id("j"), None, spec=spec), "pending")
    stack.database["datasets"].insert_one({"_id": "d", "versions": [{"version": 1, "artifact_id": dataset}]})
    assert sums(await retain(stack, door)).get("artifacts") is None, "they are young"
    age(stack)
    planned = await retain(stack, door, dry_run=True)
    done = await retain(stack, door)
    for run in (planned, done):
        assert (sums(run)["artifacts"], sums(run)["bytes"]) == ((1, 1001), (1, 1001))
        assert [item.id for item in run.items if item.kind == "artifacts"] == [unused]
    with pytest.raises(NotFound):
        await door.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=unused))
    for artifact_id in (source, given, dataset):
        blob = (await door.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=artifact_id))).blob
        assert hashlib.sha256(await read(door, blob)).hexdigest() == blob.sha256


async def test_what_is_hidden_cannot_be_begun_to_need_and_comes_back_if_something_did(
    nats_with_accounts: NatsServer, mongo_server: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    async with (
        running(StorageStack(nats_with_accounts, mongo_server, mongo_database, tmp_path / "log")) as stack,
        stack.bus(Service.GATEWAY, "g1") as door,
    ):
        artifact_id = await upload(door, b"used after all")
        age(stack)
        job = await ended(stack, {"x": b"x"}, spec=JobSpec(kind="gang", gang=GANG, image="i"))
        member = await ended(stack, {}, member_of=GangPlace(gang_id=job.id, round=1, role="w", index=0, rank=0, size=1))
        await forget_log(stack)
        run = await retain(stack, door)
        assert {kind: one.count for kind, one in run.hidden.items()} == {"jobs": 1, "artifacts": 1}
        assert "jobs" not in run.removed
        assert [await gone(door, one) for one in (job, member)] == [True, True]
        assert not (await door.ask(JOB_LIST, JobListQuery())).jobs
        with pytest.raises(NotFound):
            await door.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=artifact_id))
        # Handed in by a gateway that had looked just before.
        spec = JobSpec(image="i", source=artifact_id, needs=(Need(job=job.id),))
        await stack.record(stack.job(new_id("j"), None, spec=spec), "pending")
        assert "jobs" not in (await retain(stack, door)).hidden
        assert [await gone(door, one) for one in (job, member)] == [False, False]
        blob = (await door.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=artifact_id))).blob
        assert await read(door, blob) == b"used after all"


async def test_one_run_is_at_work_at_a_time_and_its_id_begins_it_once(stack: StorageStack, door: Bus) -> None:
    stack.database["meta"].insert_one({"_id": "retention", "holder": "other", "until_us": 2**60})
    with pytest.raises(WherryError) as caught:
        await door.ask(RETENTION_RUN, RetentionAsk(run_id="r1"))
    assert caught.value.code == "conflict"
    stack.database["meta"].update_one({"_id": "retention"}, {"$set": {"until_us": 0}})
    first = await door.ask(RETENTION_RUN, RetentionAsk(run_id="r1"))
    async with asyncio.timeout(120):
        while first.ended_at is None:
            first = await door.ask(RETENTION_GET, RetentionQuery(run_id="r1"))
    assert await door.ask(RETENTION_RUN, RetentionAsk(run_id="r1")) == first
    with pytest.raises(NotFound):
        await door.ask(RETENTION_GET, RetentionQuery(run_id="r2"))


async def test_who_sees_that_a_run_has_ended_may_begin_the_next(
    stack: StorageStack, door: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RetentionStore.unlock

    async def slow(*args: Any) -> None:
        await asyncio.sleep(0.5)
        await whole(*args)

    monkeypatch.setattr(RetentionStore, "unlock", slow)
    for _ in range(2):
        await retain(stack, door, dry_run=True)


async def test_bytes_that_are_stored_again_while_they_are_collected_are_there_or_are_asked_for_again(
    stack: StorageStack, door: Bus, mongo_server: str
) -> None:
    """Commits of bytes against sweeps of them, over and over: who was told "stored" reads the same bytes."""
    mongo = Mongo(mongo_server, stack.database.name)
    stop, swept = asyncio.Event(), 0

    async def sweep(artifacts: Artifacts) -> None:
        nonlocal swept
        while not stop.is_set():
            swept += await artifacts.collect(utc_now() - timedelta(hours=1))

    async def commit(body: bytes) -> None:
        rounds = 0
        while rounds < 20 or (swept <= 2 and not sweeping.done()):  # until they have met
            rounds += 1
            try:
                artifact_id = await upload(door, body)
            except WherryError as error:
                assert error.retryable, error
                continue
            found = await door.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=artifact_id))
            assert await read(door, found.blob) == body
            stack.database["fs.files"].update_one({"metadata.sha256": found.blob.sha256}, {"$set": {"uploadDate": NOW}})
            await UploadStore(mongo).remove_artifact(artifact_id)

    async with stack.bus(Service.STORAGE) as bus:
        store = JobStore(mongo)
        artifacts = Artifacts(GridFs(mongo), UploadStore(mongo), Jobs(bus, store, ProjectionMark()), store)
        sweeping = asyncio.create_task(sweep(artifacts))
        try:
            await asyncio.gather(*(commit(os.urandom(size)) for size in (5, 700_000) for _ in range(3)))
        finally:
            stop.set()
            await sweeping
        for kept in stack.database["artifacts"].find():  # of a commit whose answer did not come in time
            await UploadStore(mongo).remove_artifact(kept["_id"])
        settle(stack)
        stack.database["blob_refs"].update_many({}, {"$set": {"at": NOW}})  # of commits that were refused
        await artifacts.collect(utc_now() - timedelta(hours=1))
    mongo.close()
    for name in ("artifacts", "blob_refs", "fs.files", "fs.chunks"):
        assert stack.database[name].count_documents({}) == 0, name
