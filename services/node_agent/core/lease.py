"""For how long the scheduler's last word holds, and what is done when it does no more.

Times are seconds of a clock that also runs while the machine is suspended.
"""

from dataclasses import dataclass

#: Shares of a lease: without a new one for so long, programs that may not run twice are told to end, and by the second
#: share they are killed. What is left of the lease is for the engine to carry it out.
FENCE_AT, KILL_AT = 2 / 3, 5 / 6
GRACE_MAX_S = 5.0
#: Only an older scheduler has answered for so long: it is not one that was deposed a moment ago.
OLDER_FOR_S = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run what must not run twice. It begins when the answered heartbeat was sent.

    Attributes:
        granted_at: when that was.
        length_s: how long after it another node may take over.
    """

    granted_at: float
    length_s: float

    def is_fenced(self, at: float) -> bool:
        """Return whether what must not run twice is to end now."""
        return at >= self.granted_at + FENCE_AT * self.length_s

    def grace_s(self, at: float) -> float:
        """Return the seconds that a program may take to end by itself from *at* on."""
        return max(0.0, min(GRACE_MAX_S, self.granted_at + KILL_AT * self.length_s - at))


@dataclass(frozen=True, slots=True)
class Older:
    """A scheduler that has seen less than this node answers, and no other, since a time."""

    epoch: int
    since: float

    def is_for_good(self, at: float) -> bool:
        """Return whether that is no passing thing: a log that was wiped or restored."""
        return at >= self.since + OLDER_FOR_S
