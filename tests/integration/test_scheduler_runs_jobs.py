"""The scheduler as a process on a real broker with accounts, and an agent that does what the test says."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from infra.bootstrap import bootstrap
from infra.local.servers import NatsServer
from shared import channels
from shared.bus import Bus, Record, job_filter
from shared.channels import Service
from shared.clock import utc_now
from shared.events import (
    AttemptFinished,
    AttemptFinishing,
    AttemptRunning,
    AttemptStarting,
    CancelRequested,
    JobChanged,
)
from shared.fleet import PROTOCOL, Assignment, Capacity, DesiredState, Heartbeat, HeldAttempt, NodeInfo, Usage
from shared.ids import new_id
from shared.job import Job, Owner
from shared.permissions import OPERATOR, accounts_config, node_user, users
from shared.settings import ServiceSettings
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, JobState
from tests import nursery

PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(("n1", "n2"))}
PATIENCE_S = 60  # starting a process takes seconds on a busy machine


class SchedulerProcess:
    """``python -m services.scheduler``."""

    def __init__(self, url: str, log: Path, extra: dict[str, str]) -> None:
        self.url, self.log, self.extra = url, log, extra
        self.process: nursery.Nursling | None = None

    async def start(self) -> None:
        env = os.environ | {
            "WHERRY_NATS_URL": self.url,
            "WHERRY_NATS_USER": "scheduler",
            "WHERRY_NATS_PASSWORD": PASSWORDS["scheduler"],
            "WHERRY_SCHEDULER_LEADER_LEASE_S": "4",
            "WHERRY_SCHEDULER_LEADER_RENEW_S": "0.3",
            "WHERRY_SCHEDULER_SNAPSHOT_INTERVAL_S": "0.2",
            **self.extra,
        }
        self.process = await asyncio.to_thread(nursery.start, "services.scheduler", env, self.log)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.ended()


class Agent:
    """A node's side of the contract, one call at a time."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self.bus, self.id = bus, node_id
        self.session, self.seq, self.epoch = new_id("s"), 0, 0
        self.held: set[tuple[str, int]] = set()
        self.protocol = PROTOCOL
        self.woken = asyncio.Event()

    def heartbeat(self) -> Heartbeat:
        self.seq += 1
        return Heartbeat(
            node=NodeInfo(id=self.id, name=self.id, runtimes=("process",)),
            session=self.session,
            boot_id="b1",
            seq=self.seq,
            capacity=Capacity(cpus=4, memory=16 * GIB, disk=500 * GIB),
            usage=Usage(memory_available=16 * GIB, disk_free=500 * GIB),
            attempts=tuple(HeldAttempt(job_id=j, attempt=n, state="running") for j, n in sorted(self.held)),
            epoch=self.epoch,
            protocol=self.protocol,
            at=utc_now(),
        )

    async def beat(self, timeout_s: float = 30) -> DesiredState:
        """Heartbeat once; an answer that does not come in *timeout_s* went down with whoever was asked."""
        answer: DesiredState = await self.bus.ask(
            channels.HEARTBEAT, self.heartbeat(), timeout_s=timeout_s, retry_s=PATIENCE_S, node_id=self.id
        )
        self.epoch = max(self.epoch, answer.epoch)
        return answer

    async def ordered(self, job_id: str, action: str) -> Assignment:
        """Heartbeat until the answer has *action* for the job; hold what is started."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for one in (await self.beat()).assignments:
                    if (one.job_id, one.action) == (job_id, action):
                        if action == "start":
                            self.held.add((job_id, one.attempt))
                        return one
                self.woken.clear()
                try:
                    async with asyncio.timeout(0.2):
                        await self.woken.wait()
                except TimeoutError:
                    continue

    async def report(self, job_id: str, data: Any) -> int:
        by_model = {
            AttemptStarting: channels.ATTEMPT_STARTING,
            AttemptRunning: channels.ATTEMPT_RUNNING,
            AttemptFinishing: channels.ATTEMPT_FINISHING,
            AttemptFinished: channels.ATTEMPT_FINISHED,
        }
        channel = by_model[type(data)]
        params = {"node_id": self.id, "job_id": job_id}
        event = self.bus.event(channel, data, subject=job_id, **params)
        return (await self.bus.record(Record(channel, params, event))).seq


class Stack:
    """A broker, its operator, a gateway's connection, agents, and schedulers as the test starts them."""

    def __init__(self, exits: AsyncExitStack, nats: NatsServer, folder: Path) -> None:
        self._exits, self.nats, self._folder = exits, nats, folder
        self.operator: Bus
        self.gateway: Bus
        self.schedulers: list[SchedulerProcess] = []

    async def connect(self, service: Service, user: str, peer: str | None = None) -> Bus:
        settings = ServiceSettings(nats_url=self.nats.url, nats_user=user, nats_password=SecretStr(PASSWORDS[user]))
        return await self._exits.enter_async_context(Bus.connect(settings, service, peer=peer))

    async def scheduler(self, **extra: str) -> SchedulerProcess:
        process = SchedulerProcess(self.nats.url, self._folder / f"scheduler-{len(self.schedulers)}.log", extra)
        await process.start()
        self.schedulers.append(process)
        self._exits.push_async_callback(process.stop, signal.SIGKILL)
        return process

    async def agent(self, node_id: str = "n1") -> Agent:
        bus = await self.connect(Service.NODE_AGENT, node_user(node_id), node_id)
        agent = Agent(bus, node_id)
        await bus.listen(channels.WAKE, lambda _: agent.woken.set(), node_id=node_id)
        return agent

    async def submit(self, **spec: Any) -> str:
        job_id, now = new_id("j"), utc_now()
        spec = {"runtime": "process", "command": "true"} | spec
        job = Job(id=job_id, owner=Owner(id="u1", name="ada"), spec=JobSpec(**spec), created_at=now, updated_at=now)
        params = {"owner": "u1", "job_id": job_id}
        event = self.gateway.event(channels.JOB_CREATED, JobChanged(job=job), subject=job_id, **params)
        await self.gateway.record(Record(channels.JOB_CREATED, params, event, expect=(job_filter(job_id), 0)))
        return job_id

    async def cancel(self, job_id: str) -> None:
        params = {"owner": "u1", "job_id": job_id}
        data = CancelRequested(by="u1", at=utc_now())
        event = self.gateway.event(channels.CANCEL_REQUESTED, data, subject=job_id, **params)
        await self.gateway.record(Record(channels.CANCEL_REQUESTED, params, event))

    async def events(self, job_id: str) -> list[tuple[str, JobChanged, int]]:
        """Everything that the log holds about the job, in order."""
        found: list[tuple[str, JobChanged, int]] = []
        async for messages in self.operator.follow(channels.JOBS, [job_filter(job_id)], start_seq=1):
            if not messages:
                return found
            found += [(m.subject.rpartition(".")[2], m.data, m.seq) for m in messages if m.data is not None]
        raise AssertionError

    async def until(self, job_id: str, is_so: Callable[[Job], bool]) -> Job:
        """Wait until the log has an event after which *is_so* holds, and return the job then."""
        async with asyncio.timeout(PATIENCE_S):
            async for messages in self.operator.follow(channels.JOBS, [job_filter(job_id)], start_seq=1):
                for message in messages:
                    if message.data is not None and is_so(message.data.job):
                        return message.data.job
        raise AssertionError


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    with NatsServer(tmp_path / "nats", accounts_config(PASSWORDS, ("n1", "n2")), sync_always=False) as nats:
        async with AsyncExitStack() as exits:
            stack = Stack(exits, nats, tmp_path)
            stack.operator = await stack.connect(Service.STORAGE, OPERATOR)
            await bootstrap(stack.operator)
            stack.gateway = await stack.connect(Service.GATEWAY, "gateway", "g1")
            yield stack


