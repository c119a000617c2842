"""What storage answers about jobs, output, nodes and notifications, over a real broker and mongod."""

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.storage.adapters.job_store import JobStore
from services.storage.shell import arrivals, jobs
from shared import channels as c
from shared.blobs import BlobClient
from shared.bus import Bus, Record
from shared.channels import Service
from shared.clock import utc_now
from shared.errors import WherryError
from shared.events import DeliveryRequested, DeliveryTried, Event, LogLine, MetricPoint, OutputBatch, Progress
from shared.fleet import Capacity, DesiredState, Heartbeat, NodeChanged, NodeInfo, NodeRecord, Quota, QuotaSet
from shared.ids import new_id
from shared.job import Attempt, BlobRef, Job, OutputsRef
from shared.manifest import Entry, Manifest
from shared.model import Empty
from shared.requests.accounts import Login, TokenQuery, UserCreate, UserName
from shared.requests.blobs import BlobScope
from shared.requests.jobs import EventQuery, JobListQuery, JobQuery, LogQuery, MetricQuery
from shared.requests.nodes import NodeListQuery, NodeQuery
from shared.requests.outputs import OutputQuery
from shared.spec import JobSpec
from shared.states import AttemptState, JobState, NodeCondition, NodeDuty

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let storage wait for what the log has as long as that takes: by itself it shows what it has after 5 s."""
    for module in (jobs, arrivals):
        monkeypatch.setattr(module, "WAIT_S", 60.0)


@pytest.fixture
async def gateway(storage: Any) -> AsyncIterator[Bus]:
    settings = storage.settings("gateway").model_copy(update={"request_timeout_s": 90.0})
    async with Bus.connect(settings, Service.GATEWAY, peer="g1") as bus:
        yield bus


async def soon(question: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as expected: what is not promised to be seen at once."""
    async with asyncio.timeout(60):
        while not is_so(answer := await question()):
            await asyncio.sleep(0.05)
    return answer


async def test_a_job_is_never_older_than_the_log(storage: Any, gateway: Bus) -> None:
    for state in (JobState.QUEUED, JobState.PLACED, JobState.RUNNING):
        seq = await storage.record(storage.job(state=state), state.value)
        view = await gateway.ask(c.JOB_GET, JobQuery(job_id="j1"))
        assert (view.job.state, view.seq) == (state, seq)


