"""One scheduler after the other, and two at a time: who leads, who knows, and what a broken log entry does."""

import asyncio
import base64
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from infra.bootstrap import bootstrap
from services.scheduler.adapters.lease import Lease
from services.scheduler.recovery import Snapshots, Standby
from services.scheduler.settings import SchedulerSettings
from services.scheduler.shell import Scheduler
from shared import channels
from shared.bus import Bus, Record, job_filter
from shared.channels import Service
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.events import AttemptFinished, AttemptRunning, DeadLetter, JobChanged
from shared.ids import new_id
from shared.job import Job, Owner
from shared.requests.explain import ExplainQuery, PlanQuery
from shared.spec import JobSpec
from shared.states import AttemptState, JobState, PendingCode
from tests.integration.test_scheduler_runs_jobs import (
    PASSWORDS,
    PATIENCE_S,
    Agent,
    Stack,
    moves,
    names,
    stack,
    succeeded,
)

__all__ = ["stack"]
LEADER = "wherry.leader.scheduler"


@contextlib.asynccontextmanager
async def in_this_process(stack: Stack, **extra: Any) -> AsyncIterator[Scheduler]:
    """A scheduler whose parts a test can reach."""
    settings = SchedulerSettings(
        nats_url=stack.nats.url,
        nats_user="scheduler",
        nats_password=SecretStr(PASSWORDS["scheduler"]),
        scheduler_leader_lease_s=10,
        scheduler_leader_renew_s=0.5,
        **extra,
    )
    async with Bus.connect(settings, Service.SCHEDULER) as bus:
        scheduler = Scheduler(bus, settings, new_id("s"))
        running = asyncio.create_task(scheduler.run())
        try:
            yield scheduler
        finally:
            running.cancel()
            await asyncio.wait([running])


