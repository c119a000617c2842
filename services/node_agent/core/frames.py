"""Docker's stream of log frames: an 8-byte header (stream, length) and a body that begins with a timestamp."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

_HEADER = struct.Struct(">BxxxL")
#: Of a stamp, up to the hundredths of a second: ``2026-01-01T00:00:00.00``.
_HUNDREDTH = 22
_STREAMS: dict[int, Literal["o", "e"]] = {1: "o", 2: "e"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a container's log. `stamp` is the engine's own text, to nanoseconds."""

    stream: Literal["o", "e"]
    stamp: str
    data: bytes


@dataclass(slots=True)
class FrameParser:
    """Cuts bytes as they arrive into frames."""

    held: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole with *data*.

        Raises:
            ValueError: this is no such stream.
        """
        self.held += data
        frames: list[Frame] = []
        at = 0
        while len(self.held) - at >= _HEADER.size:
            stream, length = _HEADER.unpack_from(self.held, at)
            end = at + _HEADER.size + length
            if len(self.held) < end:
                break
            stamp, _, body = bytes(self.held[at + _HEADER.size : end]).partition(b" ")
            if stream not in _STREAMS:
                raise ValueError(f"stream {stream} in a container's log")
            frames.append(Frame(_STREAMS[stream], stamp.decode("ascii"), body))
            at = end
        del self.held[:at]
        return frames


@dataclass(slots=True)
class LogPosition:
    """How far a container's log was read: the last stamp, and how many entries have it. Reading resumes at it."""

    stamp: str = ""
    same: int = 0
    skip: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.skip = self.same

    def passed(self, frame: Frame) -> bool:
        """Return whether *frame* was read before, and move behind it."""
        if frame.stamp == self.stamp:
            if self.skip:
                self.skip -= 1
                return True
            self.same += 1
        else:
            self.stamp, self.same, self.skip = frame.stamp, 1, 0
        return False

    def since(self) -> str | None:
        """Return the engine's ``since``: seconds and nanoseconds since the epoch; None for the beginning."""
        if not self.stamp:
            return None
        nanoseconds = self.stamp.rstrip("Z").partition(".")[2].ljust(9, "0")
        return f"{int(moment(self.stamp).timestamp())}.{nanoseconds[:9]}"

    def saved(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return {"stamp": self.stamp, "same": self.same}


def unread(frames: Iterable[Frame], position: LogPosition) -> Iterator[tuple[Frame, dict[str, Any]]]:
    """Give what *position* has not passed, each with the position behind it.

    What one stream had within a hundredth of a second is given as one frame: a flood comes in fewer pieces.
    """
    held: list[Frame] = []
    behind: dict[str, Any] = {}
    for frame in frames:
        if position.passed(frame):
            continue
        if held and (frame.stream, frame.stamp[:_HUNDREDTH]) != (held[0].stream, held[0].stamp[:_HUNDREDTH]):
            yield _joined(held), behind
            held = []
        held.append(frame)
        behind = position.saved()
    if held:
        yield _joined(held), behind


def _joined(frames: list[Frame]) -> Frame:
    first = frames[0]
    return first if len(frames) == 1 else Frame(first.stream, first.stamp, b"".join(one.data for one in frames))


def moment(stamp: str) -> datetime:
    """Return an RFC 3339 stamp with nanoseconds as a time with microseconds."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    base = _second(whole)
    return base + timedelta(microseconds=int(fraction[:6].ljust(6, "0"))) if fraction else base


@lru_cache(maxsize=8)  # thousands of lines share a second
def _second(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
