"""What happens to one job. `step` says what follows an event; `MOVES` and `ATTEMPT_MOVES` say what is legal at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.core import clocks, retry
from services.scheduler.core.limits import Limits
from shared.events import AttemptFinished, AttemptFinishing, AttemptRunning, AttemptStarting
from shared.job import ATTEMPTS_KEPT, REMARKS_KEPT, Attempt, Failure, Job, PendingReason
from shared.states import (
    ATTEMPT_TERMINAL,
    INFRASTRUCTURE_REASONS,
    JOB_TERMINAL,
    AttemptState,
    EndReason,
    JobEventName,
    JobState,
    PendingCode,
)

_ENDS = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})
_AFTER_ATTEMPT = _ENDS | {JobState.QUEUED}
_AFTER_LOSS = _AFTER_ATTEMPT - {JobState.SUCCEEDED}

#: The only legal moves of a job: state -> event -> states that it may lead to. Reports may be lost or overtake each
#: other, so a later one is taken without the earlier. docs/states.md is drawn from it.
MOVES: Mapping[JobState, Mapping[str, frozenset[JobState]]] = {
    JobState.QUEUED: {
        "pending": frozenset({JobState.QUEUED}),
        "placed": frozenset({JobState.PLACED}),
        "needs_met": frozenset({JobState.QUEUED}),
        "need_failed": frozenset({JobState.CANCELLED, JobState.FAILED}),
        "cancel": frozenset({JobState.CANCELLED}),
        "expired": frozenset({JobState.TIMED_OUT}),
    },
    JobState.PLACED: {
        "starting": frozenset({JobState.STARTING}),
        "running": frozenset({JobState.RUNNING}),
        "finishing": frozenset({JobState.FINISHING}),
        "finished": _AFTER_ATTEMPT,
        "cancel": frozenset({JobState.PLACED}),
        "remarked": frozenset({JobState.PLACED}),
        "lost": _AFTER_LOSS,
    },
    JobState.STARTING: {
        "starting": frozenset({JobState.STARTING}),
        "running": frozenset({JobState.RUNNING}),
        "finishing": frozenset({JobState.FINISHING}),
        "finished": _AFTER_ATTEMPT,
        "cancel": frozenset({JobState.STARTING}),
        "remarked": frozenset({JobState.STARTING}),
        "lost": _AFTER_LOSS,
    },
    JobState.RUNNING: {
        "finishing": frozenset({JobState.FINISHING}),
        "finished": _AFTER_ATTEMPT,
        "cancel": frozenset({JobState.RUNNING}),
        "remarked": frozenset({JobState.RUNNING}),
        "lost": _AFTER_LOSS,
    },
    JobState.FINISHING: {
        "finished": _AFTER_ATTEMPT,
        "cancel": frozenset({JobState.FINISHING}),
        "remarked": frozenset({JobState.FINISHING}),
        "lost": _AFTER_LOSS,
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
    JobState.TIMED_OUT: {},
}

#: The same for an attempt. It begins at `placed`; a new try is a new attempt.
ATTEMPT_MOVES: Mapping[AttemptState, Mapping[str, frozenset[AttemptState]]] = {
    AttemptState.PLACED: {
        "starting": frozenset({AttemptState.STARTING}),
        "running": frozenset({AttemptState.RUNNING}),
        "finishing": frozenset({AttemptState.FINISHING}),
        "finished": ATTEMPT_TERMINAL,
        "lost": frozenset({AttemptState.LOST}),
    },
    AttemptState.STARTING: {
        "starting": frozenset({AttemptState.STARTING}),
        "running": frozenset({AttemptState.RUNNING}),
        "finishing": frozenset({AttemptState.FINISHING}),
        "finished": ATTEMPT_TERMINAL,
        "lost": frozenset({AttemptState.LOST}),
    },
    AttemptState.RUNNING: {
        "finishing": frozenset({AttemptState.FINISHING}),
        "finished": ATTEMPT_TERMINAL,
        "lost": frozenset({AttemptState.LOST}),
    },
    AttemptState.FINISHING: {
        "finished": ATTEMPT_TERMINAL,
        "lost": frozenset({AttemptState.LOST}),
    },
    AttemptState.SUCCEEDED: {},
    AttemptState.FAILED: {},
    AttemptState.CANCELLED: {},
    AttemptState.TIMED_OUT: {},
    AttemptState.LOST: {},
}

#: A job in one of these has an attempt that holds resources of a node.
HOLDING = frozenset({JobState.PLACED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING})

_EVENT_OF_END: Mapping[JobState, JobEventName] = {
    JobState.SUCCEEDED: JobEventName.SUCCEEDED,
    JobState.FAILED: JobEventName.FAILED,
    JobState.CANCELLED: JobEventName.CANCELLED,
    JobState.TIMED_OUT: JobEventName.TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class Placed:
    """A node was chosen."""

    node: str
    gpus: tuple[str, ...]
    score: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Waiting:
    """No node was found, for these reasons."""

    reasons: tuple[PendingReason, ...]


@dataclass(frozen=True, slots=True)
class NeedsMet:
    """All jobs that this one needs have ended as they must."""


@dataclass(frozen=True, slots=True)
class NeedFailed:
    """A job that this one needs did not end as it must, and never will."""

    message: str
    is_cancel: bool  # it was cancelled


@dataclass(frozen=True, slots=True)
class Report:
    """What *node* (by the subject, never the body) says about an attempt.

    *heard_at*: when the node was last heard before it rebooted, if it did.
    """

    node: str
    data: AttemptStarting | AttemptRunning | AttemptFinishing | AttemptFinished
    heard_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody with the right to do so wants the job to stop."""

    by: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt is gone without a last word.

    *heard_at*: when its node was last heard, if the node itself is gone. *may_run*: its program may still run there.
    """

    attempt: int
    reason: EndReason
    message: str
    heard_at: datetime | None = None
    may_run: bool = False


@dataclass(frozen=True, slots=True)
class Remarked:
    """Something worth telling about the current attempt, which moves nothing."""

    text: str


@dataclass(frozen=True, slots=True)
class Expired:
    """A limit on the queue or on the whole job may have passed."""


Event = Placed | Waiting | NeedsMet | NeedFailed | Report | Cancel | Lost | Remarked | Expired


@dataclass(frozen=True, slots=True)
class Change:
    """The job after an event, and the event that tells of it."""

    job: Job
    name: JobEventName


def step(job: Job, event: Event, now: datetime, limits: Limits) -> Change | None:
    """Return the job after *event*, or None where it changes nothing.

    Late, repeated and reordered reports change nothing: delivery is at least once, so they are normal.
    """
    if job.state in JOB_TERMINAL:
        return None
    change = _step(job, event, now, limits)
    if change is None:
        return None
    return Change(change.job.model_copy(update={"updated_at": now}), change.name)


def failed_nodes(job: Job) -> frozenset[str]:
    """Return the nodes on which an attempt of the job came to nothing.

    One that failed by itself does not speak against a node that has by now what it needs: another would bring it first.
    """
    ended = (a for a in job.attempts if a.state in ATTEMPT_TERMINAL)
    return frozenset(a.node for a in ended if not (job.spec.inputs and _by_itself(a)))


def _by_itself(attempt: Attempt) -> bool:
    return attempt.error is not None and attempt.error.reason in (
        EndReason.EXIT_CODE,
        EndReason.OOM,
        EndReason.RUN_TIMEOUT,
    )


def has_members(job: Job) -> bool:
    """Return whether a job has members that have not ended: they end before it does."""
    return any(one.state not in JOB_TERMINAL for one in job.members)


def pinned_image(job: Job) -> str | None:
    """Return the image digest that the first attempt resolved, so that every attempt runs the same."""
    return next((a.image_digest for a in job.attempts if a.image_digest), None)


def _step(job: Job, event: Event, now: datetime, limits: Limits) -> Change | None:
    match event:
        case Placed() if job.state is JobState.QUEUED and not clocks.waits_for_needs(job):
            return _placed(job, event, now)
        case Waiting(reasons) if job.state is JobState.QUEUED and reasons != job.pending:
            return Change(job.model_copy(update={"pending": reasons}), JobEventName.PENDING)
        case NeedsMet() if clocks.waits_for_needs(job):
            return Change(job.model_copy(update={"ready_at": now, "pending": ()}), JobEventName.PENDING)
        case NeedFailed() if clocks.waits_for_needs(job):
            failure = Failure(reason=EndReason.NEEDS_FAILED, message=event.message)
            return end(job, JobState.CANCELLED if event.is_cancel else JobState.FAILED, failure, now)
        case Cancel():
            return _cancel(job, now)
        case Remarked(text) if job.state in HOLDING:
            return with_remark(job, text)
        case Expired() if job.state is JobState.QUEUED:
            return _expired(job, now)
        case Report() if (attempt := _current(job, event.data.attempt)) and attempt.node == event.node:
            return _report(job, attempt, event, now, limits)
        case Lost() if attempt := _current(job, event.attempt):
            return _lost(job, attempt, event, now, limits)
        case _:
            return None


def _current(job: Job, number: int) -> Attempt | None:
    attempt = job.current if job.state in HOLDING else None
    return attempt if attempt is not None and attempt.number == number else None


def _placed(job: Job, event: Placed, now: datetime) -> Change:
    attempt = Attempt(
        number=job.attempt + 1,
        node=event.node,
        state=AttemptState.PLACED,
        gpus=event.gpus,
        score=dict(event.score),
        placed_at=now,
    )
    update = {
        "state": JobState.PLACED,
        "attempt": attempt.number,
        "attempts": (*job.attempts, attempt)[-ATTEMPTS_KEPT:],
        "pending": (),
        "not_before": None,
    }
    return Change(job.model_copy(update=update), JobEventName.PLACED)


def _cancel(job: Job, now: datetime) -> Change | None:
    if job.cancel_requested_at is not None:
        return None
    asked = job.model_copy(update={"cancel_requested_at": now})
    if job.state is JobState.QUEUED and not has_members(job):
        return _cancelled(asked, now)
    return Change(asked, JobEventName.CANCELLING)


def _expired(job: Job, now: datetime) -> Change | None:
    if clocks.is_overdue(job, now):
        return None if has_members(job) else _overdue(job, now)
    limit_at = clocks.queue_limit_at(job)
    if limit_at is None or now < limit_at:
        return None
    message = f"no node was found within {job.spec.timeouts.queue:g} s"
    return end(job, JobState.TIMED_OUT, Failure(reason=EndReason.QUEUE_TIMEOUT, message=message), now)


def with_remark(job: Job, text: str) -> Change | None:
    """Return the job with a remark, or None if it has that already, or has enough of them."""
    # What is seen again and again is told once; the room is for other remarks too.
    if job.remarks[-1:] == (text,) or len(job.remarks) >= REMARKS_KEPT:
        return None
    return Change(job.model_copy(update={"remarks": (*job.remarks, text)}), JobEventName.REMARKED)


def _report(job: Job, attempt: Attempt, event: Report, now: datetime, limits: Limits) -> Change | None:
    # A node's clock may be wrong; its times are kept within what we know to be true.
    at = min(max(event.data.at, attempt.placed_at), now)
    match event.data:
        case AttemptStarting(phase=phase) if attempt.state in (AttemptState.PLACED, AttemptState.STARTING):
            if attempt.phase == phase:
                return None
            update = {"state": AttemptState.STARTING, "phase": phase, "starting_at": attempt.starting_at or at}
            return _moved(job, attempt, update, JobState.STARTING, JobEventName.STARTING)
        case AttemptRunning(image_digest=digest) if _is_before(attempt, AttemptState.RUNNING):
            update = {"state": AttemptState.RUNNING, "phase": None, "running_at": at, "image_digest": digest}
            return _moved(job, attempt, update, JobState.RUNNING, JobEventName.RUNNING)
        case AttemptFinishing(exit_code=exit_code) if _is_before(attempt, AttemptState.FINISHING):
            update = {"state": AttemptState.FINISHING, "phase": None, "finishing_at": at, "exit_code": exit_code}
            return _moved(job, attempt, update, JobState.FINISHING, JobEventName.FINISHING)
        case AttemptFinished(state=state) if state in ATTEMPT_TERMINAL:
            attempt = attempt.model_copy(update={"heard_at": event.heard_at})
            return _finished(job, attempt, event.data, at, now, limits)
        case _:
            return None


def _is_before(attempt: Attempt, state: AttemptState) -> bool:
    order = (AttemptState.PLACED, AttemptState.STARTING, AttemptState.RUNNING, AttemptState.FINISHING)
    return order.index(attempt.state) < order.index(state)


def _moved(job: Job, attempt: Attempt, update: Mapping[str, object], state: JobState, name: JobEventName) -> Change:
    moved = _with_attempt(job, attempt.model_copy(update=update))
    return Change(moved.model_copy(update={"state": state}), name)


def _finished(
    job: Job, attempt: Attempt, report: AttemptFinished, at: datetime, now: datetime, limits: Limits
) -> Change:
    running_at = report.running_at and min(max(report.running_at, attempt.placed_at), at)
    ended = attempt.model_copy(
        update={
            "state": report.state,
            "phase": None,
            "running_at": attempt.running_at or running_at,
            "ended_at": at,
            "exit_code": report.exit_code if report.exit_code is not None else attempt.exit_code,
            "error": report.error,
            "outputs": report.outputs,
            "peaks": report.peaks,
            "image_digest": report.image_digest or attempt.image_digest,
        }
    )
    job = _with_attempt(job, ended)
    if report.remarks:
        job = job.model_copy(update={"remarks": (*job.remarks, *report.remarks)[:REMARKS_KEPT]})
    if report.state is AttemptState.SUCCEEDED:
        return end(job.model_copy(update={"tries": job.tries + 1}), JobState.SUCCEEDED, None, now)
    failure = report.error or _failure_of(ended)
    if failure.reason in INFRASTRUCTURE_REASONS or report.state in (AttemptState.LOST, AttemptState.CANCELLED):
        return after_loss(job, failure, now, limits, may_run=failure.reason is EndReason.UNKILLABLE)
    return _attempt_failed(job, ended, failure, now, limits)


def _lost(job: Job, attempt: Attempt, event: Lost, now: datetime, limits: Limits) -> Change:
    failure = Failure(reason=event.reason, message=event.message)
    update = {"state": AttemptState.LOST, "phase": None, "ended_at": now, "error": failure, "heard_at": event.heard_at}
    ended = attempt.model_copy(update=update)
    job = _with_attempt(job, ended)
    if event.reason in INFRASTRUCTURE_REASONS:
        return after_loss(job, failure, now, limits, may_run=event.may_run)
    return _attempt_failed(job, ended, failure, now, limits, may_run=event.may_run)


def _failure_of(attempt: Attempt) -> Failure:
    if attempt.state is AttemptState.TIMED_OUT:
        return Failure(reason=EndReason.RUN_TIMEOUT, message="the program ran longer than it may")
    if attempt.state is AttemptState.FAILED:
        return Failure(reason=EndReason.EXIT_CODE, message=f"the program ended with exit code {attempt.exit_code}")
    return Failure(reason=EndReason.RUNTIME_ERROR, message="the node stopped the attempt though nobody had asked")


def _attempt_failed(
    job: Job, attempt: Attempt, failure: Failure, now: datetime, limits: Limits, *, may_run: bool = False
) -> Change:
    if over := (may_run and _in_doubt(job, failure, now)) or stopped(job, now):
        return over
    job = job.model_copy(update={"tries": job.tries + 1})
    is_wanted = job.tries < job.spec.max_attempts and retry.is_wanted(job.spec.retry_on, attempt, failure)
    if is_wanted and not (may_run and job.spec.exclusive):
        return requeue(job, failure, retry.wait_after_failure(job, limits), now)
    return end(job, JobState.TIMED_OUT if retry.is_timeout(attempt, failure) else JobState.FAILED, failure, now)


def after_loss(job: Job, failure: Failure, now: datetime, limits: Limits, *, may_run: bool = False) -> Change:
    """Return what follows when an attempt came to nothing through no fault of the job."""
    if over := (may_run and _in_doubt(job, failure, now)) or stopped(job, now):
        return over
    if killer := retry.node_killer(job, limits):
        return end(job, JobState.FAILED, killer, now)
    if failure.reason is EndReason.NODE_DRAINED:  # somebody's wish, and nobody's fault: neither charged nor waited for
        return requeue(job, failure, 0.0, now)
    job = job.model_copy(update={"losses": job.losses + 1})
    # Never two of an exclusive job at a time: while one may still run, there is no other.
    if job.losses > limits.losses_max or (may_run and job.spec.exclusive):
        return end(job, JobState.FAILED, failure, now)
    return requeue(job, failure, retry.wait_after_loss(job, failure, limits), now)


def _in_doubt(job: Job, failure: Failure, now: datetime) -> Change | None:
    """Return the end of an exclusive gang's member that may still run: its gang has to know that."""
    if job.member_of is None or not job.spec.exclusive:
        return None
    return end(job, JobState.FAILED, Failure(reason=EndReason.UNKILLABLE, message=failure.message), now)


