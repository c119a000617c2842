"""Needs, limits and silence with a scheduler process on a real broker: what the core decides reaches the log."""

import asyncio

from shared.clock import utc_now
from shared.events import AttemptFinishing, AttemptRunning
from shared.ids import new_id
from shared.states import AttemptState, EndReason, JobState, PendingCode
from tests.integration.test_scheduler_runs_jobs import PATIENCE_S, Agent, Stack, names, stack, succeeded

__all__ = ["stack"]


async def run_to_success(stack: Stack, agent: Agent, job_id: str) -> None:
    await agent.ordered(job_id, "start")
    await agent.report(job_id, succeeded())
    await stack.until(job_id, lambda job: job.state is JobState.SUCCEEDED)
    agent.held.clear()


async def keep_beating(agent: Agent) -> None:
    while True:
        await agent.beat()
        await asyncio.sleep(0.2)


async def test_a_job_waits_for_another_and_a_new_leader_asks_the_log_about_one_that_ended_before(stack: Stack) -> None:
    first = await stack.scheduler()
    agent = await stack.agent()
    await agent.beat()
    needed = await stack.submit()
    waiting = await stack.submit(needs=[needed])
    job = await stack.until(waiting, lambda job: bool(job.pending))
    assert [reason.code for reason in job.pending] == [PendingCode.NEEDS]
    await run_to_success(stack, agent, needed)
    await run_to_success(stack, agent, waiting)
    assert names(await stack.events(waiting)) == ["created", "pending", "pending", "placed", "succeeded"]

    await first.stop()
    later = await stack.submit(inputs={"model": f"job:{needed}/model.bin"})
    orphan = await stack.submit(needs=[new_id("j")])
    await stack.scheduler()
    await run_to_success(stack, agent, later)
    lost = await stack.until(orphan, lambda job: job.is_terminal)
    assert (lost.state, lost.error and lost.error.reason) == (JobState.FAILED, EndReason.NEEDS_FAILED)


async def test_a_cancel_goes_on_to_the_jobs_that_wait(stack: Stack) -> None:
    await stack.scheduler()
    needed = await stack.submit()
    waiting = await stack.submit(needs=[needed])
    last = await stack.submit(needs=[{"job": waiting, "on": "any"}])
    await stack.cancel(needed)
    job = await stack.until(last, lambda job: job.is_terminal)
    assert (job.state, job.error and job.error.reason) == (JobState.CANCELLED, EndReason.NEEDS_FAILED)
    assert waiting in (job.error.message if job.error else "")


async def test_a_node_that_keeps_no_limit_is_told_to_stop_and_then_given_up(stack: Stack) -> None:
    await stack.scheduler(WHERRY_SCHEDULER_CLOCK_SLACK_S="1", WHERRY_SCHEDULER_OBEY_S="8")
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit(timeouts={"run": 1})
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    stop = await agent.ordered(job_id, "stop")
    assert stop.reason is EndReason.RUN_TIMEOUT
    beating = asyncio.create_task(keep_beating(agent))
    job = await stack.until(job_id, lambda job: job.is_terminal)
    beating.cancel()
    assert (job.state, job.attempts[0].state) == (JobState.TIMED_OUT, AttemptState.LOST)
    assert (await agent.ordered(job_id, "forget")).attempt == 1


async def test_outputs_that_never_come_home_do_not_hold_a_cancelled_job(stack: Stack) -> None:
    # So long the stop is to be heard as well: a node that is late with its heartbeat would never hear of a shorter one.
    await stack.scheduler(WHERRY_SCHEDULER_FINISHING_GRACE_S="4")
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit()
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    await agent.report(job_id, AttemptFinishing(attempt=1, at=utc_now(), exit_code=0))
    await stack.until(job_id, lambda job: job.state is JobState.FINISHING)
    await stack.cancel(job_id)
    assert (await agent.ordered(job_id, "stop")).reason is EndReason.FINISHING_TIMEOUT
    beating = asyncio.create_task(keep_beating(agent))
    job = await stack.until(job_id, lambda job: job.is_terminal)
    beating.cancel()
    assert (job.state, job.outputs) == (JobState.CANCELLED, None)


async def test_a_job_stays_on_its_silent_node_as_long_as_it_wants_and_goes_on_there(stack: Stack) -> None:
    await stack.scheduler(WHERRY_SCHEDULER_NODE_LEASE_S="2")
    agent = await stack.agent()
    await agent.beat()
    job_id = await stack.submit(replace_after=PATIENCE_S)
    await agent.ordered(job_id, "start")
    await agent.report(job_id, AttemptRunning(attempt=1, at=utc_now()))
    job = await stack.until(job_id, lambda job: bool(job.remarks))
    assert "is silent; the job stays there until it has been so for 60 s" in job.remarks[0]
    await agent.ordered(job_id, "keep")
    job = await stack.until(job_id, lambda job: len(job.remarks) > 1)
    assert "is heard again" in job.remarks[1]
    await agent.report(job_id, succeeded())
    job = await stack.until(job_id, lambda job: job.is_terminal)
    assert (job.state, job.attempt, job.losses) == (JobState.SUCCEEDED, 1, 0)
