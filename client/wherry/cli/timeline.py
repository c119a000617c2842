"""What became of a job, step by step: when, for how long, and why. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from client.wherry import models
from client.wherry.cli.words import between, duration, plural

_PHASES = {"pull": "the image is pulled", "stage_in": "its files are brought in"}


@dataclass(frozen=True, slots=True)
class Step:
    """One line: seconds since the job was handed in, how long it lasted (in words), and what it was."""

    after_s: float
    lasted: str
    what: str


def timeline(job: models.Job, now: datetime) -> list[Step]:
    """Return the steps in order. The last one of a job that goes on lasts until *now*."""
    begun = job.created_at
    if begun is None:
        return []
    moments = sorted(_moments(job, begun), key=lambda one: one[0])  # stable: steps of one moment stay in order
    ends = [moment for moment, _ in moments[1:]] + [None if job.is_terminal else now]
    return [
        Step((moment - begun).total_seconds(), between(moment, end), what)
        for (moment, what), end in zip(moments, ends, strict=True)
    ]


def why(error: models.Failure | None) -> str:
    """Return why something did not succeed, with the reason for programs."""
    return f"{error.message} ({error.reason})" if error else ""


def _moments(job: models.Job, begun: datetime) -> Iterator[tuple[datetime, str]]:
    hidden = job.attempts[0].number - 1 if job.attempts else 0
    yield begun, f"handed in; {plural(hidden, 'attempt')} before are no longer listed" if hidden else _waiting(job)
    for attempt in job.attempts:
        yield from _attempt(job, attempt)
    if job.cancel_requested_at:
        yield job.cancel_requested_at, "a cancel was asked for"
    if job.ended_at:
        yield job.ended_at, f"{job.state}: {why(job.error)}" if job.error else job.state


def _waiting(job: models.Job) -> str:
    if job.pending and not job.attempts and not job.is_terminal:
        return f"handed in: {'; '.join(reason.message for reason in job.pending)}"
    if job.members or job.kind != "run":
        return "handed in; its members, listed below, have times of their own"
    return "handed in, waits for what it needs and for a node" if job.needs else "handed in, waits for a node"


def _attempt(job: models.Job, attempt: models.Attempt) -> Iterator[tuple[datetime, str]]:
    name = f"attempt {attempt.number}"
    if attempt.placed_at:
        yield attempt.placed_at, f"{name} placed on {attempt.node}"
    if attempt.starting_at:
        now = f": {_PHASES.get(attempt.phase, attempt.phase)}" if attempt.phase and attempt.state == "starting" else ""
        yield attempt.starting_at, f"{name} starts{now}"
    if attempt.running_at:
        yield attempt.running_at, f"{name} runs"
    if attempt.finishing_at:
        yield attempt.finishing_at, f"{name} is over, what it left is brought home"
    if attempt.ended_at:
        yield attempt.ended_at, f"{name} {_ended(attempt)}{_next(job, attempt)}"


def _ended(attempt: models.Attempt) -> str:
    code = f" with exit code {attempt.exit_code}" if attempt.exit_code else ""
    return f"{attempt.state}{code}: {why(attempt.error)}" if attempt.error else f"{attempt.state}{code}"


def _next(job: models.Job, attempt: models.Attempt) -> str:
    """Return what the job waits for after an attempt that was not its last."""
    if job.is_terminal and attempt is job.attempts[-1]:
        return ""
    pause_s = 0.0
    if attempt is job.attempts[-1] and job.not_before and attempt.ended_at:
        pause_s = (job.not_before - attempt.ended_at).total_seconds()
    return f"; the next one {duration(pause_s)} later at the earliest" if pause_s >= 1 else "; waits for the next one"
