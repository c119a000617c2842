"""Map jobs with the real scheduler on a real broker; agents take items as the answers to their heartbeats say."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from shared import channels
from shared.bus import Record
from shared.clock import utc_now
from shared.errors import WherryError
from shared.events import AttemptFinished, AttemptItems, AttemptRunning, ItemEnd, ItemsAdded, ItemsRetried
from shared.fleet import Assignment, ItemOrder
from shared.ids import new_id
from shared.job import Failure, Item, Job
from shared.spec import ItemSpec
from shared.states import AttemptState, EndReason, ItemState, JobState
from tests.integration.test_scheduler_runs_jobs import PATIENCE_S, Agent, Stack, stack

__all__ = ["stack"]
Key = tuple[str, int]


@dataclass
class Worker:
    items: tuple[ItemOrder, ...] = ()
    done: dict[str, int] = field(default_factory=dict)
    close: bool = False
    ended: bool = False


class Workers:
    """The workers of one node: each ends all that it has, and tells of it, between two heartbeats."""

    def __init__(self, agent: Agent, fails: frozenset[str]) -> None:
        self.agent, self.fails = agent, fails
        self.workers: dict[Key, Worker] = {}
        self.tries = 0
        self.deaf = asyncio.Event()  # while it is set nothing is heard of the node

    async def run(self) -> None:
        while True:
            with contextlib.suppress(WherryError):
                await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self.agent.woken.wait()
            self.agent.woken.clear()

    async def _beat(self) -> None:
        if self.deaf.is_set():
            return
        self.agent.held = set(self.workers)
        answer = await self.agent.beat(5)
        for one in answer.assignments:
            await self._obey(one)
        for key, worker in self.workers.items():
            await self._work(key, worker)

    async def _obey(self, one: Assignment) -> None:
        key = (one.job_id, one.attempt)
        if one.action == "start" and key not in self.workers:
            self.workers[key] = Worker()
            await self.agent.report(one.job_id, AttemptRunning(attempt=one.attempt, at=utc_now()))
        worker = self.workers.get(key)
        if worker is None:
            return
        if one.action == "forget":
            del self.workers[key]
        elif one.action == "stop" and not worker.ended:
            await self._end(key, worker, AttemptState.CANCELLED)
        elif one.items is not None:
            worker.items = tuple(item for item in one.items if worker.done.get(item.id, -1) < item.tries)
            worker.close |= one.close

    async def _work(self, key: Key, worker: Worker) -> None:
        ends: list[ItemEnd] = []
        for item in worker.items:
            self.tries += 1
            worker.done[item.id] = item.tries
            error = Failure(reason=EndReason.ITEM_FAILED, message="no") if item.spec.name in self.fails else None
            now = utc_now()
            ends.append(ItemEnd(id=item.id, error=error, started_at=now - timedelta(milliseconds=5), at=now))
        worker.items = ()
        if ends:
            await self.say(key, AttemptItems(attempt=key[1], ends=tuple(ends), at=utc_now()))
        if worker.close and not worker.ended:
            await self._end(key, worker, AttemptState.SUCCEEDED)

    async def _end(self, key: Key, worker: Worker, state: AttemptState) -> None:
        worker.ended = True
        await self.agent.report(key[0], AttemptFinished(attempt=key[1], at=utc_now(), state=state))

    async def say(self, key: Key, data: AttemptItems) -> None:
        params = {"node_id": self.agent.id, "job_id": key[0]}
        event = self.agent.bus.event(channels.ATTEMPT_ITEMS, data, subject=key[0], **params)
        await self.agent.bus.record(Record(channels.ATTEMPT_ITEMS, params, event))


@contextlib.asynccontextmanager
async def nodes(stack: Stack, *ids: str, fails: frozenset[str] = frozenset()) -> AsyncIterator[list[Workers]]:
    found = [Workers(await stack.agent(node_id), fails) for node_id in ids]
    for one in found:
        await one.agent.beat()  # all are there before the first worker is placed
    running = [asyncio.create_task(one.run()) for one in found]
    try:
        yield found
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def ask(stack: Stack, job_id: str, data: ItemsAdded | ItemsRetried) -> None:
    channel: Any = channels.ITEMS_ADDED if isinstance(data, ItemsAdded) else channels.ITEMS_RETRIED
    params = {"owner": "u1", "job_id": job_id}
    event = stack.gateway.event(channel, data, subject=job_id, **params)
    await stack.gateway.record(Record(channel, params, event))


async def add(stack: Stack, job_id: str, *names: str, close: bool = False) -> None:
    items = tuple(ItemSpec(id=new_id("i"), name=name) for name in names)
    await ask(stack, job_id, ItemsAdded(items=items, close=close, by="u1", at=utc_now()))


async def submit(stack: Stack, **fields: Any) -> str:
    small = {"cpus": 0.5, "memory": "10MiB", "disk": "1MiB"}
    return await stack.submit(kind="map", map={"parallelism": 4} | fields, resources=small)


async def histories(stack: Stack, job_id: str) -> dict[str, list[Item]]:
    """Return every version of every item, by name, in the order of the log."""
    found: dict[str, list[Item]] = {}
    for _, changed, _ in await stack.events(job_id):
        for item in changed.items:
            found.setdefault(item.spec.name, []).append(item)
    return found


def ended(job: Job) -> bool:
    return job.is_terminal


async def test_a_thousand_items_end_once_each_though_the_scheduler_is_killed(stack: Stack) -> None:
    await stack.scheduler()
    async with nodes(stack, "n1", "n2", fails=frozenset({"13", "313"})) as workers:
        job_id = await submit(stack, item_attempts=2)
        for first in range(0, 1000, 250):
            await add(stack, job_id, *(str(number) for number in range(first, first + 250)), close=first == 750)
        await stack.until(job_id, lambda job: job.items is not None and job.items.ended >= 200)
        await stack.schedulers[0].stop(signal.SIGKILL)
        await stack.scheduler()
        job = await stack.until(job_id, ended)
        assert (job.state, job.error and job.error.reason) == (JobState.FAILED, EndReason.ITEMS_FAILED)
        assert job.items is not None
        assert (job.items.total, job.items.succeeded, job.items.failed) == (1000, 998, 2)
        found = await histories(stack, job_id)
        assert {item[-1].index for item in found.values()} == set(range(1000))
        for name, versions in found.items():
            states = [item.state for item in versions]
            assert states.count(ItemState.SUCCEEDED) + states.count(ItemState.FAILED) == 1
            assert versions[-1].tries == (2 if name in ("13", "313") else 1)
        assert {item[-1].node for item in found.values()} == {"n1", "n2"}
        async with asyncio.timeout(PATIENCE_S):
            while any(one.workers for one in workers):  # closed, ended and forgotten
                await asyncio.sleep(0.05)


async def test_what_was_given_to_a_node_that_is_lost_is_done_by_another(stack: Stack) -> None:
    await stack.scheduler(WHERRY_SCHEDULER_NODE_LEASE_S="2")
    async with nodes(stack, "n1", "n2") as both:
        job_id = await submit(stack, open=True)
        await add(stack, job_id, *(str(number) for number in range(40)))
        await stack.until(job_id, lambda job: job.items is not None and job.items.ended >= 1)
        both[0].deaf.set()
        await add(stack, job_id, *(str(number) for number in range(40, 80)), close=True)
        job = await stack.until(job_id, ended)
        assert job.state is JobState.SUCCEEDED
        assert job.items is not None
        assert (job.items.total, job.items.succeeded) == (80, 80)


async def test_failed_items_of_an_open_job_are_tried_again_and_only_those(stack: Stack) -> None:
    await stack.scheduler()
    async with nodes(stack, "n1", fails=frozenset({"bad"})) as [node]:
        job_id = await submit(stack, open=True)
        await add(stack, job_id, "good", "bad")
        await stack.until(job_id, lambda job: job.items is not None and job.items.ended == 2)
        node.fails = frozenset()
        await ask(stack, job_id, ItemsRetried(by="u1", at=utc_now()))
        await stack.until(job_id, lambda job: job.items is not None and job.items.succeeded == 2)
        await add(stack, job_id, close=True)
        assert (await stack.until(job_id, ended)).state is JobState.SUCCEEDED
        assert node.tries == 3
        found = await histories(stack, job_id)
        assert [item.state for item in found["bad"]] == ["waiting", "failed", "waiting", "succeeded"]
        assert [item.state for item in found["good"]] == ["waiting", "succeeded"]
