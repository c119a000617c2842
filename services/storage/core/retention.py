"""What is kept for how long, and why something may go. Decides; removes nothing.

Nothing goes in one step. What is due is first hidden: it answers as if it were gone, so that nobody can begin to need
it. Only after the grace, and if it is still due, is it removed. A job is due only once the log has no event of it any
more: a projection that is built anew from the log cannot bring it back.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.storage.core.projections import microseconds
from shared.job import Job
from shared.requests.administration import RetentionItem, RetentionSum

#: Seconds after a start, or after a run of another storage, in which none begins.
_REST_S = 600.0
_ARTIFACT_ID = re.compile(r"\ba[a-z2-7]{25}\b")


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what nobody needs is kept.

    Attributes:
        artifacts: since they were stored, where no job that is kept and no dataset has them.
        jobs: since they ended, with their events, logs, metrics, notifications and outputs.
        jobs_per_owner: ended jobs of one owner, the newest; None: as many as there are.
        logs: since the job ended: its single lines. ``_stdout.txt`` and ``_stderr.txt`` stay with the outputs.
        live: what was looked at of a running job.
        grace: from hiding to removing; longer than handing in a job takes from its checks to the log.
        settle: age of bytes without a reference before they count as nobody's.
    """

    artifacts: timedelta = timedelta(days=30)
    jobs: timedelta = timedelta(days=90)
    jobs_per_owner: int | None = None
    logs: timedelta = timedelta(days=30)
    live: timedelta = timedelta(hours=1)
    grace: timedelta = timedelta(minutes=15)
    settle: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended job, as far as it matters. `rank` counts the owner's ended jobs from the newest, from 1.

    `is_gang`: it may have members: workers of a map job and replicas of a service are some too.
    """

    id: str
    owner_id: str
    seq: int
    created_us: int
    rank: int
    is_gang: bool = False
    has_logs: bool = True
    is_hidden: bool = False


def wait_s(last: datetime | None, interval: timedelta, now: datetime) -> float:
    """Return for how many seconds to wait before the next run, where the *last* one began then, or there was none."""
    due_s = (last + interval - now).total_seconds() if last else 0.0
    return max(due_s, min(_REST_S, interval.total_seconds()))


def is_looked_at(job: Ended, policy: Policy, now: datetime) -> bool:
    """Return whether *job* is old enough for its document to be read: nothing ends before it was handed in."""
    youngest = min(policy.jobs, policy.logs) if job.has_logs else policy.jobs
    return job.is_hidden or _is_beyond(job, policy) or job.created_us <= microseconds(now - youngest)


def why_job(job: Ended, ended_at: datetime, policy: Policy, first_seq: int, now: datetime) -> str | None:
    """Return why *job* may go, or None if it stays. *first_seq* is the first that the log still has."""
    if job.seq >= first_seq:
        return None
    if now - ended_at > policy.jobs:
        return f"ended {_ago(ended_at, now)}, kept for {_days(policy.jobs)}"
    if _is_beyond(job, policy):
        return f"{policy.jobs_per_owner} newer ended jobs of its owner are kept"
    return None


def why_replica(ended_at: datetime, seq: int, policy: Policy, first_seq: int, now: datetime) -> str | None:
    """Return why a replica that ended may go though its service goes on, or None if it stays.

    Nothing that the service is has come from it, so it is kept for as long as its lines are. Workers of a map job stay
    as long as that: what the items have left is stored in their names.
    """
    if seq >= first_seq or now - ended_at <= policy.logs:
        return None
    return f"ended {_ago(ended_at, now)}, replicas of a service that goes on are kept for {_days(policy.logs)}"


def why_logs(job: Ended, ended_at: datetime, policy: Policy, now: datetime) -> str | None:
    """Return why the single lines of *job* may go, or None if they stay."""
    if not job.has_logs or now - ended_at <= policy.logs:
        return None
    return f"ended {_ago(ended_at, now)}, lines are kept for {_days(policy.logs)}"


def why_artifact(created_at: datetime, policy: Policy, now: datetime) -> str | None:
    """Return why an artifact that nobody has may go, or None if it stays."""
    if now - created_at <= policy.artifacts:
        return None
    return f"stored {_ago(created_at, now)}, unused ones are kept for {_days(policy.artifacts)}"


def needed_by(job: Job) -> set[str]:
    """Return the jobs that *job*, which has not ended, needs."""
    gang = {job.member_of.gang_id} if job.member_of else set[str]()
    return {need.job for need in job.spec.needed()} | gang


def artifacts_named(text: str) -> set[str]:
    """Return every id of an artifact that stands in a job's document: more may be found than it has, never fewer."""
    return set(_ARTIFACT_ID.findall(text))


@dataclass(slots=True)
class Report:
    """What a run removes or hides: sums of all, and the first things by name."""

    limit: int
    removed: dict[str, RetentionSum] = field(default_factory=dict[str, RetentionSum])
    hidden: dict[str, RetentionSum] = field(default_factory=dict[str, RetentionSum])
    items: list[RetentionItem] = field(default_factory=list[RetentionItem])
    more: bool = False

    def remove(self, item: RetentionItem) -> None:
        """Note something that goes."""
        self.count(item.kind, 1, item.bytes)
        self._name(item)

    def hide(self, item: RetentionItem) -> None:
        """Note something that is hidden, and goes after the grace."""
        _add(self.hidden, item.kind, 1, item.bytes)
        self._name(item)

    def count(self, kind: str, count: int, size: int) -> None:
        """Note things that go and have no name."""
        _add(self.removed, kind, count, size)

    def _name(self, item: RetentionItem) -> None:
        if len(self.items) < self.limit:
            self.items.append(item)
        else:
            self.more = True


def is_gone(scope: str, jobs: Iterable[str], artifacts: Iterable[str]) -> bool:
    """Return whether a reference of this name goes with one of *jobs* or *artifacts*."""
    kind, _, rest = scope.partition(":")
    if kind in ("attempt", "live"):
        return rest.partition(":")[0] in jobs
    return kind == "artifact" and rest in artifacts


def _add(sums: dict[str, RetentionSum], kind: str, count: int, size: int) -> None:
    before = sums.get(kind, RetentionSum())
    sums[kind] = RetentionSum(count=before.count + count, bytes=before.bytes + size)


def _is_beyond(job: Ended, policy: Policy) -> bool:
    return policy.jobs_per_owner is not None and job.rank > policy.jobs_per_owner


def _ago(moment: datetime, now: datetime) -> str:
    return f"{_days(now - moment)} ago"


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.3g} days"
