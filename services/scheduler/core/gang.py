"""Gangs: members that start together or not at all, and end together.

Each member is a job of its own, so it is placed, followed, stopped, logged and stored as any other; its gang decides
whether there is another try. The gang's record is the truth about a round: a member that it does not name, because a
scheduler died between recording the two, is stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from services.scheduler.core import clocks, lifecycle, retry
from services.scheduler.core.limits import Limits
from services.scheduler.core.placement import Placement
from shared.ids import keyed_id
from shared.job import ATTEMPTS_KEPT, Attempt, Failure, GangMember, GangPlace, Job
from shared.spec import GangRole, JobSpec
from shared.states import (
    INFRASTRUCTURE_REASONS,
    JOB_TERMINAL,
    AttemptState,
    EndReason,
    JobEventName,
    JobState,
)

#: Of each member's error: the gang's events carry them all, and the broker takes 1 MiB at most.
_ERROR_CHARS = 300
#: Not a secret: the same round of a gang has the same members whoever decides it.
_ID_KEY = b"wherry gang"
_ORDER = (JobState.PLACED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING)
_EVENT = {
    JobState.STARTING: JobEventName.STARTING,
    JobState.RUNNING: JobEventName.RUNNING,
    JobState.FINISHING: JobEventName.FINISHING,
}
_STARTED = frozenset({JobState.RUNNING, JobState.FINISHING})
_ATTEMPT_STATE = {
    JobState.FAILED: AttemptState.FAILED,
    JobState.CANCELLED: AttemptState.CANCELLED,
    JobState.TIMED_OUT: AttemptState.TIMED_OUT,
}


def member_specs(spec: JobSpec) -> tuple[JobSpec, ...]:
    """Return what each member runs, by rank."""
    size = spec.gang.size if spec.gang else 0
    return tuple(_member_spec(spec, name, index, rank, size, role) for rank, (name, index, role) in _ranks(spec))


def place(gang: Job, places: Sequence[Placement], now: datetime, limits: Limits) -> tuple[lifecycle.Change, list[Job]]:
    """Return the gang with a new round, and that round's members, each on its place (by rank)."""
    number = gang.attempt + 1
    jobs: list[Job] = []
    members: list[GangMember] = []
    seats = zip(_ranks(gang.spec), member_specs(gang.spec), places, strict=True)
    for (rank, (role, index, like)), spec, found in seats:
        where = GangPlace(
            gang_id=gang.id,
            round=number,
            role=role,
            index=index,
            rank=rank,
            size=len(places),
            wait_s=gang.spec.gang.deadline if gang.spec.gang and like.start_after else 0,
        )
        new = Job(
            id=keyed_id("j", _ID_KEY, gang.id, str(number), str(rank)),
            owner=gang.owner,
            spec=spec,
            created_at=now,
            updated_at=now,
            ready_at=now,  # what the gang needs has ended
            member_of=where,
        )
        change = lifecycle.step(new, lifecycle.Placed(found.node, found.gpus, found.score), now, limits)
        assert change is not None  # noqa: S101 - a new job may always be placed
        jobs.append(change.job)
        members.append(
            GangMember(job_id=new.id, role=role, index=index, node=found.node, state=JobState.PLACED, placed_at=now)
        )
    update = {
        "state": JobState.PLACED,
        "attempt": number,
        "members": tuple(members),
        "pending": (),
        "not_before": None,
        "updated_at": now,
    }
    return lifecycle.Change(gang.model_copy(update=update), JobEventName.PLACED), jobs


def follow(
    gang: Job, changed: Mapping[str, Job], missing: frozenset[str], now: datetime, limits: Limits
) -> lifecycle.Change | None:
    """Return what the gang becomes when members have changed, or None if that changes nothing worth an event.

    Args:
        gang: placed at least.
        changed: members as they are now, by id: all that are active, and those that have ended since.
        missing: members that the log does not know: they were never recorded, so they will not run.
        now: the time.
        limits: of retries.
    """
    before = gang.members
    members = tuple(_seen(one, changed.get(one.job_id), is_missing=one.job_id in missing) for one in before)
    gang = gang.model_copy(update={"members": members, "updated_at": now})
    if all(one.state in JOB_TERMINAL for one in members):
        return _over(gang, now, limits)
    is_given_up = any(job.cancel_requested_at is not None for job in changed.values())
    state = min((one.state for one in members if one.state not in JOB_TERMINAL), key=_ORDER.index)
    ended = [one for was, one in zip(before, members, strict=True) if one.state in JOB_TERMINAL and was != one]
    if ended:  # recorded at once: a member that has ended is soon known to the log alone
        is_told = any(_has_failed(one) for one in before)  # who is stopped because of that is not worth a word
        causes = [one for one in ended if (_has_failed(one) and not is_told) or _is_cause(one)]
        failed = next((f"{_name(one)} {_why(one)}; the others are stopped" for one in causes), None)
        failed = None if _is_served(gang) or clocks.is_unwanted(gang, now) else failed  # then that is why they end
        told = lifecycle.with_remark(gang, failed) if failed else None
        return told or lifecycle.Change(gang, JobEventName.REMARKED)
    if _ORDER.index(state) > _ORDER.index(gang.state) and not is_given_up:  # what is being stopped gets no further
        return lifecycle.Change(gang.model_copy(update={"state": state}), _EVENT[state])
    return None


