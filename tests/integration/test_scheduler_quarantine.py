"""What the scheduler's core cannot take in is set aside, and everything else is placed as before."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from services.scheduler.core import lifecycle
from services.scheduler.core.fleet import state as fleet_state
from services.scheduler.core.quarantine import PoisonError, Quarantine, taking_in
from shared import channels
from shared.clock import utc_now
from shared.errors import WherryError
from shared.events import AttemptRunning
from shared.states import JobState
from tests.integration.test_scheduler_runs_jobs import PATIENCE_S, Agent, Stack, stack
from tests.integration.test_scheduler_takes_over import epoch_above, in_this_process, letters, started

__all__ = ["stack"]


async def kept(stack: Stack, count: int = 1) -> list[Any]:
    """Return the dead letters once there are *count*."""
    async with asyncio.timeout(PATIENCE_S):
        while len(found := await letters(stack.operator)) < count:
            await asyncio.sleep(0.1)
    return found


async def beating(agent: Agent) -> None:
    """Heartbeat for ever, as an agent does."""
    while True:
        try:
            await agent.bus.ask(channels.HEARTBEAT, agent.heartbeat(), timeout_s=1, node_id=agent.id)
        except WherryError:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)


def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the core fail at what a job of the name poison needs; return what mends it."""
    whole = fleet_state.need_of

    def broken(spec: Any) -> Any:
        if spec.name == "poison":
            raise ZeroDivisionError("planted")
        return whole(spec)

    monkeypatch.setattr(fleet_state, "need_of", broken)
    return lambda: monkeypatch.setattr(fleet_state, "need_of", whole)


async def test_a_job_whose_event_the_core_cannot_believe_is_set_aside_and_comes_back_when_replayed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = poisoned(monkeypatch)
    async with in_this_process(stack):
        agent = await stack.agent()
        poison = await stack.submit(name="poison")
        [letter] = await kept(stack)
        assert (letter.stream, letter.target.split(".")[3]) == (channels.JOBS, poison)
        assert "planted" in letter.reason
        good = await stack.submit()
        await epoch_above(agent, 0)
        assert await started(agent, good) == 1
        assert await letters(stack.operator) == [letter]

        mend()
        await stack.operator.ask(channels.REPLAY, letter, reader="scheduler")
        await stack.until(poison, lambda job: job.state is JobState.PLACED)


async def test_a_job_that_was_set_aside_is_still_there_for_a_scheduler_that_can_take_it_in(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = poisoned(monkeypatch)
    async with in_this_process(stack):
        agent = await stack.agent()
        beats = asyncio.create_task(beating(agent))
        poison = await stack.submit(name="poison")
        await kept(stack)
        good = await stack.submit()
        await stack.until(good, lambda job: job.state is JobState.PLACED)

    # Its snapshot is behind all events of the job.
    mend()
    async with in_this_process(stack):
        await stack.until(poison, lambda job: job.state is JobState.PLACED)
    beats.cancel()


async def test_a_job_that_breaks_while_it_is_decided_about_does_not_stop_the_others(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lifecycle.step

    def broken(job: Any, event: Any, *rest: Any) -> Any:
        if job.spec.name == "poison" and isinstance(event, lifecycle.Placed):
            raise KeyError("planted")
        return whole(job, event, *rest)

    monkeypatch.setattr(lifecycle, "step", broken)
    async with in_this_process(stack):
        agent = await stack.agent()
        beats = asyncio.create_task(beating(agent))
        poison = await stack.submit(name="poison")
        [letter] = await kept(stack)
        assert letter.target.split(".")[3] == poison
        good = await stack.submit()
        await stack.until(good, lambda job: job.state is JobState.PLACED)
        beats.cancel()


async def test_an_input_that_nobody_can_decide_about_is_a_dead_letter_and_ends_no_term(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lifecycle.step

    def broken(job: Any, event: Any, *rest: Any) -> Any:
        if isinstance(event, lifecycle.Report):
            raise ArithmeticError("planted")  # noqa: TRY004
        return whole(job, event, *rest)

    async with in_this_process(stack):
        agent = await stack.agent()
        epoch = await epoch_above(agent, 0)
        job_id = await stack.submit()
        await started(agent, job_id)
        monkeypatch.setattr(lifecycle, "step", broken)
        seq = await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
        [letter] = await kept(stack)
        assert letter.seq == seq
        assert "planted" in letter.reason
        assert await epoch_above(agent, 0) == epoch

        monkeypatch.setattr(lifecycle, "step", whole)
        await stack.operator.ask(channels.REPLAY, letter, reader="scheduler")
        await stack.until(job_id, lambda job: job.state is JobState.RUNNING)


async def test_heartbeats_that_break_the_core_cost_their_node_and_no_other(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fleet_state.State.observe

    def broken(self: Any, node_id: str, *rest: Any) -> Any:
        if node_id == "n2":
            raise AttributeError("planted")
        return whole(self, node_id, *rest)

    monkeypatch.setattr(fleet_state.State, "observe", broken)
    async with in_this_process(stack):
        good, bad = await stack.agent("n1"), await stack.agent("n2")
        beats = asyncio.create_task(beating(bad))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await bad.bus.ask(channels.HEARTBEAT, bad.heartbeat(), timeout_s=1, retry_s=0, node_id="n2")
                except WherryError as refused:
                    if "end the scheduler's work" in refused.message:
                        break
                await asyncio.sleep(0.05)
        job_id = await stack.submit()
        await epoch_above(good, 0)
        assert await started(good, job_id) == 1
        beats.cancel()


def test_once_may_be_anybodys_fault_and_twice_is_its_own() -> None:
    quarantine, found = Quarantine(), []
    for _ in range(2):
        with pytest.raises(PoisonError) as poison, taking_in("job", "j1", 7):
            raise RuntimeError("planted")
        found.append(quarantine.blame(poison.value))
    assert found == [False, True]
    assert quarantine.jobs == {"j1"}
    assert quarantine.release("job", "j1")
    assert not quarantine.jobs
    assert not quarantine.release("job", "j1")
