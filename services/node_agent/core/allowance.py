"""How much of an attempt's output may travel: its part of what its node sends, with room for a burst."""

from dataclasses import dataclass, field

#: Seconds' worth of bytes that may be sent at once after a quiet time.
BURST_S = 8.0


@dataclass(slots=True)
class Allowance:
    """A bucket that fills steadily and may be overdrawn by one helping.

    Attributes:
        left: bytes that may be sent now; below zero: nothing until it has filled again.
    """

    left: float | None = None
    _at: float = field(default=0.0, init=False)
    _most: float = field(default=0.0, init=False)

    @property
    def is_open(self) -> bool:
        """Return whether something may be sent."""
        return self.left is None or self.left > 0

    @property
    def is_low(self) -> bool:
        """Return whether more than half is used up: by one that sends more than a little."""
        return self.left is not None and self.left < self._most / 2

    def fill(self, now: float, rate: float) -> None:
        """Let time pass until *now* (seconds on any steady clock), at *rate* bytes a second."""
        self._most = rate * BURST_S
        gained = self._most if self.left is None else (now - self._at) * rate
        self.left = min(self._most, (self.left or 0.0) + gained)
        self._at = now

    def take(self, size: int) -> None:
        """Note that *size* bytes were sent."""
        if self.left is not None:
            self.left -= size