async def test_a_job_that_is_not_there_is_not_found_and_a_wildcard_is_no_job(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    for job_id in ("j2", "*", ">", "j1.>", ""):
        with pytest.raises(WherryError) as caught:
            await gateway.ask(c.JOB_GET, JobQuery(job_id=job_id))
        assert caught.value.code == "not_found"


async def test_a_list_has_what_was_just_written_in_pages_newest_first(storage: Any, gateway: Bus) -> None:
    for number in range(7):
        when = NOW + timedelta(seconds=number // 2)  # some at the very same time
        await storage.record(storage.job(f"j{number}", created_at=when, owner=f"u{number % 2}"), "running")
    seen: list[str] = []
    cursor = None
    while True:
        page = await gateway.ask(c.JOB_LIST, JobListQuery(limit=3, cursor=cursor))
        seen += [view.job.id for view in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
    mine = await gateway.ask(c.JOB_LIST, JobListQuery(owner_id="u1"))
    assert [view.job.id for view in mine.jobs] == ["j5", "j3", "j1"]


async def test_a_list_is_filtered_by_state_name_and_label(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job("j1", spec=JobSpec(image="x", name="a", labels=("red", "big"))), "running")
    await storage.record(storage.job("j2", None, spec=JobSpec(image="x", name="b")), "created")
    for query, wanted in (
        (JobListQuery(states=("running", "failed")), ["j1"]),
        (JobListQuery(name="b"), ["j2"]),
        (JobListQuery(label="red"), ["j1"]),
        (JobListQuery(label='{"$ne": ""}'), []),
        (JobListQuery(kind="run"), ["j1", "j2"]),
    ):
        found = await gateway.ask(c.JOB_LIST, query)
        assert sorted(view.job.id for view in found.jobs) == wanted


async def test_large_jobs_are_listed_in_answers_that_fit_the_broker(storage: Any, gateway: Bus) -> None:
    for number in range(6):
        spec = JobSpec(image="x", params={"text": "x" * 200_000})
        await storage.record(
            storage.job(f"j{number}", created_at=NOW + timedelta(seconds=number), spec=spec), "running"
        )
    first = await gateway.ask(c.JOB_LIST, JobListQuery())
    assert 0 < len(first.jobs) < 6
    rest = await gateway.ask(c.JOB_LIST, JobListQuery(cursor=first.cursor))
    assert [view.job.id for view in (*first.jobs, *rest.jobs)] == ["j5", "j4", "j3", "j2", "j1", "j0"]


async def test_events_come_byte_for_byte_in_order_after_a_sequence(storage: Any, gateway: Bus) -> None:
    seqs = [await storage.record(storage.job(owner="u1"), event) for event in ("pending", "placed", "running")]
    await storage.record(storage.job("j2", owner="u2"), "running")
    page = await gateway.ask(c.JOB_EVENTS, EventQuery(job_id="j1"))
    assert [one.seq for one in page.events] == seqs
    async with storage.bus(Service.SCHEDULER) as bus:
        kept = await bus.read(c.JOBS, seqs[1])
    assert kept
    assert page.events[1].event == kept.body.decode()
    after = await gateway.ask(c.JOB_EVENTS, EventQuery(owner_id="u1", after_seq=seqs[0], limit=1))
    assert [one.seq for one in after.events] == [seqs[1]]
    assert len((await gateway.ask(c.JOB_EVENTS, EventQuery())).events) == 4


async def test_a_storage_that_was_away_catches_up_and_projects_each_event_once(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    await gateway.ask(c.JOB_LIST, JobListQuery())
    await storage.stop()
    for number in range(20):
        await storage.record(storage.job(f"k{number}"), "running")
    await storage.start()
    await storage.ready()
    await soon(lambda: gateway.ask(c.COUNTS, Empty()), lambda counts: counts.jobs == {"running": 21})
    assert storage.database["events"].count_documents({}) == 21


async def test_a_job_whose_events_have_expired_is_still_known(storage: Any, gateway: Bus) -> None:
    seq = await storage.record(storage.job(), "running")
    await soon(lambda: gateway.ask(c.COUNTS, Empty()), lambda counts: counts.jobs == {"running": 1})
    async with Bus.connect(storage.settings("operator"), Service.STORAGE) as operator:
        await operator.api(f"STREAM.PURGE.{c.JOBS}", {"filter": "wherry.job.*.j1.>"})
    view = await gateway.ask(c.JOB_GET, JobQuery(job_id="j1"))
    assert (view.job.id, view.seq) == ("j1", seq)


# --- output ------------------------------------------------------------------------------------------------------


def lines(first: int, last: int) -> OutputBatch:
    return OutputBatch(
        lines=tuple(
            LogLine(n=n, t=NOW + timedelta(seconds=n), s="e" if n % 2 else "o", x=f"line {n}")
            for n in range(first, last + 1)
        )
    )


async def say(storage: Any, node_id: str, *batches: OutputBatch, job_id: str = "j1", attempt: str = "1") -> None:
    async with storage.bus(Service.NODE_AGENT, node_id) as bus:
        for batch in batches:
            subject = c.OUTPUT.subject(node_id=node_id, job_id=job_id, attempt=attempt)
            await bus.put(subject, batch.to_bytes())


async def test_lines_come_once_each_and_only_from_the_attempts_own_node(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(node="n1"), "running")
    await say(storage, "n1", lines(1, 10), lines(1, 10), lines(8, 20), lines(31, 40))
    await say(storage, "n2", lines(1, 100))

    async def ask(**query: Any) -> list[int]:
        return [line.n for line in (await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1", **query))).lines]

    everything = [*range(1, 21), *range(31, 41)]
    await soon(ask, lambda numbers: numbers == everything)
    assert await ask(after=15) == [n for n in everything if n > 15]
    assert await ask(tail=12) == everything[-12:]
    assert await ask(tail=3, stream="e") == [35, 37, 39]
    assert await ask(stream="o", limit=3) == [2, 4, 6]
    assert await ask(since=NOW + timedelta(seconds=18)) == [n for n in everything if n >= 18]
    assert await ask(attempt=2) == []
    page = await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1", limit=5))
    assert page.more
    assert page.lines[0].x == "line 1"


async def test_long_lines_come_in_answers_that_fit_the_broker(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    for n in range(1, 101):
        await say(storage, "n1", OutputBatch(lines=(LogLine(n=n, t=NOW, x="\x1b" * 10_000),)))
    seen: list[int] = []

    async def ask() -> Any:
        return await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1", tail=1))

    await soon(ask, lambda page: page.lines and page.lines[0].n == 100)
    while True:
        page = await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1", after=seen[-1] if seen else 0))
        seen += [line.n for line in page.lines]
        if not page.more:
            break
    assert seen == list(range(1, 101))


async def test_output_that_cannot_be_kept_does_not_hold_up_the_rest(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    await say(storage, "n1", OutputBatch(lines=(LogLine(n=2**80, t=NOW, x="too large a number"),)))
    await say(storage, "n1", lines(1, 1), attempt="not-a-number")
    await say(storage, "n1", lines(1, 3))

    async def ask() -> Any:
        return await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1"))

    page = await soon(ask, lambda page: bool(page.lines))
    assert [line.n for line in page.lines] == [1, 2, 3]


async def test_progress_is_the_newest_word_of_the_current_attempt(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    older, newer = (Progress(fraction=part, message=str(part), at=NOW + timedelta(seconds=part)) for part in (0.2, 0.6))
    await say(storage, "n1", OutputBatch(progress=newer), OutputBatch(progress=older))
    await say(storage, "n2", OutputBatch(progress=Progress(fraction=1, at=NOW + timedelta(days=1))))

    async def ask() -> Any:
        return (await gateway.ask(c.JOB_GET, JobQuery(job_id="j1"))).progress

    assert await soon(ask, lambda progress: progress is not None) == newer
    replaced = Attempt(number=2, node="n2", state=AttemptState.PLACED, placed_at=NOW)
    await storage.record(storage.job(attempt=2, attempts=(replaced,)), "placed")
    assert await ask() is None


async def test_metrics_come_in_order_and_a_repeated_batch_counts_once(storage: Any, gateway: Bus) -> None:
    await storage.record(storage.job(), "running")
    points = [MetricPoint(name="loss", value=1 / n, step=n, at=NOW + timedelta(seconds=n)) for n in range(1, 6)]
    batches = [OutputBatch(metrics=(point,)) for point in points]
    await say(storage, "n1", *batches, *batches)

    async def ask() -> Any:
        return list((await gateway.ask(c.JOB_METRICS, MetricQuery(job_id="j1"))).points)

    await soon(ask, lambda found: len(found) >= 5)
    await say(storage, "n1", OutputBatch(progress=Progress(fraction=1, at=NOW)))
    view = lambda: gateway.ask(c.JOB_GET, JobQuery(job_id="j1"))  # noqa: E731
    await soon(view, lambda view: view.progress is not None)  # so everything before it is kept as well
    assert await ask() == points


async def test_whoever_sees_a_jobs_end_sees_all_that_it_has_said(
    storage: Any, gateway: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = JobStore.write_output

    async def slow(*args: Any) -> None:
        await asyncio.sleep(0.7)
        await whole(*args)

    monkeypatch.setattr(JobStore, "write_output", slow)
    job: Job = storage.job()
    await storage.record(job, "running")
    half, loss = Progress(fraction=0.5, at=NOW), MetricPoint(name="loss", value=0.1, step=1, at=NOW)
    await say(storage, "n1", lines(1, 3))
    await storage.record(job.model_copy(update={"state": JobState.SUCCEEDED, "ended_at": utc_now()}), "succeeded")
    assert len((await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1"))).lines) == 3
    await say(storage, "n1", OutputBatch(metrics=(loss,)))
    assert (await gateway.ask(c.JOB_METRICS, MetricQuery(job_id="j1"))).points == (loss,)
    await say(storage, "n1", OutputBatch(progress=half))
    assert (await gateway.ask(c.JOB_GET, JobQuery(job_id="j1"))).progress == half
    # Another process has written all that, and this one finds it written.
    await storage.stop()
    await storage.start()
    await storage.ready()
    assert len((await gateway.ask(c.JOB_LOGS, LogQuery(job_id="j1"))).lines) == 3


# --- outputs -----------------------------------------------------------------------------------------------------


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_outputs_are_what_the_attempt_itself_has_stored(storage: Any, gateway: Bus) -> None:
    secret = (await BlobClient(gateway, "gateway", "g1").upload(pieces(b"secret"), BlobScope(owner_id="u2"))).blob
    job: Job = storage.job()
    await storage.record(job, "running")
    scope = BlobScope(job_id="j1", attempt=1)
    async with storage.bus(Service.NODE_AGENT, "n1") as bus:
        client = BlobClient(bus, "node", "n1")
        kept = [(await client.upload(pieces(data), scope)).blob for data in (b"model", b"log")]
        manifest = Manifest(
            job_id="j1", attempt=1, stdout=kept[1],
            entries=(Entry(path="d", kind="dir"), Entry(path="d/model", blob=kept[0]), Entry(path="x", blob=secret)),
        )  # fmt: skip
        manifest_ref = (await client.upload(pieces(manifest.to_bytes()), scope)).blob
    outputs = OutputsRef(manifest=manifest_ref, files=2, bytes=11)

    def ended(outputs: OutputsRef) -> Job:
        attempt = job.attempts[0].model_copy(update={"outputs": outputs, "ended_at": NOW})
        return job.model_copy(update={"state": JobState.SUCCEEDED, "outputs": outputs, "attempts": (attempt,)})

    assert (await gateway.ask(c.JOB_OUTPUTS, OutputQuery(job_id="j1"))).entries == ()
    await storage.record(ended(outputs), "succeeded")
    page = await gateway.ask(c.JOB_OUTPUTS, OutputQuery(job_id="j1"))
    assert [entry.path for entry in page.entries] == ["_stdout.txt", "d", "d/model"]
    assert any("x:" in remark for remark in page.skipped)
    one = await gateway.ask(c.JOB_OUTPUTS, OutputQuery(job_id="j1", path="d/model"))
    assert one.entries[0].blob == kept[0]
    with pytest.raises(WherryError) as caught:
        await gateway.ask(c.JOB_OUTPUTS, OutputQuery(job_id="j1", path="x"))
    assert caught.value.code == "not_found"
    foreign = BlobRef(sha256=hashlib.sha256(b"secret").hexdigest(), size=6)
    await storage.record(ended(outputs.model_copy(update={"manifest": foreign})), "succeeded")
    with pytest.raises(WherryError) as caught:
        await gateway.ask(c.JOB_OUTPUTS, OutputQuery(job_id="j1"))
    assert caught.value.code == "corrupt"


# --- nodes and notifications -------------------------------------------------------------------------------------


async def test_a_node_is_seen_while_it_sends_heartbeats(storage: Any, gateway: Bus) -> None:
    async def answer(_: dict[str, str], __: Heartbeat) -> DesiredState:
        return DesiredState(epoch=1)

    def heartbeat(seq: int) -> Heartbeat:
        node = NodeInfo(id="ignored", name="box-1", tags=("gpu",))
        capacity = Capacity(cpus=2, memory=4, disk=8)
        return Heartbeat(node=node, session="s", boot_id="b", seq=seq, capacity=capacity, images=(f"i{seq}",), at=NOW)

    async with storage.bus(Service.SCHEDULER) as scheduler, storage.bus(Service.NODE_AGENT, "n1") as agent:
        await scheduler.serve(c.HEARTBEAT, answer, queue=None)

        async def listed_after(seq: int) -> Any:
            await agent.ask(c.HEARTBEAT, heartbeat(seq), node_id="n1")  # again and again, as nodes do: one may be lost
            return await gateway.ask(c.NODE_LIST, NodeListQuery())

        await soon(lambda: listed_after(1), lambda listed: len(listed.nodes) == 1)

        async def by_name() -> Any:
            await agent.ask(c.HEARTBEAT, heartbeat(2), node_id="n1")
            return await gateway.ask(c.NODE_GET, NodeQuery(node="box-1"))

        view = await soon(by_name, lambda view: view.images == ("i2",))
    assert (view.node.id, view.online, view.node.tags) == ("n1", True, ("gpu",))
    assert (await gateway.ask(c.COUNTS, Empty())).nodes_online == 1
    with pytest.raises(WherryError) as caught:
        await gateway.ask(c.NODE_GET, NodeQuery(node="nobody"))
    assert caught.value.code == "not_found"


async def test_a_jobs_notifications_are_listed_with_their_last_try(storage: Any, gateway: Bus) -> None:
    async def keep(bus: Bus, channel: Any, data: Any) -> None:
        envelope = Event(id=new_id("e"), source="/wherry/notifier", type="t", time=NOW, subject="j1", data=data)
        await bus.record(Record(channel, {"owner": "u1", "job_id": "j1"}, envelope))

    requested = DeliveryRequested(
        delivery_id="d1", job_id="j1", owner_id="u1", event_id="e", event="failed", kind="email", target="a@b", at=NOW
    )
    async with storage.bus(Service.NOTIFIER) as bus:
        await keep(bus, c.DELIVERY_REQUESTED, requested)
        for number, state in ((1, "retrying"), (2, "delivered")):
            tried = DeliveryTried(delivery_id="d1", job_id="j1", owner_id="u1", tries=number, state=state, at=NOW)
            await keep(bus, c.DELIVERY_TRIED, tried)
    ask = lambda: gateway.ask(c.JOB_DELIVERIES, JobQuery(job_id="j1"))  # noqa: E731
    listed = await soon(ask, lambda listed: listed.deliveries and listed.deliveries[0].state == "delivered")
    assert [(one.id, one.tries, one.target) for one in listed.deliveries] == [("d1", 2, "a@b")]


async def test_sigterm_ends_storage_in_order_and_its_log_is_json(storage_process: Any) -> None:
    assert await storage_process.end(signal.SIGTERM) == 0
    actions = [json.loads(line)["action"] for line in storage_process.log.read_text().splitlines()]
    assert actions[-1] == "storage_stopped"


async def record_of_node(storage: Any, node_id: str, **fields: Any) -> None:
    async with storage.bus(Service.SCHEDULER) as bus:
        node = NodeRecord(**{"id": node_id, "name": node_id, "since": NOW} | fields)
        event = bus.event(c.NODE_CHANGED, NodeChanged(node=node, epoch=1), subject=node_id)
        await bus.record(Record(c.NODE_CHANGED, {"node_id": node_id}, event))


async def test_what_the_scheduler_records_of_nodes_is_shown_also_by_a_storage_that_was_away(
    storage: Any, gateway: Bus
) -> None:
    await record_of_node(storage, "n1", duty=NodeDuty.CORDONED)
    await record_of_node(storage, "n2", condition=NodeCondition.LOST)
    counts = await soon(lambda: gateway.ask(c.COUNTS, Empty()), lambda found: found.nodes_total == 2)
    assert (counts.conditions, counts.duties) == ({"online": 1, "lost": 1}, {"cordoned": 1, "active": 1})
    await storage.stop()
    storage.database["nodes"].drop()  # what is projected can be thrown away: a node says and is recorded again
    for number in range(20):
        await record_of_node(storage, "n1", reason=str(number))
    await record_of_node(storage, "n2", forgotten=True)
    await storage.start()
    await storage.ready()
    view = await soon(
        lambda: gateway.ask(c.NODE_LIST, NodeListQuery()),
        lambda page: [one.record.reason for one in page.nodes if one.record] == ["19"],
    )
    assert [one.node.id for one in view.nodes] == ["n1"]


async def test_many_nodes_come_in_pages_that_fit_the_broker_and_none_twice(storage: Any, gateway: Bus) -> None:
    names = [f"box-{number % 7}" for number in range(60)]  # some of one name
    long = tuple(f"registry.example.org/{'x' * 200}:{number}" for number in range(150))
    heartbeats = [
        Heartbeat(node=NodeInfo(id="x", name=name), session="s", boot_id="b", seq=1, images=long,
                  capacity=Capacity(cpus=1, memory=1, disk=1), at=NOW)
        for name in names
    ]  # fmt: skip
    from services.storage.core.fleet import node_upsert  # noqa: PLC0415 - writes what so many agents would have said

    for number, said in enumerate(heartbeats):
        upsert = node_upsert(f"n{number}", said, utc_now())
        storage.database["nodes"].insert_one({"_id": upsert.id, "seq": upsert.version, **upsert.fields})
    seen: list[tuple[str, str]] = []
    cursor = None
    pages = 0
    while True:
        page = await gateway.ask(c.NODE_LIST, NodeListQuery(limit=50, cursor=cursor))
        seen += [(one.node.name, one.node.id) for one in page.nodes]
        pages, cursor = pages + 1, page.cursor
        if cursor is None:
            break
    assert pages > 2
    assert seen == sorted((name, f"n{number}") for number, name in enumerate(names))


async def test_a_quota_is_what_the_log_says_last_and_counts_what_its_owner_holds(storage: Any, gateway: Bus) -> None:
    await gateway.ask(c.USER_CREATE, UserCreate(name="Quinn", password="a long password"))
    owner = (await gateway.ask(c.USER_GET, UserName(name="quinn"))).id
    assert (await gateway.ask(c.QUOTA_GET, UserName(name="quinn"))).quota is None
    for quota in (Quota(cpus=1), Quota(cpus=2, queued=7), None, Quota(gpus=3)):
        event = gateway.event(c.QUOTA_SET, QuotaSet(quota=quota, by="admin", at=NOW), subject=owner)
        await gateway.record(Record(c.QUOTA_SET, {"owner": owner}, event))
        assert (await gateway.ask(c.QUOTA_GET, UserName(name="QUINN"))).quota == quota
    await storage.record(storage.job("j1", owner=owner), "running")
    await storage.record(storage.job("j2", None, owner=owner), "created")
    await storage.record(storage.job("j3", owner=owner, state=JobState.FAILED), "failed")
    await storage.record(storage.job("j4", owner="another"), "running")
    held = await gateway.ask(c.QUOTA_GET, UserName(name="quinn"))
    assert held.by_state == {"running": 1, "queued": 1}
    with pytest.raises(WherryError) as caught:
        await gateway.ask(c.QUOTA_GET, UserName(name="nobody"))
    assert caught.value.code == "not_found"


async def test_a_new_limit_reaches_a_gateway_as_a_principal_that_is_asked_for_again(storage: Any, gateway: Bus) -> None:
    session = await gateway.ask(c.LOGIN, Login(user="admin", password="the admin's password"))
    assert session.principal.queued_max is None
    owner = session.principal.user_id
    revoked: asyncio.Queue[Any] = asyncio.Queue()
    await gateway.listen(c.TOKEN_REVOKED, revoked.put_nowait)
    event = gateway.event(c.QUOTA_SET, QuotaSet(quota=Quota(queued=4), by="admin", at=NOW), subject=owner)
    await gateway.record(Record(c.QUOTA_SET, {"owner": owner}, event))
    async with asyncio.timeout(60):
        assert (await revoked.get()).data.user_id == owner
    assert (await gateway.ask(c.VERIFY, TokenQuery(token=session.token))).queued_max == 4
