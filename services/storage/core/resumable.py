"""What is durable of an upload that resumes, and its SHA-256 over as many writers as it takes."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """What is known of a chunk without reading it."""

    number: int
    size: int
    epoch: int


def chunk_count(length: int) -> int:
    """Return how many chunks *length* bytes are."""
    return -(-length // CHUNK_BYTES)


def expected_size(number: int, length: int) -> int:
    """Return how many bytes chunk *number* of *length* bytes has."""
    return max(0, min(CHUNK_BYTES, length - number * CHUNK_BYTES))


def durable(offset: int, epoch: int, chunks: Iterable[StoredChunk]) -> int:
    """Return up to which byte an upload is stored.

    Args:
        offset: what is known to be stored.
        epoch: the writer whose chunks count from there on; those of others were never promised to anybody.
        chunks: in order of their numbers, from the one that *offset* is within.
    """
    for chunk in chunks:
        start = chunk.number * CHUNK_BYTES
        if chunk.epoch != epoch or start > offset:
            break
        offset = max(offset, start + chunk.size)
        if chunk.size < CHUNK_BYTES:
            break
    return offset


class ResumedDigest:
    """Takes in full chunks as they are stored, in about any order; what it missed is read again at the end.

    It holds what the store holds: chunks of one writer after the other, each writer's from where it began.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._ahead: dict[int, bytes] = {}
        self._epoch = 0
        self.chunks = 0

    def begin(self, epoch: int, offset: int) -> None:
        """Go on with the writer of *epoch*, which goes on at byte *offset*."""
        self._ahead.clear()
        # What was taken in stands if it is below the offset, and no writer whom only another process knew came between.
        if epoch != self._epoch + 1 or self.chunks * CHUNK_BYTES > offset:
            self._sha256, self.chunks = hashlib.sha256(), 0
        self._epoch = epoch

    def take(self, epoch: int, number: int, data: bytes) -> None:
        """Take in a chunk that was stored; those before it may still be on their way, at most two windows of them."""
        if epoch != self._epoch:
            # Another process let this writer in, and it alone knows from where on it writes.
            self.begin(epoch, 0)
        if number < self.chunks or len(data) != CHUNK_BYTES or len(self._ahead) >= 2 * WINDOW_CHUNKS:
            return
        self._ahead[number] = data
        while (following := self._ahead.pop(self.chunks, None)) is not None:
            self.add(following)

    def add(self, data: bytes) -> None:
        """Take in the chunk that comes next, full or not."""
        self._sha256.update(data)
        self.chunks += 1

    def hexdigest(self) -> str:
        """Return the SHA-256 of what is taken in so far."""
        return self._sha256.hexdigest()
