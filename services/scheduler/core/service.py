"""Services: programs that are kept running. `follow` says which replicas there are to be, `decide` what wishes change.

A replica that ends is replaced: at once where a machine was at fault, after a back-off where it failed by itself, or
where machines fail again and again. The back-off is in the service's record: `tries` and `losses` count the ends in a
row, `not_before` is when the next replica may be made. A new revision is rolled out with one replica more than wanted:
it has to run before one of the old revision is stopped, so one that never gets well takes nobody's place.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.core import clocks, crew, lifecycle
from services.scheduler.core.crew import Plan
from services.scheduler.core.limits import Limits
from services.scheduler.core.words import count
from shared.events import ServiceAsked, ServiceUpdated
from shared.job import Failure, GangMember, Job, PendingReason
from shared.spec import JobSpec, Service
from shared.states import INFRASTRUCTURE_REASONS, EndReason, JobEventName, JobState, PendingCode

ROLE = "replica"
#: More replicas than wanted while some are exchanged.
_SURGE = 1
#: Seconds for a replica to end, beyond those for the requests that it has begun; and from there to disobedience.
_AFTER_DRAIN_S, _OBEY_SLACK_S = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a service."""

    data: ServiceUpdated | ServiceAsked


@dataclass(frozen=True, slots=True)
class Team:
    """A service's replicas as they are now.

    Attributes:
        jobs: by id: all that are active, and those that have ended since.
        missing: those that the log does not know.
        leaving: those on nodes that are being drained: each is to be replaced before its node is empty.
        used_at: about when the service was last asked.
        known: ids of jobs that cannot be given to a new replica.
    """

    jobs: Mapping[str, Job]
    missing: frozenset[str]
    leaving: frozenset[str]
    used_at: datetime
    known: Collection[str] = ()


def is_watched(job: Job, is_leaving: Callable[[str], bool]) -> bool:
    """Return whether time alone, or a node that is being drained, may change something for a service."""
    if job.spec.service is None:
        return False
    return job.spec.service.idle is not None or any(is_leaving(one.node) for one in job.members)


def wanted(job: Job) -> int:
    """Return how many replicas there are to be now."""
    if job.replicas is not None:
        return job.replicas
    return job.spec.service.replicas if job.spec.service else 0


def decide(job: Job, wish: Wish, now: datetime) -> lifecycle.Change | None:
    """Return the service after somebody's wish, or None where it changes nothing."""
    if job.spec.service is None or job.is_terminal or clocks.is_unwanted(job, now):
        return None
    match wish.data:
        case ServiceAsked():
            return _asked(job, job.spec.service, now)
        case ServiceUpdated() as update:
            return _updated(job, job.spec.service, update, now)


def follow(job: Job, team: Team, now: datetime, limits: Limits) -> Plan:
    """Return what follows for a service, its new replicas, and those that are to be stopped."""
    before, seen = job, crew.see(job.members, team.jobs, team.missing)
    job = job.model_copy(update={"members": seen.members, "replicas": wanted(job)})
    known = {one.job_id: one.state for one in before.members}
    for member in seen.members:
        if member.state is JobState.FINISHING is not known[member.job_id]:
            job = _finishing(job, team.jobs.get(member.job_id), now, limits)
    for member, ended in seen.ended:
        job = _replaced(job, member, ended, now, limits, is_charged=known[member.job_id] is JobState.FINISHING)
    if clocks.is_unwanted(job, now):
        return _ending(before, job, team, now)
    idled = _idled(job, team.used_at, team.jobs, now)
    job = idled or job
    hired: tuple[Job, ...] = ()
    if job.not_before is None or job.not_before <= now:
        missing = _missing(job, team)
        spec = crew.member_spec(job.spec)
        job, hired = crew.hire(job, ROLE, spec, missing, now, known=team.known, revision=job.revision)
    stopped = _surplus(job, team)
    job = job.model_copy(update={"members": _marked(job.members, stopped)})
    return _plan(before, job, team, now, hired, stopped, JobEventName.UPDATED if idled else None)


# --- wishes --------------------------------------------------------------------------------------------------------


def _asked(job: Job, wished: Service, now: datetime) -> lifecycle.Change | None:
    # Without `idle`, 0 replicas are what somebody wanted.
    if wanted(job) or wished.idle is None:
        return None
    update = {"replicas": max(1, wished.replicas), "used_at": now, "updated_at": now}
    return lifecycle.Change(job.model_copy(update=update), JobEventName.UPDATED)


