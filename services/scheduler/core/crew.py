"""Members that come and go: the workers of a map job and the replicas of a service.

Each is a job of its own, of kind run, which waits in the line, is placed, followed and stopped as any other and is
never tried again: its parent decides whether there is to be another in its place. The parent's record is the truth
about who belongs to it: a member that it does not name, because a scheduler died between recording the two, is
stopped; one that it names and the log does not know has never been, and is replaced.

The parent holds nothing itself. It is queued as long as no member runs and running as soon as one does.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from services.scheduler.core import lifecycle
from shared.ids import keyed_id
from shared.job import REMARKS_KEPT, Failure, GangMember, GangPlace, Job, PendingReason
from shared.model import Remark
from shared.spec import JobSpec, Timeouts
from shared.states import JOB_TERMINAL, JobEventName, JobState

#: The only legal moves of a map job or a service: state -> event -> states. ``members`` is all that its members, its
#: items and its owner's wishes do to it.
PARENT_MOVES: Mapping[JobState, Mapping[str, frozenset[JobState]]] = {
    JobState.QUEUED: {
        "members": frozenset(
            {JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED}
            | {JobState.CANCELLED, JobState.TIMED_OUT}
        ),
        "pending": frozenset({JobState.QUEUED}),
        "needs_met": frozenset({JobState.QUEUED}),
        "need_failed": frozenset({JobState.CANCELLED, JobState.FAILED}),
        "cancel": frozenset({JobState.QUEUED, JobState.CANCELLED}),
        "expired": frozenset({JobState.TIMED_OUT}),
    },
    JobState.RUNNING: {
        "members": frozenset(
            {JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED}
            | {JobState.CANCELLED, JobState.TIMED_OUT}
        ),
        "cancel": frozenset({JobState.RUNNING}),
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
    JobState.TIMED_OUT: {},
}

#: Of each member's error: the parent's events carry them all, and the broker takes 1 MiB at most.
_ERROR_CHARS = 300
#: Not a secret: the same member of a parent has the same id whoever makes it.
_ID_KEY = b"wherry crew"
#: As long as a spec can say: a member is kept for as long as its parent wants it.
_FOREVER_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows for a parent: the event about itself, members that are new, and members that are to be stopped."""

    change: lifecycle.Change | None = None
    hired: tuple[Job, ...] = ()
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What has become of a parent's members: those that have not ended as they are now, and those that have.

    Of one that was never recorded there is no job; it is simply gone.
    """

    members: tuple[GangMember, ...]
    ended: tuple[tuple[GangMember, Job | None], ...]


def is_parent(job: Job) -> bool:
    """Return whether members that come and go do the job's work."""
    return job.spec.kind in ("map", "service")


def belongs(member: Job, parent: Job | None) -> bool:
    """Return whether *parent* is still there and names *member*."""
    if parent is None or parent.is_terminal:
        return False
    return any(one.job_id == member.id for one in parent.members)


def see(members: Iterable[GangMember], jobs: Mapping[str, Job], missing: frozenset[str]) -> Seen:
    """Return a parent's *members* as they are by now.

    Args:
        members: as the parent's last event has them.
        jobs: members by id: all that are active, and those that have ended since.
        missing: members that the log does not know.
    """
    there: list[GangMember] = []
    ended: list[tuple[GangMember, Job | None]] = []
    for member in members:
        job = jobs.get(member.job_id)
        if member.job_id in missing:
            ended.append((member, None))
        elif job is None:
            there.append(member)
        elif job.state in JOB_TERMINAL:
            ended.append((_seen(member, job), job))
        else:
            there.append(_seen(member, job))
    return Seen(tuple(there), tuple(ended))


