"""The last bytes of an output of which the first ones are on disk already."""

from collections import deque
from dataclasses import dataclass, field

_JOIN_BYTES = 16 * 1024


@dataclass(slots=True)
class LastBytes:
    """What came last of both streams together, up to *bytes_max*.

    Attributes:
        left_out: bytes by stream that came and are not here.
    """

    bytes_max: int
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    _pieces: deque[tuple[str, bytearray]] = field(default_factory=deque[tuple[str, bytearray]])
    _size: int = 0

    def add(self, stream: str, data: bytes) -> None:
        """Take in *data*, and let go of what came first."""
        if len(data) > self.bytes_max:
            self._note(stream, len(data) - self.bytes_max)
            data = data[len(data) - self.bytes_max :]
        if self._pieces and self._pieces[-1][0] == stream and len(self._pieces[-1][1]) < _JOIN_BYTES:
            self._pieces[-1][1].extend(data)  # thousands of short lines are not thousands of pieces
        else:
            self._pieces.append((stream, bytearray(data)))
        self._size += len(data)
        while self._size > self.bytes_max:
            first, piece = self._pieces[0]
            cut = min(len(piece), self._size - self.bytes_max)
            del piece[:cut]
            self._note(first, cut)
            self._size -= cut
            if not piece:
                self._pieces.popleft()

    def of(self, stream: str) -> bytes:
        """Return what is here of *stream*."""
        return b"".join(bytes(piece) for name, piece in self._pieces if name == stream)

    def sizes(self) -> dict[str, int]:
        """Return all bytes by stream that came, here or not."""
        here = {stream: len(self.of(stream)) for stream, _ in self._pieces}
        return {stream: self.left_out.get(stream, 0) + here.get(stream, 0) for stream in self.left_out | here}

    def _note(self, stream: str, count: int) -> None:
        self.left_out[stream] = self.left_out.get(stream, 0) + count
