"""Following a log that arrives twice, live and stored: every line once and in order, and lost ranges named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.events import LogLine, LostLines


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines *first* to *last* of an attempt are not to be had."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """Return how many they are."""
        return self.last - self.first + 1


Piece = LogLine | Gap


@dataclass(slots=True)
class Tail:
    """How far a reader of one attempt's log has come.

    Attributes:
        attempt: whose lines.
        last: the number of the last line that was given out or named as lost; None before a reader who came in
            the middle (`tail`, `since`) has seen its first, because what lies before it is not missing.
    """

    attempt: int
    last: int | None = 0

    def missing_before(self, lines: Sequence[LogLine], lost: Sequence[LostLines] = ()) -> bool:
        """Return whether *lines* begin after a hole that may still be filled: not by lines that are *lost* for good."""
        fresh = self._fresh(lines)
        if not fresh or self.last is None:
            return False
        first = self.last + 1
        for one in sorted(lost, key=lambda one: one.first):
            if one.first <= first:
                first = max(first, one.last + 1)
        return fresh[0].n > first

    def take(self, lines: Sequence[LogLine], *, are_all: bool = True) -> list[Piece]:
        """Return what is new in *lines*, with a gap wherever numbers are missing, and move on.

        With *are_all* off, *lines* are a choice of those that there are, and a missing number means nothing.
        """
        pieces: list[Piece] = []
        for line in self._fresh(lines):
            if are_all and self.last is not None and line.n > self.last + 1:
                pieces.append(Gap(self.last + 1, line.n - 1))
            pieces.append(line)
            self.last = line.n
        return pieces

    def take_joined(self, lines: Sequence[LogLine]) -> list[Piece]:
        """Return what follows without a hole; the rest of *lines* is left for later."""
        joined: list[LogLine] = []
        expected = self.last
        for line in self._fresh(lines):
            if expected is not None and line.n != expected + 1:
                break
            joined.append(line)
            expected = line.n
        return self.take(joined)

    def _fresh(self, lines: Sequence[LogLine]) -> list[LogLine]:
        last = self.last or 0
        return sorted((line for line in lines if line.n > last), key=lambda line: line.n)


def event_id(attempt: int, number: int) -> str:
    """Return the SSE id of a line: where a reader that comes back goes on."""
    return f"{attempt}.{number}"


def parse_event_id(text: str | None) -> tuple[int, int] | None:
    """Return attempt and line of an SSE id, or None if it is not one of ours."""
    attempt, dot, number = (text or "").partition(".")
    if not dot or not attempt.isdecimal() or not number.isdecimal() or len(attempt) > 9 or len(number) > 15:
        return None
    return int(attempt), int(number)


def wanted(line: LogLine, stream: Literal["o", "e"] | None) -> bool:
    """Return whether *line* is of the stream that the reader asked for."""
    return stream is None or line.s == stream
