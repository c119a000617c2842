"""The clocks of a job, and what is due by them.

Queue and total are kept here. Pull, stage-in and run are the node's: it stops an attempt at its limit by itself. For
a node that does not, the same limits with some slack are kept here too: then it is told to stop the attempt, and in
the end it is no longer waited for.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from services.scheduler.core.limits import Limits
from shared.job import Attempt, Job
from shared.spec import Timeouts
from shared.states import ATTEMPT_TERMINAL, AttemptState, EndReason, JobState

#: What a spec has that names no limit; and what that means for a service: longer than anything lasts.
_TOTAL_S, _FOREVER_S = Timeouts().total, 100 * 366 * 86400.0


class Stop(NamedTuple):
    """From `at` on the current attempt is to be stopped, because of `reason`.

    A node that has been heard for `obey_s` seconds since, without a gap, and has not done so is no longer waited for.
    `is_own` marks the attempt's own limits, which the node keeps too: its word may only just be on its way, so they
    count for a node that has been heard for a while.
    """

    at: datetime
    reason: EndReason
    obey_s: float
    is_own: bool


def overdue_at(job: Job) -> datetime:
    """Return when the job has used up its total time: it is to be stopped wherever it is.

    A service goes on until somebody ends it, unless it was given a limit of its own.
    """
    total_s = job.spec.timeouts.total
    if job.spec.kind == "service" and total_s == _TOTAL_S:
        total_s = _FOREVER_S
    return job.created_at + timedelta(seconds=total_s)


def is_overdue(job: Job, now: datetime) -> bool:
    """Return whether the job has used up its total time."""
    return now >= overdue_at(job)


def is_unwanted(job: Job, now: datetime) -> bool:
    """Return whether nobody waits for the job's result any more: cancelled or overdue. It is not tried again."""
    return job.cancel_requested_at is not None or is_overdue(job, now)


def queued_since(job: Job) -> datetime:
    """Return when the job last came into the queue: the queue clock does not run while it waits for its needs."""
    ended = job.attempts[-1].ended_at if job.attempts else None
    return ended or job.ready_at or job.created_at


def queue_limit_at(job: Job) -> datetime | None:
    """Return when the job has been in the queue for too long; None: never, or it is not in the queue yet."""
    limit = job.spec.timeouts.queue
    if limit is None or waits_for_needs(job) or job.spec.kind in ("map", "service"):
        return None
    return queued_since(job) + timedelta(seconds=limit)


def waits_for_needs(job: Job) -> bool:
    """Return whether another job has to end before this one may be placed."""
    return job.ready_at is None and job.state is JobState.QUEUED and bool(job.spec.needs or job.spec.inputs)


def current_stop(job: Job, now: datetime, heard_s: float, limits: Limits) -> Stop | None:
    """Return why the current attempt is to be stopped, or None if it may go on.

    *heard_s*: seconds for which its node has been heard without a gap.
    """
    due = (one for one in stops(job, limits) if one.at <= now and not (one.is_own and heard_s < limits.clock_slack_s))
    return min(due, default=None)


def is_disobeyed(stop: Stop, now: datetime, heard_s: float) -> bool:
    """Return whether the node has had its time to obey."""
    return heard_s >= stop.obey_s and now >= stop.at + timedelta(seconds=stop.obey_s)


def stops(job: Job, limits: Limits) -> Iterator[Stop]:
    """Yield everything that ends or will end the current attempt. What it left may take a little longer to store."""
    attempt = job.current
    if attempt is None or attempt.state in ATTEMPT_TERMINAL:
        return
    grace_s, obey_s, began = 0.0, limits.obey_s, job.created_at
    if attempt.state is AttemptState.FINISHING:
        grace_s = obey_s = limits.finishing_grace_s
        began = attempt.finishing_at or attempt.placed_at
    grace = timedelta(seconds=grace_s)
    if job.cancel_requested_at is not None:
        yield Stop(max(began, job.cancel_requested_at) + grace, EndReason.CANCELLED_BY_USER, obey_s, is_own=False)
    yield Stop(max(began, overdue_at(job)) + grace, EndReason.TOTAL_TIMEOUT, obey_s, is_own=False)
    withheld = timedelta(seconds=job.member_of.wait_s if job.member_of and attempt.state is AttemptState.PLACED else 0)
    at, reason = _own_limit(attempt, job.spec.timeouts, limits)
    yield Stop(at + withheld, reason, obey_s, is_own=True)


def next_deadline(job: Job, now: datetime, limits: Limits) -> datetime | None:
    """Return the next time after *now* at which something is due for the job without any message."""
    if job.is_terminal:
        return None
    times: list[datetime] = []
    if job.spec.kind != "run" and job.state is not JobState.QUEUED:
        times.append(overdue_at(job))
        if job.not_before is not None:
            times.append(job.not_before)
        if (start := gang_limit_at(job)) is not None:
            times.append(start)
    elif job.state is JobState.QUEUED:
        times.append(overdue_at(job))
        if job.not_before is not None:
            times.append(job.not_before)
        if (queue := queue_limit_at(job)) is not None:
            times.append(queue)
    else:
        times += (stop.at for stop in stops(job, limits))
    return min((time for time in times if time > now), default=None)


def gang_limit_at(job: Job) -> datetime | None:
    """Return when all members of a gang must run; None for what is no gang, or one that does run."""
    if job.spec.gang is None or job.state not in (JobState.PLACED, JobState.STARTING) or not job.members:
        return None
    return job.members[0].placed_at + timedelta(seconds=job.spec.gang.deadline)


def say(reason: EndReason, timeouts: Timeouts, limits: Limits) -> str:
    """Return in words which limit was passed."""
    match reason:
        case EndReason.PULL_TIMEOUT | EndReason.STAGE_IN_TIMEOUT:
            limit = timeouts.pull + timeouts.stage_in
            return f"the program had not begun {limit + limits.clock_slack_s:g} s after its node had begun with it"
        case EndReason.RUN_TIMEOUT:
            return f"the program ran longer than {timeouts.run:g} s"
        case EndReason.FINISHING_TIMEOUT:
            return f"what the program left could not be stored within {limits.finishing_s:g} s"
        case EndReason.TOTAL_TIMEOUT:
            return f"not done within {timeouts.total:g} s in all"
        case EndReason.AGENT_LOST_CONTAINER:
            return f"its node had not begun with it after {limits.accept_s:g} s"
        case _:
            return "it was to be cancelled"


def _own_limit(attempt: Attempt, timeouts: Timeouts, limits: Limits) -> tuple[datetime, EndReason]:
    match attempt.state:
        case AttemptState.PLACED:
            return attempt.placed_at + timedelta(seconds=limits.accept_s), EndReason.AGENT_LOST_CONTAINER
        case AttemptState.STARTING:
            # Only the beginning is known of the two phases, so they have their time together.
            since = attempt.starting_at or attempt.placed_at
            reason = EndReason.STAGE_IN_TIMEOUT if attempt.phase == "stage_in" else EndReason.PULL_TIMEOUT
            return since + timedelta(seconds=timeouts.pull + timeouts.stage_in + limits.clock_slack_s), reason
        case AttemptState.FINISHING:
            since = attempt.finishing_at or attempt.placed_at
            return since + timedelta(seconds=limits.finishing_s), EndReason.FINISHING_TIMEOUT
        case _:
            return _run_limit(attempt.running_at or attempt.placed_at, timeouts, limits), EndReason.RUN_TIMEOUT


def _run_limit(running_at: datetime, timeouts: Timeouts, limits: Limits) -> datetime:
    return running_at + timedelta(seconds=timeouts.run + limits.clock_slack_s)
