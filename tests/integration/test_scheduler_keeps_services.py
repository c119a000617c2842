"""Services with the real scheduler on a real broker; agents run replicas as the answers to their heartbeats say."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared import channels
from shared.bus import Record
from shared.clock import utc_now
from shared.errors import WherryError
from shared.events import AttemptFinished, AttemptRunning, ServiceAsked, ServiceUpdated
from shared.fleet import Assignment
from shared.job import Failure, Job
from shared.spec import JobSpec
from shared.states import JOB_TERMINAL, AttemptState, EndReason, JobState
from tests.integration.test_scheduler_runs_jobs import Agent, Stack, stack

__all__ = ["stack"]
SMALL = {"cpus": 0.5, "memory": "32MiB", "disk": "64MiB"}


class Replicas:
    """One node: what it is told to start runs at once, what it is told to stop ends."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.programs: dict[str, Any] = {}  # replica -> its command
        self.graces: list[float] = []

    async def run(self) -> None:
        while True:
            with contextlib.suppress(WherryError):
                for one in (await self.agent.beat(5)).assignments:
                    await self._obey(one)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self.agent.woken.wait()
            self.agent.woken.clear()

    async def _obey(self, one: Assignment) -> None:
        key = (one.job_id, one.attempt)
        if one.action == "start" and one.order is not None and key not in self.agent.held:
            assert one.order.service is not None
            assert one.order.parent is not None
            self.agent.held.add(key)
            self.programs[one.job_id] = one.order.spec.command
            await self.agent.report(one.job_id, AttemptRunning(attempt=one.attempt, at=utc_now()))
        elif one.action == "stop" and one.job_id in self.programs:
            self.graces.append(one.grace_s)
            await self._finish(one.job_id, AttemptState.CANCELLED)
        elif one.action == "forget":
            self.agent.held.discard(key)

    async def fail(self, job_id: str) -> None:
        await self._finish(job_id, AttemptState.FAILED, Failure(reason=EndReason.EXIT_CODE, message="exit code 3"))

    async def _finish(self, job_id: str, state: AttemptState, error: Failure | None = None) -> None:
        del self.programs[job_id]
        await self.agent.report(job_id, AttemptFinished(attempt=1, at=utc_now(), state=state, error=error))


@asynccontextmanager
async def nodes(stack: Stack) -> AsyncIterator[list[Replicas]]:
    """Two nodes that do what they are told, until the end of the block."""
    found = [Replicas(await stack.agent(node_id)) for node_id in ("n1", "n2")]
    for one in found:  # the scheduler knows both before it places anything
        await one.agent.beat()
    tasks = [asyncio.create_task(one.run()) for one in found]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in done), done


def serving(command: str, **service: Any) -> dict[str, Any]:
    return {
        "kind": "service", "command": command, "service": {"port": 80, "drain": 7} | service, "resources": SMALL,
    }  # fmt: skip


async def wish(stack: Stack, job_id: str, channel: Any, data: Any) -> None:
    params = {"owner": "u1", "job_id": job_id}
    event = stack.gateway.event(channel, data, subject=job_id, **params)
    await stack.gateway.record(Record(channel, params, event))


async def update(stack: Stack, job_id: str, **what: Any) -> None:
    await wish(stack, job_id, channels.SERVICE_UPDATED, ServiceUpdated(by="u1", at=utc_now(), **what))


def running(job: Job) -> list[str]:
    return [one.job_id for one in job.members if one.state is JobState.RUNNING]


def has_all(job: Job, revision: int, replicas: int) -> bool:
    return len(running(job)) == len(job.members) == replicas and {one.revision for one in job.members} == {revision}


async def test_a_service_is_rolled_out_with_a_scheduler_killed_and_never_has_too_few(stack: Stack) -> None:
    await stack.scheduler()
    await stack.scheduler()
    async with nodes(stack) as [first, second]:
        job_id = await stack.submit(**serving("one", replicas=3))
        job = await stack.until(job_id, lambda job: has_all(job, 0, 3))
        assert {one.node for one in job.members} == {"n1", "n2"}
        assert job.state is JobState.RUNNING
        await update(stack, job_id, spec=JobSpec(runtime="process", **serving("two", replicas=3)))
        await stack.until(job_id, lambda job: any(one.revision for one in job.members))
        await stack.schedulers[0].stop(signal.SIGKILL)
        await stack.until(job_id, lambda job: has_all(job, 1, 3))
        events = [changed.job for _, changed, _ in await stack.events(job_id)]
        began = next(n for n, job in enumerate(events) if len(running(job)) == 3)
        assert min(len(running(job)) for job in events[began:]) == 3
        assert max(sum(one.state is not JobState.FINISHING for one in job.members) for job in events) == 4
        assert set(first.programs.values()) | set(second.programs.values()) == {"two"}
        assert set(first.graces + second.graces) == {12.0}
        await stack.cancel(job_id)
        done = await stack.until(job_id, lambda job: job.is_terminal)
        assert (done.state, done.members) == (JobState.CANCELLED, ())
        assert not first.programs
        assert not second.programs
    replicas = {one.job_id for job in events for one in job.members}
    assert len(replicas) >= 6
    for replica in replicas:
        ends = [changed.job.state for _, changed, _ in await stack.events(replica) if changed.job.is_terminal]
        assert ends == [JobState.CANCELLED]


async def test_a_replica_that_fails_is_replaced_and_the_service_says_why(stack: Stack) -> None:
    await stack.scheduler()
    async with nodes(stack) as [first, second]:
        job_id = await stack.submit(**serving("one", replicas=1))
        [failing] = running(await stack.until(job_id, lambda job: has_all(job, 0, 1)))
        await next(one for one in (first, second) if failing in one.programs).fail(failing)
        job = await stack.until(job_id, lambda job: bool(job.remarks) and has_all(job, 0, 1))
        assert running(job) != [failing]
        assert job.remarks == ("replica 0 has ended: exit code 3",)
        assert job.tries == 1


async def test_a_service_that_nobody_asks_is_left_without_replicas_until_it_is_asked(stack: Stack) -> None:
    await stack.scheduler()
    async with nodes(stack):
        job_id = await stack.submit(**serving("one", replicas=2, idle=1))
        await stack.until(job_id, lambda job: bool(running(job)))  # it is idle a second later, whether both run or not
        idle = await stack.until(job_id, lambda job: job.replicas == 0 and not job.members)
        assert idle.state is JobState.QUEUED
        seen = len(await stack.events(job_id))
        await wish(stack, job_id, channels.SERVICE_ASKED, ServiceAsked(by="u1", at=utc_now()))
        async with asyncio.timeout(60):
            while not any(c.job.replicas == 2 for _, c, _ in (await stack.events(job_id))[seen:]):
                await asyncio.sleep(0.1)
    assert all(changed.job.state not in JOB_TERMINAL for _, changed, _ in await stack.events(job_id))