def is_to_stop(gang: Job, now: datetime) -> bool:
    """Return whether the members that still run are to be stopped."""
    has_failed = any(_has_failed(one) for one in gang.members)
    return clocks.is_unwanted(gang, now) or has_failed or _is_served(gang) or _is_late(gang, now)


def belongs(member: GangPlace | None, gang: Job | None) -> bool:
    """Return whether a member is of the round that its gang is in."""
    return member is not None and gang is not None and gang.state in lifecycle.HOLDING and gang.attempt == member.round


def _ranks(spec: JobSpec) -> Iterator[tuple[int, tuple[str, int, GangRole]]]:
    names = spec.gang.roles if spec.gang else {}
    roles = zip(names, spec.members(), strict=True)
    return enumerate((name, index, role) for name, role in roles for index in range(role.count))


def _member_spec(spec: JobSpec, name: str, index: int, rank: int, size: int, role: GangRole) -> JobSpec:
    place = {"WHERRY_ROLE": name, "WHERRY_INDEX": str(index), "WHERRY_RANK": str(rank), "WHERRY_GANG_SIZE": str(size)}
    update = {
        "name": f"{spec.name[:90]}.{name}-{index}",
        "kind": "run",
        "gang": None,
        "image": role.image,
        "command": role.command,
        "resources": role.resources,
        "env": {**role.env, **place},
        "needs": (),
        "notify": (),
        "max_attempts": 1,
        "idempotency_key": None,
        "timeouts": spec.timeouts.model_copy(update={"queue": None}),
    }
    return spec.model_copy(update=update)


def _seen(member: GangMember, job: Job | None, *, is_missing: bool) -> GangMember:
    if member.state in JOB_TERMINAL:
        return member
    if is_missing:
        failure = Failure(reason=EndReason.NODE_LOST, message="it was never recorded")
        return member.model_copy(update={"state": JobState.FAILED, "error": failure})
    if job is None:
        return member
    last = job.attempts[-1] if job.attempts else None
    return member.model_copy(
        update={
            "node": last.node if last else member.node,
            "state": job.state,
            "error": _error_of(job),
            "exit_code": last.exit_code if last else None,
            "outputs": job.outputs,
        }
    )


def _has_failed(member: GangMember) -> bool:
    return member.state in JOB_TERMINAL and member.state is not JobState.SUCCEEDED


def _served(gang: Job) -> list[GangMember]:
    """Return the members but for those that serve the others: what these do is what the gang is for."""
    roles = gang.spec.gang.roles if gang.spec.gang else {}
    return [one for one in gang.members if not roles[one.role].serves]


def _is_served(gang: Job) -> bool:
    """Return whether all members have succeeded but for those that serve them."""
    return all(one.state is JobState.SUCCEEDED for one in _served(gang))


def _is_late(gang: Job, now: datetime) -> bool:
    limit = clocks.gang_limit_at(gang)
    return limit is not None and now >= limit


