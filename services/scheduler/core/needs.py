"""Which queued jobs wait for which others to end, and what follows when those have."""

from collections.abc import Container, Iterable

from services.scheduler.core.lifecycle import NeedFailed, NeedsMet, Waiting
from shared.job import Job, PendingReason
from shared.spec import Need
from shared.states import JOB_TERMINAL, JobState, PendingCode

Verdict = Waiting | NeedsMet | NeedFailed

_GOOD_ENDS = {
    "ok": frozenset({JobState.SUCCEEDED}),
    "any": JOB_TERMINAL - {JobState.CANCELLED},
    "always": JOB_TERMINAL,
}
_NAMED_MAX = 3  # jobs that a sentence names


class Needs:
    """Jobs that wait for others. Whether a job that ended before is known is asked of the log, once.

    How a job has ended is remembered for as long as another waits for it.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Need, ...]] = {}
        self._needed_by: dict[str, dict[str, None]] = {}
        self._ends: dict[str, JobState | None] = {}  # None: the log does not know the job
        self._unknown: dict[str, None] = {}
        self._due: dict[str, None] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job, active: Container[str]) -> None:
        """Let *job* wait, if it does not yet. Of the jobs that it needs, those not in *active* have ended before."""
        if job.id in self._waiting:
            return
        needs = self._waiting[job.id] = job.spec.needed()
        self._due[job.id] = None
        for need in needs:
            self._needed_by.setdefault(need.job, {})[job.id] = None
            if need.job not in active and need.job not in self._ends:
                self._unknown[need.job] = None

    def discard(self, job_id: str) -> None:
        """Let a job wait no more, if it does."""
        self._due.pop(job_id, None)
        for need in self._waiting.pop(job_id, ()):
            waiting = self._needed_by[need.job]
            del waiting[job_id]
            if not waiting:
                del self._needed_by[need.job]
                self._ends.pop(need.job, None)
                self._unknown.pop(need.job, None)

    def ended(self, job_id: str, state: JobState | None) -> bool:
        """Take note of how a job ended, None for one that nobody knows, and return whether another waits for it."""
        waiting = self._needed_by.get(job_id)
        if waiting is None or job_id in self._ends:
            return False
        self._ends[job_id] = state
        self._unknown.pop(job_id, None)
        self._due.update(waiting)
        return True

    def is_needed(self, job_id: str) -> bool:
        """Return whether another job waits for this one to end."""
        return job_id in self._needed_by

    def again(self, job_id: str) -> None:
        """Look at a job once more: what was decided about it was not recorded."""
        if job_id in self._waiting:
            self._due[job_id] = None

    def take_unknown(self, count: int) -> tuple[str, ...]:
        """Take and return up to *count* jobs of which the log has to be asked."""
        found = tuple(job_id for job_id, _ in zip(self._unknown, range(count), strict=False))
        for job_id in found:
            del self._unknown[job_id]
        return found

    def take_due(self) -> list[tuple[str, Verdict]]:
        """Take and return the jobs for which something has changed, with what follows."""
        due = [(job_id, self._judge(self._waiting[job_id])) for job_id in self._due]
        self._due.clear()
        return due

    def _judge(self, needs: tuple[Need, ...]) -> Verdict:
        left = [need for need in needs if need.job not in self._ends]
        for need in needs:
            if need.job in self._ends and (failed := _failed(need, self._ends[need.job])):
                return failed
        return Waiting((_reason(needs),)) if left else NeedsMet()


def _failed(need: Need, state: JobState | None) -> NeedFailed | None:
    if state is None:
        what = "is not known: it was never handed in, or ended too long ago"
        return NeedFailed(f"job {need.job}, which it needs, {what}", is_cancel=False)
    if state in _GOOD_ENDS[need.on]:
        return None
    return NeedFailed(f"job {need.job}, which it needs, has {_WORDS[state]}", state is JobState.CANCELLED)


_WORDS = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "been cancelled",
    JobState.TIMED_OUT: "timed out",
}


def _reason(needs: Iterable[Need]) -> PendingReason:
    # All that it needs, not what is left of it: the reason is told once.
    jobs = [need.job for need in needs]
    more = f" and {len(jobs) - _NAMED_MAX} more" if len(jobs) > _NAMED_MAX else ""
    message = f"waits for {', '.join(jobs[:_NAMED_MAX])}{more} to end"
    return PendingReason(code=PendingCode.NEEDS, nodes=0, message=message)
