"""Whether and when a job is tried again after an attempt came to nothing."""

import zlib
from collections.abc import Iterable

from services.scheduler.core.limits import Limits
from shared.job import Attempt, Failure, Job
from shared.states import AttemptState, EndReason

#: Limits of an attempt that its end is named after.
TIMEOUTS = frozenset({EndReason.PULL_TIMEOUT, EndReason.STAGE_IN_TIMEOUT, EndReason.RUN_TIMEOUT})
_NODE_DEATHS = frozenset({EndReason.NODE_LOST, EndReason.NODE_REBOOTED})


def is_timeout(attempt: Attempt, failure: Failure) -> bool:
    """Return whether the attempt ended because it took too long, on its node's word or without it."""
    return attempt.state is AttemptState.TIMED_OUT or failure.reason in TIMEOUTS


def is_wanted(retry_on: Iterable[str], attempt: Attempt, failure: Failure) -> bool:
    """Return whether the user wants another try after such an end. Exit codes are `exit:N`."""
    kinds = {"timed_out" if is_timeout(attempt, failure) else "failed", f"exit:{attempt.exit_code}"}
    if failure.reason is EndReason.OOM:
        kinds.add("oom")
    return not kinds.isdisjoint(retry_on)


def wait_after_failure(job: Job, limits: Limits) -> float:
    """Return the seconds to wait after the try that `job.tries` counts already."""
    wait_s = _backoff_s(job, job.tries, limits.backoff_failure_s, limits.backoff_failure_max_s, limits.backoff_jitter)
    return max(wait_s, limits.orphan_s) if job.spec.exclusive and job.spec.gang is not None else wait_s


def wait_after_loss(job: Job, failure: Failure, limits: Limits) -> float:
    """Return the seconds to wait after the loss that `job.losses` counts already.

    A node that no longer knows an attempt may still run it until its agent finds the container: an exclusive job
    waits for that. Of a gang, nobody knows which of its members that was.
    """
    wait_s = _backoff_s(job, job.losses, limits.backoff_loss_s, limits.backoff_loss_max_s, limits.backoff_jitter)
    if job.spec.exclusive and (failure.reason is EndReason.AGENT_LOST_CONTAINER or job.spec.gang is not None):
        return max(wait_s, limits.orphan_s)
    return wait_s


def node_killer(job: Job, limits: Limits) -> Failure | None:
    """Return the end of a job whose program seems to kill the nodes that start it, or None if it does not."""
    died = {a.node: None for a in job.attempts if _died_of_it(a, limits)}
    if len(died) < limits.killer_nodes:
        return None
    nodes = " and ".join(died)
    message = f"the nodes {nodes} died within {limits.killer_within_s:g} s of the program's start; no other is risked"
    return Failure(reason=EndReason.SUSPECTED_NODE_KILLER, message=message)


def _died_of_it(attempt: Attempt, limits: Limits) -> bool:
    if attempt.error is None or attempt.error.reason not in _NODE_DEATHS:
        return False
    if attempt.running_at is None or attempt.heard_at is None:
        return False  # whether its program ran at all is not known
    return (attempt.heard_at - attempt.running_at).total_seconds() < limits.killer_within_s


def _backoff_s(job: Job, count: int, first_s: float, max_s: float, jitter: float) -> float:
    """Double with each *count*. The jitter comes of the job and attempt: the same when it is decided again."""
    longest = min(max_s, first_s * 2 ** min(count - 1, 32))
    dice = zlib.crc32(f"{job.id}.{job.attempt}".encode()) / 2**32
    return round(longest * (1 - jitter * dice), 3)