def stopped(job: Job, now: datetime) -> Change | None:
    """Return the end of a job that was to be stopped, however its attempt ended."""
    if job.cancel_requested_at is not None:
        return _cancelled(job, now)
    return _overdue(job, now) if clocks.is_overdue(job, now) else None


def requeue(job: Job, failure: Failure, wait_s: float, now: datetime) -> Change:
    """Put the job back into the queue for another attempt in *wait_s* seconds.

    A member of a gang ends: whether there is another attempt is decided for the gang.
    """
    if job.member_of is not None:
        return end(job, JobState.FAILED, failure, now)
    wait = PendingReason(
        code=PendingCode.BACKOFF, nodes=0, message=f"tried again in {wait_s:g} s; the last attempt: {failure.message}"
    )
    update = {"state": JobState.QUEUED, "not_before": now + timedelta(seconds=wait_s), "pending": (wait,)}
    if not wait_s:
        update |= {"not_before": None, "pending": ()}
    return Change(job.model_copy(update=update), JobEventName.REQUEUED)


def _cancelled(job: Job, now: datetime) -> Change:
    failure = Failure(reason=EndReason.CANCELLED_BY_USER, message="its owner or an administrator asked for it")
    if job.member_of is not None and job.member_of.size:
        failure = Failure(reason=EndReason.GANG_FAILED, message="stopped with the other members of its gang")
    elif job.member_of is not None:
        message = "the job that it is part of has no use for it any more, or somebody asked for its end"
        failure = Failure(reason=EndReason.CANCELLED_BY_USER, message=message)
    return end(job, JobState.CANCELLED, failure, now)


def _overdue(job: Job, now: datetime) -> Change:
    failure = Failure(reason=EndReason.TOTAL_TIMEOUT, message=f"not done within {job.spec.timeouts.total:g} s in all")
    return end(job, JobState.TIMED_OUT, failure, now)


def end(job: Job, state: JobState, failure: Failure | None, now: datetime) -> Change:
    """End the job for good."""
    attempt = job.current
    update = {
        "state": state,
        "error": failure,
        "ended_at": now,
        "pending": (),
        "not_before": None,
        # Only what the current attempt itself has reported; an earlier one's outputs are never mixed in.
        "outputs": attempt.outputs if attempt else None,
    }
    return Change(job.model_copy(update=update), _EVENT_OF_END[state])


def _with_attempt(job: Job, attempt: Attempt) -> Job:
    return job.model_copy(update={"attempts": (*job.attempts[:-1], attempt)})
