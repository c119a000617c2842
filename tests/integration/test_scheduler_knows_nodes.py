"""Nodes' records on a real broker: drained, undrained, kept over restarts, fought over, and forgotten."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from services.scheduler.adapters.lease import DeposedError, Lease
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import Wish
from services.scheduler.core.limits import Now
from services.scheduler.core.membership import NodeDecision
from services.scheduler.core.quarantine import Quarantine
from services.scheduler.settings import SchedulerSettings
from services.scheduler.shell import _Term
from shared import channels
from shared.bus import Record
from shared.clock import utc_now
from shared.events import AttemptFinished, AttemptRunning
from shared.fleet import PROTOCOL, NodeChanged, NodeRecord, NodeWish
from shared.ids import new_id
from shared.job import Failure
from shared.states import AttemptState, EndReason, JobState, NodeCondition, NodeDuty, PendingCode
from tests.integration.test_scheduler_runs_jobs import PATIENCE_S, Agent, Stack, stack, succeeded

__all__ = ["stack"]

_QUICK = {"WHERRY_SCHEDULER_NODE_LEASE_S": "6"}


async def wish(stack: Stack, node: str, verb: str, **fields: Any) -> int:
    """Let an admin want something, as the gateway writes it."""
    data = NodeWish(**({"by": "root", "at": utc_now()} | fields))
    params = {"node_id": node, "verb": verb}
    event = stack.gateway.event(channels.NODE_WISH, data, subject=node, **params)
    return (await stack.gateway.record(Record(channels.NODE_WISH, params, event))).seq


async def records(stack: Stack, node: str = "n1") -> list[tuple[NodeRecord, int]]:
    """Everything that the log of the fleet holds about a node, with the epoch that wrote it."""
    subject = channels.NODE_CHANGED.subject(node_id=node)
    found: list[tuple[NodeRecord, int]] = []
    async for messages in stack.operator.follow(channels.FLEET, [subject], start_seq=1):
        if not messages:
            return found
        found += [(message.data.node, message.data.epoch) for message in messages if message.data is not None]
    raise AssertionError


async def until_record(stack: Stack, node: str, is_so: Callable[[NodeRecord], bool]) -> NodeRecord:
    """Wait until the log of the fleet has a record of which *is_so* holds."""
    subject = channels.NODE_CHANGED.subject(node_id=node)
    async with asyncio.timeout(PATIENCE_S):
        async for messages in stack.operator.follow(channels.FLEET, [subject], start_seq=1):
            for message in messages:
                if message.data is not None and is_so(message.data.node):
                    return message.data.node
    raise AssertionError


class Beating:
    """Agents that heartbeat all the while."""

    def __init__(self, *agents: Agent) -> None:
        self._tasks = [asyncio.create_task(self._beat(agent)) for agent in agents]

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self, agent: Agent) -> None:
        while True:
            await agent.beat()
            await asyncio.sleep(0.3)


async def test_a_drain_with_a_deadline_moves_a_job_to_another_node_and_undrain_takes_the_node_back(
    stack: Stack,
) -> None:
    await stack.scheduler()
    first, second = await stack.agent("n1"), await stack.agent("n2")
    await first.beat()
    job_id = await stack.submit()
    await first.ordered(job_id, "start")
    await first.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    await second.beat()
    await wish(stack, "n1", "drain", deadline_s=1, reason="new disk")
    stop = await first.ordered(job_id, "stop")
    assert stop.reason is EndReason.NODE_DRAINED
    error = Failure(reason=EndReason.NODE_DRAINED, message="The node is being emptied.")
    await first.report(job_id, AttemptFinished(attempt=1, at=utc_now(), state=AttemptState.FAILED, error=error))
    assert (await second.ordered(job_id, "start")).attempt == 2
    await first.ordered(job_id, "forget")
    first.held.clear()
    await first.beat()
    drained = await until_record(stack, "n1", lambda record: record.duty is NodeDuty.DRAINED)
    assert (drained.by, drained.reason, drained.condition) == ("root", "new disk", NodeCondition.ONLINE)
    await second.report(job_id, succeeded(2))
    job = await stack.until(job_id, lambda job: job.is_terminal)
    assert (job.state, job.losses, job.tries) == (JobState.SUCCEEDED, 0, 1)
    await wish(stack, "n1", "undrain")
    await until_record(stack, "n1", lambda record: record.history[-1].what == "active")
    again = await stack.submit(placement={"node": "n1"})
    await first.ordered(again, "start")


async def test_what_a_node_is_to_do_survives_schedulers_and_a_wish_made_while_there_is_none(stack: Stack) -> None:
    leader = await stack.scheduler()
    first, second = await stack.agent("n1"), await stack.agent("n2")
    await first.beat()
    await second.beat()
    await wish(stack, "n1", "cordon", reason="odd noises")
    await until_record(stack, "n1", lambda record: record.duty is NodeDuty.CORDONED)
    await leader.stop(signal.SIGKILL)
    await wish(stack, "n2", "drain")
    await stack.scheduler()
    await until_record(stack, "n2", lambda record: record.duty is NodeDuty.DRAINING)
    await first.beat()
    await second.beat()  # both are heard of before it is said why the job waits
    job_id = await stack.submit()
    async with Beating(first, second):
        waiting = await stack.until(job_id, lambda job: bool(job.pending))
        assert {reason.code: reason.nodes for reason in waiting.pending} == {PendingCode.NODE_CORDONED: 2}
    await wish(stack, "n1", "undrain")
    await first.ordered(job_id, "start")
    epochs = [epoch for _, epoch in await records(stack)]
    assert len(epochs) == 3  # joined, cordoned, active: a restart alone writes nothing
    assert epochs[0] == epochs[1] < epochs[2]


async def test_of_two_agents_with_one_identity_the_older_is_told_to_end(stack: Stack) -> None:
    await stack.scheduler()
    older = await stack.agent("n1")
    job_id = await stack.submit()
    await older.ordered(job_id, "start")
    newer = await stack.agent("n1")
    newer.held = set(older.held)
    assert not (await newer.beat()).evicted
    asked = await older.beat()
    assert (asked.evicted, asked.more, asked.assignments) == (False, True, ())
    assert (await older.beat()).evicted
    told = await newer.beat()
    assert (told.evicted, [one.action for one in told.assignments]) == (False, ["keep"])
    record = await until_record(stack, "n1", lambda record: record.history[-1].what == "evicted")
    assert (record.session, older.session in record.history[-1].reason) == (newer.session, True)


async def test_an_agent_that_starts_again_is_not_taken_for_two(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent("n1")
    for _ in range(4):
        agent.session, agent.seq = new_id("s"), 0
        assert not (await agent.beat()).evicted
        assert not (await agent.beat()).evicted
    record = await until_record(stack, "n1", lambda record: record.session == agent.session)
    assert {change.what for change in record.history} == {"joined"}


async def test_a_node_that_is_silent_is_lost_comes_back_after_three_heartbeats_and_can_be_forgotten(
    stack: Stack,
) -> None:
    await stack.scheduler(**_QUICK)
    first, second = await stack.agent("n1"), await stack.agent("n2")
    await first.beat()
    async with Beating(second):
        await until_record(stack, "n1", lambda record: record.condition is NodeCondition.LOST)
        job_id = await stack.submit(placement={"node": "n1"})
        answers = [await first.beat() for _ in range(3)]
        assert not any(answer.assignments for answer in answers[:2])
        await first.ordered(job_id, "start")
        back = await until_record(stack, "n1", lambda record: record.history[-1].what == "online")
        assert back.condition is NodeCondition.ONLINE
        await until_record(stack, "n1", lambda r: r.condition is NodeCondition.LOST and r.since > back.since)
        await wish(stack, "n1", "forget")
        await until_record(stack, "n1", lambda record: record.forgotten)


async def test_an_agent_of_a_far_version_is_refused_and_told_why(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent("n1")
    told = await agent.beat()
    assert (told.protocol, told.refused) == (PROTOCOL, "")
    agent.protocol = PROTOCOL + 2
    agent.session = new_id("s")
    assert "too new" in (await agent.beat()).refused
    await until_record(stack, "n1", lambda record: bool(record.refused))


async def test_a_record_that_another_has_written_meanwhile_is_believed_and_the_wish_is_handed_out_again(
    stack: Stack,
) -> None:
    def write(epoch: int, reason: str) -> Record:
        record = NodeRecord(id="n1", since=utc_now(), duty=NodeDuty.CORDONED, reason=reason)
        params = {"node_id": "n1"}
        event = stack.operator.event(
            channels.NODE_CHANGED, NodeChanged(node=record, epoch=epoch), subject="n1", **params
        )
        return Record(channels.NODE_CHANGED, params, event)

    settings = SchedulerSettings(nats_url=stack.nats.url)
    term = _Term(stack.operator, settings, Lease(stack.operator, "s1", 4, 1), Quarantine())
    state = State(settings.limits(), Now(utc_now(), 0.0))
    wanted = Wish(1, "n1", "undrain", NodeWish(by="root", at=utc_now()), "w1")
    mine = NodeDecision(NodeRecord(id="n1", since=utc_now()), expect_seq=0)
    other = await stack.operator.record(write(0, "from elsewhere"))
    await term._record_nodes(state, (mine,), (wanted,))
    record = state.roster.record("n1")
    assert record is not None
    assert (record.reason, state.roster.seq("n1")) == ("from elsewhere", other.seq)
    assert term.fleet_log.take() == (wanted,)
    await stack.operator.record(write(7, "from a later leader"))
    with pytest.raises(DeposedError, match="epoch 7"):
        await term._record_nodes(state, (mine,), ())


async def test_another_writers_record_is_read_and_followed_not_overwritten(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent("n1")
    await agent.beat()
    joined = await until_record(stack, "n1", lambda record: record.id == "n1")
    other = joined.model_copy(update={"duty": NodeDuty.CORDONED, "reason": "a scheduler that was before"})
    params = {"node_id": "n1"}
    event = stack.operator.event(channels.NODE_CHANGED, NodeChanged(node=other, epoch=0), subject="n1", **params)
    await stack.operator.record(Record(channels.NODE_CHANGED, params, event))
    await wish(stack, "n1", "drain")
    record = await until_record(stack, "n1", lambda record: record.duty is NodeDuty.DRAINED or record.by == "root")
    assert record.duty in (NodeDuty.DRAINING, NodeDuty.DRAINED)
    found = [one.duty for one, _ in await records(stack)]
    assert found[:2] == [NodeDuty.ACTIVE, NodeDuty.CORDONED]