def succeeded(attempt: int = 1) -> AttemptFinished:
    return AttemptFinished(attempt=attempt, at=utc_now(), state=AttemptState.SUCCEEDED, exit_code=0)


def names(events: list[tuple[str, JobChanged, int]]) -> list[str]:
    return [name for name, _, _ in events]


def moves(events: list[tuple[str, JobChanged, int]]) -> list[str]:
    """Return what has moved a job: not why it waits, which is told of one that has waited for some seconds."""
    return [name for name in names(events) if name != "pending"]


async def test_a_job_goes_from_created_to_succeeded(stack: Stack) -> None:
    await stack.scheduler(WHERRY_SCHEDULER_LEADER_LEASE_S="60")
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    order = (await agent.ordered(job_id, "start")).order
    assert order is not None
    assert order.seq == (await stack.events(job_id))[-1][2]
    for data, state in (
        (AttemptStarting(attempt=1, phase="stage_in", at=utc_now()), JobState.STARTING),
        (AttemptRunning(attempt=1, at=utc_now()), JobState.RUNNING),
        (AttemptFinishing(attempt=1, at=utc_now(), exit_code=0), JobState.FINISHING),
        (succeeded(), JobState.SUCCEEDED),
    ):
        await agent.report(job_id, data)
        await stack.until(job_id, lambda job, state=state: job.state is state)
    events = await stack.events(job_id)
    assert moves(events) == ["created", "placed", "starting", "running", "finishing", "succeeded"]
    assert {changed.epoch for name, changed, _ in events if name != "created"} == {agent.epoch}
    assert (await agent.ordered(job_id, "forget")).attempt == 1


