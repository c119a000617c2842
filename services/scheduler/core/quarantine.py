"""What the core cannot take in, and what is passed over because of it: one broken job or node must not stop all.

Nothing of this is kept but the jobs themselves, in snapshots as they last were: a scheduler that begins anew meets what
is broken again, and sets it aside again, or can take it in by then.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from shared.job import Job

Kind = Literal["job", "node", "fleet"]
#: Times that the same thing must end a term before it is set aside: once may be anybody's fault.
STRIKES = 2


class PoisonError(Exception):
    """Taking something in raised. The state may be half changed: it must be built anew from the log."""

    def __init__(self, kind: Kind, key: str, seq: int, why: str) -> None:
        """Name a job (by its id, and the event's sequence), a node or an entry of the log of the fleet (its sequence).

        Nothing is at *seq* 0: a heartbeat is on no stream.
        """
        super().__init__(f"{kind} {key}, at {seq}: {why}")
        self.kind: Kind = kind
        self.key, self.seq, self.why = key, seq, why


@contextmanager
def taking_in(kind: Kind, key: str, seq: int = 0) -> Generator[None]:
    """Name what is to blame, should the block raise.

    Raises:
        PoisonError: the block raised.
    """
    try:
        yield
    except Exception as error:
        raise PoisonError(kind, key, seq, repr(error)) from error


@dataclass(slots=True)
class Quarantine:
    """What one scheduler passes over, from term to term.

    Attributes:
        jobs: ids; nothing is believed or decided about them.
        nodes: ids; their heartbeats are not taken in, so they become lost.
        fleet: sequences in the log of the fleet.
        passed: of these jobs, those that have not ended, as the log has them last, with the sequence.
    """

    jobs: set[str] = field(default_factory=set[str])
    nodes: set[str] = field(default_factory=set[str])
    fleet: set[str] = field(default_factory=set[str])
    passed: dict[str, tuple[Job, int]] = field(default_factory=dict[str, tuple[Job, int]])
    _strikes: Counter[tuple[Kind, str]] = field(default_factory=Counter[tuple[Kind, str]])

    def blame(self, poison: PoisonError) -> bool:
        """Count *poison*; return whether it is set aside from now on."""
        self._strikes[poison.kind, poison.key] += 1
        if self._strikes[poison.kind, poison.key] < STRIKES:
            return False
        self._of(poison.kind).add(poison.key)
        return True

    def release(self, kind: Kind, key: str) -> bool:
        """Give it another chance; return whether it had been set aside."""
        self._strikes.pop((kind, key), None)
        if kind == "job":
            self.passed.pop(key, None)
        was_in = key in self._of(kind)
        self._of(kind).discard(key)
        return was_in

    def pass_over(self, job: Job, seq: int) -> None:
        """Take note of the last that is known of a job that was set aside: snapshots still have it."""
        if job.is_terminal:
            self.passed.pop(job.id, None)
        else:
            self.passed[job.id] = job, seq

    def _of(self, kind: Kind) -> set[str]:
        return {"job": self.jobs, "node": self.nodes, "fleet": self.fleet}[kind]