def _over(gang: Job, now: datetime, limits: Limits) -> lifecycle.Change:
    if _is_served(gang):
        # What a gang leaves is what the first of them leaves; the others' outputs are under their own ids.
        change = lifecycle.end(gang.model_copy(update={"tries": gang.tries + 1}), JobState.SUCCEEDED, None, now)
        job = change.job.model_copy(update={"outputs": _served(gang)[0].outputs})
        return lifecycle.Change(job, change.name)
    cause = min((one for one in gang.members if _is_cause(one)), key=_is_fault_of_job, default=None)
    failure = _failure(gang, cause)
    attempt = Attempt(
        number=gang.attempt,
        node=cause.node if cause else gang.members[0].node,
        state=_attempt_state(cause),
        placed_at=gang.members[0].placed_at,
        ended_at=now,
        exit_code=cause.exit_code if cause else None,
        error=failure,
    )
    gang = gang.model_copy(update={"attempts": (*gang.attempts, attempt)[-ATTEMPTS_KEPT:]})
    change = _verdict(gang, attempt, failure, now, limits)
    if change.job.state is not JobState.QUEUED:
        return change
    told = lifecycle.with_remark(change.job, f"round {gang.attempt} is over: {failure.message}; all begin anew")
    return lifecycle.Change(told.job, change.name) if told else change


def _verdict(gang: Job, attempt: Attempt, failure: Failure, now: datetime, limits: Limits) -> lifecycle.Change:
    """Return what follows when a round came to nothing: the end, or another."""
    if _is_given_up(gang, failure):
        return lifecycle.stopped(gang, now) or lifecycle.end(gang, JobState.FAILED, failure, now)
    if failure.reason in INFRASTRUCTURE_REASONS:
        may_run = any(one.error is not None and one.error.reason is EndReason.UNKILLABLE for one in gang.members)
        return lifecycle.after_loss(gang, failure, now, limits, may_run=may_run)
    if over := lifecycle.stopped(gang, now):
        return over
    gang = gang.model_copy(update={"tries": gang.tries + 1})
    if gang.tries < gang.spec.max_attempts and _is_restarted(gang.spec, attempt, failure):
        return lifecycle.requeue(gang, failure, retry.wait_after_failure(gang, limits), now)
    state = JobState.TIMED_OUT if retry.is_timeout(attempt, failure) else JobState.FAILED
    return lifecycle.end(gang, state, failure, now)


def _is_restarted(spec: JobSpec, attempt: Attempt, failure: Failure) -> bool:
    return (
        spec.gang is not None and spec.gang.on_failure == "restart" and retry.is_wanted(spec.retry_on, attempt, failure)
    )


def _is_given_up(gang: Job, failure: Failure) -> bool:
    """Return whether a gang is to end with a machine that is lost. A drain is a wish, and moves it."""
    if gang.spec.gang is None or gang.spec.gang.on_loss == "restart" or gang.state not in _STARTED:
        return False
    return failure.reason in INFRASTRUCTURE_REASONS and failure.reason is not EndReason.NODE_DRAINED


def _error_of(job: Job) -> Failure | None:
    """Return why a member has ended.

    Who loses a peer may fail before its node is given up. That the node was silent when the member was to be stopped
    because of that is then what began it.
    """
    error, last = job.error, job.attempts[-1] if job.attempts else None
    asked_at, heard_at = job.cancel_requested_at, last.heard_at if last else None
    was_silent = asked_at is not None and heard_at is not None and heard_at < asked_at
    if was_silent and last is not None and last.error is not None and last.error.reason is EndReason.NODE_LOST:
        error = last.error
    return error and Failure(reason=error.reason, message=error.message[:_ERROR_CHARS])


def _attempt_state(cause: GangMember | None) -> AttemptState:
    if cause is None:
        return AttemptState.CANCELLED
    return AttemptState.LOST if cause.state is JobState.CANCELLED else _ATTEMPT_STATE[cause.state]


def _is_cause(member: GangMember) -> bool:
    if member.state is JobState.CANCELLED:
        return member.error is not None and member.error.reason is EndReason.NODE_LOST
    return _has_failed(member)


def _is_fault_of_job(member: GangMember) -> bool:
    # Whoever loses a peer fails too: if a machine was at fault anywhere, it was the machine.
    return member.error is None or member.error.reason not in INFRASTRUCTURE_REASONS


def _failure(gang: Job, cause: GangMember | None) -> Failure:
    if cause is not None and cause.error is not None:
        return Failure(reason=cause.error.reason, message=f"{_name(cause)}: {cause.error.message}")
    if gang.state in _STARTED:
        return Failure(reason=EndReason.GANG_FAILED, message="a member was cancelled")
    return Failure(reason=EndReason.GANG_TIMEOUT, message="not all members ran in time")


def _name(member: GangMember) -> str:
    return f"member {member.role}-{member.index}"


def _why(member: GangMember) -> str:
    verb = "was" if member.state is JobState.CANCELLED else "has"
    return f"{verb} {member.state.value.replace('_', ' ')}" + (f" ({member.error.message})" if member.error else "")