async def test_a_wake_follows_a_placement_at_once(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    agent.woken.clear()
    await stack.submit()
    async with asyncio.timeout(PATIENCE_S):
        await agent.woken.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_scheduler_that_restarts_at_each_state_brings_the_job_to_its_one_end(stack: Stack, number) -> None:
    async def restart() -> None:
        await stack.schedulers[-1].stop(number)
        await stack.scheduler()

    await stack.scheduler()
    agent = await stack.agent()
    job_id = await stack.submit()
    await restart()  # created
    await agent.beat()
    await stack.until(job_id, lambda job: job.state is JobState.PLACED)
    await restart()  # placed
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptStarting(attempt=1, at=utc_now()))
    await stack.until(job_id, lambda job: job.state is JobState.STARTING)
    await restart()  # starting
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    await stack.until(job_id, lambda job: job.state is JobState.RUNNING)
    await stack.schedulers[-1].stop(number)
    await agent.report(job_id, AttemptFinishing(attempt=1, at=utc_now()))  # while nobody leads
    await agent.report(job_id, succeeded())
    await stack.scheduler()
    await stack.until(job_id, lambda job: job.state is JobState.SUCCEEDED)
    assert moves(await stack.events(job_id)) == ["created", "placed", "starting", "running", "succeeded"]
    await agent.ordered(job_id, "forget")


