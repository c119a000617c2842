"""Why a service has no replica: what became of the one that failed last, and its own last words."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel

from shared.events import LogLine
from shared.job import Job
from shared.states import EndReason

#: Of a program's last words, in characters.
_WORDS_MAX = 1000
_BY_PROGRAM = frozenset({EndReason.EXIT_CODE, EndReason.COMMAND_NOT_FOUND, EndReason.OOM})


class ReplicaFailure(BaseModel):
    """A replica that has failed: a job of its own, whose log stays."""

    job_id: str
    revision: int
    reason: str
    message: str  # with what its program said last
    ended_at: datetime | None


def is_by_program(replica: Job) -> bool:
    """Return whether a replica has failed by what its program did, so that its output says why."""
    return replica.error is not None and replica.error.reason in _BY_PROGRAM


def failure_of(replica: Job, lines: Iterable[LogLine] = ()) -> ReplicaFailure:
    """Return why *replica* has failed; *lines* are the last ones of its output, of which errors count most."""
    said = [line for line in lines if line.x.strip()]
    last = next(iter([*(line for line in reversed(said) if line.s == "e"), *reversed(said)]), None)
    message = replica.error.message if replica.error else "It has ended."
    if last is not None:
        message = f"{message.removesuffix('.')}: {last.x.strip()[:_WORDS_MAX]}"
    return ReplicaFailure(
        job_id=replica.id,
        revision=replica.member_of.round if replica.member_of else 0,
        reason=replica.error.reason if replica.error else "",
        message=message,
        ended_at=replica.ended_at,
    )