def _updated(job: Job, wished: Service, update: ServiceUpdated, now: datetime) -> lifecycle.Change | None:
    spec, revision = job.spec, job.revision
    if update.spec is not None:
        if update.spec.service is None:
            return None
        wished, revision = update.spec.service, revision + 1
        kept = {"view": spec.view, "idempotency_key": spec.idempotency_key}
        spec = update.spec.model_copy(update=kept)
    if update.replicas is not None:
        wished = wished.model_copy(update={"replicas": update.replicas})
    spec = spec.model_copy(update={"service": wished})
    changed = {
        "spec": spec,
        "revision": revision,
        "replicas": wished.replicas,
        "used_at": now,
        "updated_at": now,
        # Whatever has failed, something else is wanted now.
        "tries": 0,
        "losses": 0,
        "not_before": None,
    }
    if not clocks.waits_for_needs(job):
        changed["ready_at"] = job.ready_at or now
    return lifecycle.Change(job.model_copy(update=changed), JobEventName.UPDATED)


# --- what has become of replicas -----------------------------------------------------------------------------------


def _finishing(job: Job, replica: Job | None, now: datetime, limits: Limits) -> Job:
    """Return the service after the program of a replica has ended, while what that left is stored.

    It is replaced by then, for the storing may take its time; so it is charged for by then, too.
    """
    if replica is None or replica.cancel_requested_at is not None:
        return job
    return _charged(job, replica, EndReason.EXIT_CODE, now, limits)


def _replaced(
    job: Job, member: GangMember, ended: Job | None, now: datetime, limits: Limits, *, is_charged: bool
) -> Job:
    """Return the service after the end of one of its replicas: charged for it, where it was not wished."""
    if ended is None or ended.cancel_requested_at is not None:
        return job
    failure = ended.error or Failure(reason=EndReason.EXIT_CODE, message="its program has ended")
    if failure.reason is EndReason.NODE_DRAINED:
        return job
    if not is_charged:
        job = _charged(job, ended, failure.reason, now, limits)
    return crew.with_remark(job, _told(job, member, failure))


def _charged(job: Job, ended: Job, reason: EndReason, now: datetime, limits: Limits) -> Job:
    """Return the service with one more end in a row counted, and the back-off that follows from it."""
    is_fresh = crew.ran_for_s(ended) >= limits.replica_well_s or _is_quiet(job, now, limits)
    tries, losses = (0, 0) if is_fresh else (job.tries, job.losses)
    if reason in INFRASTRUCTURE_REASONS:
        losses += 1
        wait_s = _backoff_s(losses - 1, limits)  # the first is nothing to wait for
    else:
        tries += 1
        wait_s = _backoff_s(tries, limits)
    not_before = job.not_before
    if wait_s:
        not_before = max(filter(None, (not_before, now + timedelta(seconds=wait_s))))
    return job.model_copy(update={"tries": tries, "losses": losses, "not_before": not_before})


def _is_quiet(job: Job, now: datetime, limits: Limits) -> bool:
    return job.not_before is not None and now - job.not_before >= timedelta(seconds=limits.replica_well_s)


def _backoff_s(times: int, limits: Limits) -> float:
    if not times:
        return 0.0
    return min(limits.replica_backoff_max_s, limits.replica_backoff_s * 2 ** min(times - 1, 32))


def _told(job: Job, member: GangMember, failure: Failure) -> str:
    text = f"replica {member.index} has ended: {failure.message[:300]}"
    if member.revision < job.revision:
        return f"{text} (of revision {member.revision}; another of revision {job.revision} takes its place)"
    stay = [one for one in job.members if one.revision < job.revision]
    if member.revision and stay:
        kept = count(len(stay), "replica")
        return f"{text.removesuffix('.')}; the revision before keeps {kept} until one of the new runs"
    return text


# --- how many there are to be --------------------------------------------------------------------------------------


def _idled(job: Job, used_at: datetime, jobs: Mapping[str, Job], now: datetime) -> Job | None:
    """Return the service without replicas if nobody has asked it for so long; a replica that starts is waited for."""
    idle_s = job.spec.service.idle if job.spec.service else None
    if idle_s is None or not wanted(job) or not (_runs(job.members) or _is_failing(job, now)):
        return None
    began = (jobs[one.job_id].attempts[-1].running_at for one in _runs(job.members) if one.job_id in jobs)
    if now - max([used_at, *filter(None, (job.used_at, *began))]) < timedelta(seconds=idle_s):
        return None
    return job.model_copy(update={"replicas": 0})


def _is_failing(job: Job, now: datetime) -> bool:
    """Return whether there is no replica because the last one has failed: nobody needs another until it is asked."""
    return not job.members and job.not_before is not None and now < job.not_before