async def epoch_above(agent: Agent, floor: int) -> int:
    """Heartbeat until a leader answers whose epoch is above *floor*."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(Exception):
                answer = await agent.bus.ask(channels.HEARTBEAT, agent.heartbeat(), timeout_s=2, node_id=agent.id)
                if answer.epoch > floor:
                    return answer.epoch
            await asyncio.sleep(0.05)


async def started(agent: Agent, job_id: str) -> int:
    """Take the order to start, asking again where the one that no longer leads was the first to answer."""
    while True:
        try:
            return (await agent.ordered(job_id, "start")).attempt
        except WherryError as problem:
            assert problem.retryable


async def write(stack: Stack, job: Job, event: str, epoch: int, after: int) -> int:
    """Write an event about a job as another scheduler would."""
    params = {"owner": job.owner.id, "job_id": job.id, "event": event}
    made = stack.operator.event(channels.JOB_CHANGED, JobChanged(job=job, epoch=epoch), subject=job.id, **params)
    return (await stack.operator.record(Record(channels.JOB_CHANGED, params, made, (job_filter(job.id), after)))).seq


async def letters(bus: Bus) -> list[DeadLetter]:
    """Return all dead letters, oldest first."""
    found: list[DeadLetter] = []
    async for messages in bus.follow(channels.DLQ, ["wherry.dlq.>"], start_seq=1):
        found += [one.data for one in messages if one.data is not None]
        if not messages:
            break
    return found


def cancelled(job: Job) -> Job:
    return job.model_copy(update={"state": JobState.CANCELLED, "ended_at": utc_now()})


def logged(stack: Stack, words: str) -> int:
    return sum(process.log.read_text().count(words) for process in stack.schedulers)


# --- who leads ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_hot_standby_leads_soon_and_has_read_a_long_log_before(stack: Stack, number) -> None:
    as_set = {"WHERRY_SCHEDULER_LEADER_LEASE_S": "4", "WHERRY_SCHEDULER_LEADER_RENEW_S": "1"}
    leader = await stack.scheduler(**as_set)
    agent = await stack.agent()
    first = await epoch_above(agent, 0)
    now = utc_now()
    records: list[Record] = []
    for n in range(10_000):  # a queue that no node can take
        spec = JobSpec(runtime="process", command="true", resources={"cpus": 64}, name=f"job {n}")
        job = Job(id=new_id("j"), owner=Owner(id="u1", name="ada"), spec=spec, created_at=now, updated_at=now)
        params = {"owner": "u1", "job_id": job.id}
        event = stack.gateway.event(channels.JOB_CREATED, JobChanged(job=job), subject=job.id, **params)
        records.append(Record(channels.JOB_CREATED, params, event))
    for begin in range(0, len(records), 500):
        await asyncio.gather(*(stack.operator.record_grouped(one) for one in records[begin : begin + 500]))
    standby = await stack.scheduler(**as_set)
    async with asyncio.timeout(PATIENCE_S):
        while b"caught_up" not in standby.log.read_bytes():
            await asyncio.sleep(0.1)
    assert leader.process is not None
    leader.process.send_signal(number)
    began = time.monotonic()
    await epoch_above(agent, first)
    print(f"fail-over after {number.name}: {time.monotonic() - began:.1f} s")
    # How long that takes is for a benchmark: about 5 s on a quiet machine.
    told = {line["action"]: line for line in map(json.loads, standby.log.read_text().splitlines())}
    assert told["caught_up"]["jobs"] == told["taken_over"]["jobs"] == 10_000
    job_id = await stack.submit()
    assert (await agent.ordered(job_id, "start")).attempt == 1


async def test_a_scheduler_that_is_started_again_under_its_name_does_not_wait_for_its_lease(stack: Stack) -> None:
    as_set = {"WHERRY_SCHEDULER_LEADER_LEASE_S": "60", "WHERRY_SCHEDULER_LEADER_RENEW_S": "1"}
    first = await stack.scheduler(**as_set, WHERRY_SCHEDULER_ID="one")
    agent = await stack.agent()
    epoch = await epoch_above(agent, 0)
    first.process.kill()
    await first.process.ended()
    await stack.scheduler(**as_set, WHERRY_SCHEDULER_ID="one")
    assert await epoch_above(agent, epoch) > epoch


async def test_a_leader_keeps_a_snapshot_soon_where_those_before_it_died_too_early_to_keep_one(stack: Stack) -> None:
    agent = await stack.agent()
    job_id = await stack.submit(resources={"cpus": 64})  # which no node can take
    await stack.scheduler(WHERRY_SCHEDULER_SNAPSHOT_INTERVAL_S="3600")
    await epoch_above(agent, 0)
    async with asyncio.timeout(PATIENCE_S):
        while (kept := await Snapshots(stack.operator).load()) is None:
            await asyncio.sleep(0.05)
    assert [job.id for job, _ in kept.jobs] == [job_id]


async def test_a_renewal_that_was_cut_off_on_its_way_does_not_keep_a_lease_from_being_released(stack: Stack) -> None:
    for last, left in ((b"one 5", b"free 5"), (b"another", b"another")):
        lease = Lease(stack.operator, "one", 60, 1)
        await lease.acquire()
        held, _ = await stack.operator.get_last(channels.LEADER, LEADER) or (0, b"")
        await stack.operator.put(LEADER, last, expect_seq=held)  # stored, and the lease has not heard of it
        await lease.release()
        assert (await stack.operator.get_last(channels.LEADER, LEADER) or (0, b""))[1] == left


async def test_a_leader_that_is_resumed_while_the_next_one_works_harms_no_job(stack: Stack) -> None:
    first, _ = await stack.scheduler(), await stack.scheduler()
    agent = await stack.agent()
    epoch = await epoch_above(agent, 0)
    assert first.process is not None
    small = {"resources": {"cpus": 0.01, "memory": "10MiB", "disk": "1MiB"}}
    jobs = [await stack.submit(**small) for _ in range(10)]
    paused = next(p for p in stack.schedulers if b'"leading"' in p.log.read_bytes())
    assert paused.process is not None
    paused.process.send_signal(signal.SIGSTOP)
    jobs += await asyncio.gather(*(stack.submit(**small) for _ in range(40)))
    await epoch_above(agent, epoch)
    for number, job_id in enumerate(jobs):
        if number == 5:
            paused.process.send_signal(signal.SIGCONT)  # in the middle of the other's work
        await agent.report(job_id, succeeded(await started(agent, job_id)))
    for job_id in jobs:
        await stack.until(job_id, lambda job: job.is_terminal)
        assert moves(await stack.events(job_id)) == ["created", "placed", "succeeded"]


async def test_an_epoch_that_an_agent_has_seen_is_surpassed_and_never_falls_again(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    agent.epoch = 5000  # the broker's data was set back since
    assert await epoch_above(agent, 5000) < 5100
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await stack.schedulers[0].stop()
    assert (await stack.operator.get_last(channels.LEADER, LEADER) or (0, b""))[1].startswith(b"free 4")
    await stack.operator.api(f"STREAM.DELETE.{channels.LEADER}", {})
    await bootstrap(stack.operator, recreate=[channels.LEADER])
    await stack.scheduler()
    again = await stack.agent("n2")  # which has seen nothing: the log of jobs tells
    assert await epoch_above(again, 5000) < 10_000


async def test_a_lie_about_an_epoch_does_not_use_them_up(stack: Stack) -> None:
    await stack.scheduler()
    liar, honest = await stack.agent("n1"), await stack.agent("n2")
    liar.epoch = 2**60
    answered = await liar.bus.ask(channels.HEARTBEAT, liar.heartbeat(), retry_s=PATIENCE_S, node_id="n1")
    async with asyncio.timeout(PATIENCE_S):
        while not logged(stack, "epoch_claim_refused"):
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    assert (await honest.beat()).epoch == answered.epoch


# --- two that both believe to lead -------------------------------------------------------------------------------


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders hear nothing of the log once they lead, so what others write meets them as a conflict."""

    async def rest(_: Standby) -> AsyncIterator[list[Any]]:
        await asyncio.Event().wait()
        yield []

    monkeypatch.setattr(Standby, "rest", rest)