def hire(
    parent: Job,
    role: str,
    spec: JobSpec,
    count: int,
    now: datetime,
    *,
    known: Container[str] = (),
    revision: int = 0,
) -> tuple[Job, tuple[Job, ...]]:
    """Return *parent* with *count* more members, and those: queued jobs that nothing is recorded about yet.

    Args:
        parent: as it will be recorded; its `attempt` counts its members, so that each has an id of its own.
        role: theirs.
        spec: what each runs; see `member_spec`.
        count: how many.
        now: the time.
        known: ids that are taken, because a member was recorded and its parent was not.
        revision: of a service's spec.
    """
    jobs: list[Job] = []
    members = list(parent.members)
    number = parent.attempt
    for _ in range(count):
        number, member_id = _next_id(parent.id, number, known)
        index = _free_index(members)
        named = spec.model_copy(update={"name": f"{spec.name[:90]}.{role}-{index}"})
        place = GangPlace(gang_id=parent.id, round=revision, role=role, index=index, rank=index, size=0)
        # What the parent needs has ended.
        job = Job(
            id=member_id, owner=parent.owner, spec=named, created_at=now, updated_at=now, ready_at=now, member_of=place
        )
        jobs.append(job)
        members.append(
            GangMember(
                job_id=job.id,
                role=role,
                index=index,
                revision=revision,
                node="",
                state=JobState.QUEUED,
                placed_at=now,
            )
        )
    return parent.model_copy(update={"attempt": number, "members": tuple(members)}), tuple(jobs)


def member_spec(spec: JobSpec) -> JobSpec:
    """Return what a member of a job of *spec* runs: the same program, once, for as long as its parent wants it."""
    update = {
        "kind": "run",
        "gang": None,
        "map": None,
        "service": None,
        "needs": (),
        "notify": (),
        "max_attempts": 1,
        "idempotency_key": None,
        "timeouts": Timeouts(
            queue=None,
            pull=spec.timeouts.pull,
            # A replica is not ready before it answers; its node keeps the limit on that.
            stage_in=spec.timeouts.stage_in + (spec.service.start_timeout if spec.service else 0),
            run=_FOREVER_S,
            total=_FOREVER_S,
        ),
    }
    return spec.model_copy(update=update)


def follow_state(parent: Job, members: Iterable[GangMember]) -> tuple[JobState, JobEventName]:
    """Return the state that a parent which goes on has by its *members*, and the event that tells of it.

    One that is about to end changes nothing: it may have run, or not.
    """
    states = {one.state for one in members}
    if JobState.RUNNING in states:
        state = JobState.RUNNING
    else:
        state = parent.state if JobState.FINISHING in states else JobState.QUEUED
    if state is parent.state:
        return state, JobEventName.REMARKED
    return state, JobEventName.RUNNING if state is JobState.RUNNING else JobEventName.REQUEUED


def pending_of(members: Iterable[GangMember], jobs: Mapping[str, Job]) -> tuple[PendingReason, ...]:
    """Return why members wait, as the first of them that says so does."""
    waiting = (jobs[one.job_id] for one in members if one.state is JobState.QUEUED and one.job_id in jobs)
    return next((job.pending for job in waiting if job.pending), ())


def with_remark(parent: Job, text: Remark) -> Job:
    """Return *parent* with a remark, without its oldest one where it has many: it may live for years."""
    if parent.remarks[-1:] == (text,):
        return parent
    return parent.model_copy(update={"remarks": (*parent.remarks, text)[-REMARKS_KEPT:]})


def ran_for_s(job: Job) -> float:
    """Return for how many seconds the program of a member had run when it ended."""
    attempt = job.attempts[-1] if job.attempts else None
    if attempt is None or attempt.running_at is None:
        return 0.0
    ended_at = attempt.finishing_at or attempt.ended_at or job.ended_at or attempt.running_at
    return (ended_at - attempt.running_at).total_seconds()


def _next_id(parent_id: str, number: int, known: Container[str]) -> tuple[int, str]:
    while True:
        number += 1
        member_id = keyed_id("j", _ID_KEY, parent_id, str(number))
        if member_id not in known:
            return number, member_id


def _free_index(members: Iterable[GangMember]) -> int:
    taken = {one.index for one in members}
    return next(index for index in range(len(taken) + 1) if index not in taken)


def _seen(member: GangMember, job: Job) -> GangMember:
    last = job.attempts[-1] if job.attempts else None
    state = job.state
    if job.cancel_requested_at is not None and state not in JOB_TERMINAL:
        state = JobState.FINISHING  # it is given nothing more
    error = job.error and Failure(reason=job.error.reason, message=job.error.message[:_ERROR_CHARS])
    update = {"node": last.node if last else "", "state": state, "error": error}
    if last is not None:
        update |= {"placed_at": last.placed_at, "exit_code": last.exit_code}
    return member.model_copy(update=update)