def _missing(job: Job, team: Team) -> int:
    """Return how many replicas to make: all that are missing, or one more than wanted while others are exchanged."""
    going_on = [one for one in job.members if one.state is not JobState.FINISHING]
    current = sum(_is_current(one, job, team) for one in going_on)
    return max(0, min(wanted(job) - current, wanted(job) + _SURGE - len(going_on)))


def _surplus(job: Job, team: Team) -> tuple[str, ...]:
    """Return the replicas to be stopped: those that do not run first, and none that runs before others take over."""
    going_on = [one for one in job.members if one.state is not JobState.FINISHING]
    current = sorted((one for one in going_on if _is_current(one, job, team)), key=_worth)
    kept, surplus = current[: wanted(job)], current[wanted(job) :]
    others = [one for one in going_on if not _is_current(one, job, team)]
    # Those that run elsewhere are needed as long as those that are to take over do not.
    needed = wanted(job) - len(_runs(kept))
    running = sorted(_runs(others), key=lambda one: (-one.revision, one.job_id in team.leaving, one.index))
    surplus += [one for one in others if one.state is not JobState.RUNNING] + running[max(0, needed) :]
    return tuple(one.job_id for one in surplus)


def _is_current(member: GangMember, job: Job, team: Team) -> bool:
    return member.revision == job.revision and member.job_id not in team.leaving


def _worth(member: GangMember) -> tuple[bool, bool, int]:
    return member.state is not JobState.RUNNING, member.state is JobState.QUEUED, member.index


def _runs(members: Iterable[GangMember]) -> list[GangMember]:
    return [one for one in members if one.state is JobState.RUNNING]


def _marked(members: Iterable[GangMember], stopped: Iterable[str]) -> tuple[GangMember, ...]:
    """Return *members*, with those that are told to stop as what they are by that: to be asked nothing more."""
    gone = frozenset(stopped)
    return tuple(one.model_copy(update={"state": JobState.FINISHING}) if one.job_id in gone else one for one in members)


# --- the event -----------------------------------------------------------------------------------------------------


def _ending(before: Job, job: Job, team: Team, now: datetime) -> Plan:
    """Return the plan for a service that nobody wants any more: it ends once all its replicas have."""
    if not job.members:
        over = lifecycle.stopped(job, now)
        assert over is not None  # noqa: S101 - it is unwanted
        return Plan(lifecycle.Change(over.job.model_copy(update={"updated_at": now}), over.name))
    stopped = tuple(one.job_id for one in job.members if one.state is not JobState.FINISHING)
    job = job.model_copy(update={"members": _marked(job.members, stopped)})
    return _plan(before, job, team, now, (), stopped, None)


def _plan(
    before: Job,
    job: Job,
    team: Team,
    now: datetime,
    hired: tuple[Job, ...],
    stopped: tuple[str, ...],
    name: JobEventName | None,
) -> Plan:
    state, moved = crew.follow_state(job, job.members)
    job = job.model_copy(
        update={"state": state, "pending": _pending(job, team, now) if state is JobState.QUEUED else ()}
    )
    if job == before.model_copy(update={"replicas": wanted(before)}):
        return Plan(None, hired, stopped)
    if moved is JobEventName.REMARKED and name is not None:
        moved = name
    elif moved is JobEventName.REMARKED and job == before.model_copy(update={"pending": job.pending}):
        moved = JobEventName.PENDING
    used_at = max(team.used_at, job.used_at) if job.used_at else team.used_at
    return Plan(lifecycle.Change(job.model_copy(update={"used_at": used_at, "updated_at": now}), moved), hired, stopped)


def _pending(job: Job, team: Team, now: datetime) -> tuple[PendingReason, ...]:
    """Return why no replica runs: what the first of them waits for, or why there is none."""
    if job.members:
        return crew.pending_of(job.members, team.jobs)
    if not wanted(job):
        idle = job.spec.service is not None and job.spec.service.idle is not None
        message = "nobody has asked it for a while; a request brings it back" if idle else "no replica is wanted"
        return (PendingReason(code=PendingCode.IDLE, nodes=0, message=message),)
    if job.not_before is not None and job.not_before > now:
        message = f"the next replica is made at {job.not_before:%H:%M:%S} UTC, for the last one has failed"
        return (PendingReason(code=PendingCode.BACKOFF, nodes=0, message=message),)
    return ()


def grace_s(spec: JobSpec, limits: Limits) -> float | None:
    """Return the seconds that a replica has between being told to stop and being killed; None for other jobs' members.

    A node that takes longer than `obey_s` counts as one that does not obey.
    """
    if spec.service is None:
        return None
    return min(spec.service.drain + _AFTER_DRAIN_S, limits.obey_s - _OBEY_SLACK_S)