@pytest.mark.usefixtures("deaf")
async def test_a_decision_about_a_job_that_has_moved_on_gives_way_to_what_the_log_holds(stack: Stack) -> None:
    job_id, other = await stack.submit(), await stack.submit()
    async with in_this_process(stack):
        agent = await stack.agent()
        async with asyncio.timeout(PATIENCE_S):
            while (found := await stack.operator.get_last(channels.LEADER, LEADER)) is None or found[1] == b"free":
                await asyncio.sleep(0.05)
        [(_, created, seq)] = await stack.events(job_id)
        await write(stack, cancelled(created.job), "cancelled", 1, seq)
        assert (await agent.ordered(other, "start")).attempt == 1
    assert moves(await stack.events(job_id)) == ["created", "cancelled"]
    assert moves(await stack.events(other)) == ["created", "placed"]


@pytest.mark.usefixtures("deaf")
async def test_a_leader_that_meets_a_later_ones_event_steps_down_and_comes_back_above_it(stack: Stack) -> None:
    job_id, other = await stack.submit(), await stack.submit()
    deposed = REGISTRY.get_sample_value("wherry_scheduler_deposed_total") or 0
    async with in_this_process(stack):
        agent = await stack.agent()
        async with asyncio.timeout(PATIENCE_S):
            while (found := await stack.operator.get_last(channels.LEADER, LEADER)) is None or found[1] == b"free":
                await asyncio.sleep(0.05)
        [(_, created, seq)] = await stack.events(job_id)
        await write(stack, cancelled(created.job), "cancelled", 7000, seq)
        assert await epoch_above(agent, 7000) < 7100
        assert (await agent.ordered(other, "start")).attempt == 1
    assert REGISTRY.get_sample_value("wherry_scheduler_deposed_total") == deposed + 1
    assert moves(await stack.events(job_id)) == ["created", "cancelled"]


async def test_a_leader_that_reads_a_later_ones_event_steps_down(stack: Stack) -> None:
    job_id = await stack.submit()
    await stack.scheduler()
    agent = await stack.agent()
    await epoch_above(agent, 0)
    await stack.until(job_id, lambda job: job.state is JobState.PLACED)
    _, placed, seq = (await stack.events(job_id))[-1]
    await write(stack, cancelled(placed.job), "cancelled", 7000, seq)
    assert await epoch_above(agent, 7000) < 7100
    assert logged(stack, "epoch 7000 has written") == 1


async def test_a_scheduler_whose_log_is_removed_ends_and_does_not_begin_anew(stack: Stack) -> None:
    scheduler = await stack.scheduler()
    agent = await stack.agent()
    await epoch_above(agent, 0)
    await stack.operator.api(f"STREAM.DELETE.{channels.JOBS}", {})
    assert scheduler.process is not None
    async with asyncio.timeout(PATIENCE_S):
        assert await scheduler.process.ended() == 75
    again = await stack.scheduler()
    assert again.process is not None
    async with asyncio.timeout(PATIENCE_S):
        assert await again.process.ended() == 75
    assert b"stream WHERRY_JOBS is missing" in again.log.read_bytes()


# --- entries that cannot be read ---------------------------------------------------------------------------------