async def test_a_clean_stop_hands_over_without_waiting_for_the_lease(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    first = (await agent.beat()).epoch
    assert await stack.schedulers[0].stop() == 0
    assert stack.operator.is_connected
    found = await stack.operator.get_last(channels.LEADER, "wherry.leader.scheduler")
    assert found is not None
    assert found[1] == b"free"
    await stack.scheduler()
    assert (await agent.beat()).epoch > first


async def test_a_standby_takes_over_from_a_leader_that_is_killed_and_one_that_is_paused(stack: Stack) -> None:
    leader = await stack.scheduler()
    agent = await stack.agent()
    first = (await agent.beat()).epoch
    await stack.scheduler()
    leader.process.send_signal(signal.SIGSTOP)
    second = await next_epoch(agent, first)
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    leader.process.send_signal(signal.SIGCONT)  # it believes for a moment that it still leads
    await agent.report(job_id, succeeded())
    await stack.until(job_id, lambda job: job.is_terminal)
    await stack.schedulers[1].stop(signal.SIGKILL)
    third = await next_epoch(agent, second)
    assert first < second < third
    events = await stack.events(job_id)
    assert moves(events) == ["created", "placed", "succeeded"]
    assert min(changed.epoch for _, changed, _ in events[1:]) >= second, "the one that was paused has written"


async def next_epoch(agent: Agent, after: int) -> int:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                answer = await agent.beat(5)
            except Exception as error:  # noqa: BLE001 - whoever was asked has just gone
                assert getattr(error, "retryable", False), error
                continue
            if answer.epoch > after:
                return answer.epoch


async def test_two_schedulers_started_at_once_have_one_leader_and_every_job_one_end(stack: Stack) -> None:
    await asyncio.gather(stack.scheduler(), stack.scheduler(), stack.scheduler())
    agent = await stack.agent()
    await agent.beat()
    jobs = await asyncio.gather(*(stack.submit(resources={"cpus": 0.1, "memory": "10MiB"}) for _ in range(30)))
    for number, job_id in enumerate(jobs):
        order = await agent.ordered(job_id, "start")
        await agent.report(job_id, succeeded(order.attempt))
        if number == 10:
            await stack.schedulers[0].stop(signal.SIGKILL)
        if number == 20:
            await stack.schedulers[1].stop(signal.SIGTERM)
    for job_id in jobs:
        await stack.until(job_id, lambda job: job.is_terminal)
        assert moves(await stack.events(job_id)) == ["created", "placed", "succeeded"]


async def test_cancelling_reaches_the_node_as_stop_and_its_word_ends_the_job(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    await stack.cancel(job_id)
    await agent.ordered(job_id, "stop")
    await agent.report(job_id, AttemptFinished(attempt=1, at=utc_now(), state=AttemptState.CANCELLED))
    await stack.until(job_id, lambda job: job.state is JobState.CANCELLED)
    assert names(await stack.events(job_id))[-2:] == ["cancelling", "cancelled"]


async def test_the_jobs_of_a_node_that_falls_silent_run_on_another(stack: Stack) -> None:
    await stack.scheduler(WHERRY_SCHEDULER_NODE_LEASE_S="6")
    first = await stack.agent("n1")
    job_id = await stack.submit()
    await first.ordered(job_id, "start")
    await first.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    second = await stack.agent("n2")
    assert (await second.ordered(job_id, "start")).attempt == 2
    await first.report(job_id, succeeded(1))  # too late
    await first.ordered(job_id, "forget")
    await second.report(job_id, succeeded(2))
    job = await stack.until(job_id, lambda job: job.is_terminal)
    assert (job.state, job.losses, [a.state for a in job.attempts]) == (
        JobState.SUCCEEDED,
        1,
        [AttemptState.LOST, AttemptState.SUCCEEDED],
    )


async def test_a_job_that_no_node_can_run_says_why(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    job_id = await stack.submit(resources={"cpus": 64})
    waiting = asyncio.create_task(stack.until(job_id, lambda job: bool(job.pending)))
    while not waiting.done():
        await agent.beat()
        await asyncio.wait([waiting], timeout=0.5)
    assert "needs 64 cpus; the largest node has 4" in (await waiting).pending[0].message


async def test_a_broker_that_restarts_loses_nothing(stack: Stack) -> None:
    await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await asyncio.to_thread(stack.nats.kill)
    await asyncio.to_thread(stack.nats.start)
    await agent.report(job_id, succeeded())
    job = await stack.until(job_id, lambda job: job.is_terminal)
    assert (job.state, job.attempt, job.losses) == (JobState.SUCCEEDED, 1, 0)
    again = await stack.submit()
    await agent.ordered(again, "start")
