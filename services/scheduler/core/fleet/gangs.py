"""Which members each gang, map job and service has, and which of those are to be looked at: something has changed."""

from collections.abc import Mapping
from itertools import islice

from shared.job import Job
from shared.states import JOB_TERMINAL, JobState


class Gangs:
    """Members by gang, or by another parent. How a member has ended is kept until its gang has taken note of it.

    Attributes:
        placed: gangs that are neither in the queue nor ended, and all other parents that have not ended.
    """

    def __init__(self) -> None:
        self.placed: set[str] = set()
        self._members: dict[str, dict[str, None]] = {}
        self._changed: dict[str, dict[str, Job]] = {}
        self._unknown: dict[str, str] = {}  # member -> gang
        self._asked: dict[str, str] = {}
        self._missing: dict[str, set[str]] = {}

    def assign(self, job: Job) -> None:
        """Take note of a job as the log holds it: a gang, a member, or neither."""
        if job.member_of is not None:
            gang_id = job.member_of.gang_id
            members = self._members.setdefault(gang_id, {})
            if job.is_terminal:
                members.pop(job.id, None)
            else:
                members[job.id] = None
            if not members:
                del self._members[gang_id]
            self._changed.setdefault(gang_id, {})[job.id] = job
        elif job.spec.kind != "run":
            if job.is_terminal or (job.spec.gang is not None and job.state is JobState.QUEUED):
                self.placed.discard(job.id)
            else:
                self.placed.add(job.id)
            self._changed.setdefault(job.id, {})

    def members(self, gang_id: str) -> tuple[str, ...]:
        """Return the members of a gang that have not ended, of whatever round."""
        return tuple(self._members.get(gang_id, ()))

    def touch(self, gang_id: str) -> None:
        """Look at a gang once more."""
        self._changed.setdefault(gang_id, {})

    def take_changed(self) -> dict[str, dict[str, Job]]:
        """Take and return the gangs to be looked at, each with its members that have changed."""
        changed, self._changed = self._changed, {}
        return changed

    def take_missing(self, gang_id: str) -> frozenset[str]:
        """Take and return the members of a gang of which the log knows nothing."""
        return frozenset(self._missing.pop(gang_id, ()))

    def doubt(self, gang: Job, active: Mapping[str, object]) -> None:
        """Ask the log, once, for members that *gang* takes for active and that are not among the *active* jobs."""
        for member in gang.members:
            if member.state not in JOB_TERMINAL and member.job_id not in active and member.job_id not in self._asked:
                self._unknown[member.job_id] = gang.id

    def take_unknown(self, count: int) -> tuple[str, ...]:
        """Take and return up to *count* members for which the log is to be asked."""
        found = tuple(islice(self._unknown, count))
        for member_id in found:
            self._asked[member_id] = self._unknown.pop(member_id)
        return found

    def answer(self, job_id: str, job: Job | None) -> None:
        """Take note of what the log knows of a member: how it ended, or nothing."""
        gang_id = self._asked.pop(job_id, None)
        if gang_id is None:
            return
        if job is not None and job.is_terminal:
            self._changed.setdefault(gang_id, {})[job_id] = job
        elif job is None:
            self._missing.setdefault(gang_id, set()).add(job_id)
            self.touch(gang_id)