async def test_a_thousand_broken_entries_stop_nobody_and_each_is_kept_once(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    await stack.until(job_id, lambda job: job.state is JobState.RUNNING)
    subject = f"wherry.attempt.n1.{job_id}.finished"
    for _ in range(2):
        await asyncio.gather(*(stack.operator.put(subject, b"no event %d" % n, deadline_s=15) for n in range(500)))
    began = time.monotonic()
    await agent.report(job_id, succeeded())
    await stack.until(job_id, lambda job: job.is_terminal)
    assert time.monotonic() - began < 30
    async with asyncio.timeout(PATIENCE_S):
        while len(kept := await letters(stack.operator)) < 1000:
            await asyncio.sleep(0.1)
    first = kept[0]
    assert (first.reader, first.stream, first.target) == ("scheduler", "WHERRY_JOBS", subject)
    assert first.id == f"WHERRY_JOBS.{first.seq}.scheduler"
    assert base64.b64decode(first.body).startswith(b"no event")
    assert "JSON" in first.reason
    assert len({one.id for one in kept}) == len(kept) == 1000
    await stack.schedulers[0].stop(signal.SIGKILL)
    await stack.scheduler()
    await epoch_above(agent, agent.epoch)
    assert len(await letters(stack.operator)) == 1000


async def test_a_replayed_letter_counts_as_if_it_had_come_then_and_once(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    running = await stack.until(job_id, lambda job: job.state is JobState.RUNNING)
    event = agent.bus.event(channels.ATTEMPT_FINISHED, succeeded(), subject=job_id, node_id="n1", job_id=job_id)

    def letter(seq: int, body: bytes, node: str = "n1") -> DeadLetter:
        return DeadLetter(
            id=f"WHERRY_JOBS.{seq}.scheduler",
            stream="WHERRY_JOBS",
            seq=seq,
            reader="scheduler",
            target=f"wherry.attempt.{node}.{job_id}.finished",
            reason="an older version could not read it",
            body=base64.b64encode(body).decode(),
            at=utc_now(),
        )

    for one in (
        letter(running.input_seq, event.to_bytes()),  # an event already holds what was said up to there
        letter(running.input_seq + 1, event.to_bytes(), node="n2"),  # another node's word
        letter(running.input_seq + 1, b"still no event"),
    ):
        await stack.operator.ask(channels.REPLAY, one, reader="scheduler")
    async with asyncio.timeout(PATIENCE_S):
        while not (again := await letters(stack.operator)):
            await asyncio.sleep(0.1)
    assert (again[-1].id, again[-1].body) == (
        f"WHERRY_JOBS.{running.input_seq + 1}.scheduler",
        base64.b64encode(b"still no event").decode(),
    )
    assert names(await stack.events(job_id)) == ["created", "placed", "running"]
    await stack.operator.ask(channels.REPLAY, letter(running.input_seq + 1, event.to_bytes()), reader="scheduler")
    job = await stack.until(job_id, lambda job: job.is_terminal)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


# --- questions ---------------------------------------------------------------------------------------------------


async def test_the_leader_explains_jobs_and_plans_and_knows_no_ended_ones(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit(resources={"cpus": 64})
    with_one = await stack.submit()
    await agent.ordered(with_one, "start")
    said = await stack.gateway.ask(channels.EXPLAIN, ExplainQuery(job_id=job_id))
    assert (said.state, said.never, said.ahead, said.queue_length) == ("queued", True, 0, 1)
    assert [reason.code for reason in said.reasons] == [PendingCode.CPUS]
    assert said.suggestion is not None
    assert said.suggestion.set == {"resources.cpus": 3.0}
    placed = await stack.gateway.ask(channels.EXPLAIN, ExplainQuery(job_id=with_one))
    assert (placed.node, placed.would_start) == ("n1", True)
    spec = JobSpec(runtime="process", command="true", resources={"cpus": 3})
    query = PlanQuery(owner=Owner(id="u2", name="bob"), spec=spec)
    planned = await stack.gateway.ask(channels.PLAN, query)
    assert (planned.would_start, planned.node) == (True, "n1")
    await agent.report(with_one, AttemptFinished(attempt=1, at=utc_now(), state=AttemptState.SUCCEEDED))
    await stack.until(with_one, lambda job: job.is_terminal)
    with pytest.raises(NotFound, match="is not active"):
        await stack.gateway.ask(channels.EXPLAIN, ExplainQuery(job_id=with_one))
