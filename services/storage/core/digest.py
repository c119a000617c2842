"""The SHA-256 of an upload, made while its chunks come in."""

import hashlib

from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS


class RunningDigest:
    """Takes in stored chunks, in about any order, and tells the whole's SHA-256 once all are there.

    Only what was really stored may be taken in: a chunk that was there before counts as it stands in the store, and
    this knows nothing of it. Then `is_whole` stays False and the blob has to be read again.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._ahead: dict[int, bytes] = {}
        self._last_is_short = False
        self._broken = False
        self.chunks = 0
        self.size = 0

    def take(self, number: int, data: bytes) -> None:
        """Take in chunk *number* (from 0). It is held until those before it are there, at most two windows of them."""
        if number < self.chunks or self._broken:
            return
        self._ahead[number] = data
        if len(self._ahead) > 2 * WINDOW_CHUNKS:
            self._broken = True
            self._ahead.clear()
        while (following := self._ahead.pop(self.chunks, None)) is not None:
            self._add(following)

    def _add(self, data: bytes) -> None:
        self._broken |= self._last_is_short  # only the last chunk may be short: readers compute where bytes are
        self._last_is_short = len(data) != CHUNK_BYTES
        self._sha256.update(data)
        self.chunks += 1
        self.size += len(data)

    def is_whole(self, chunks: int, size: int) -> bool:
        """Return whether exactly *chunks* chunks of *size* bytes in all are taken in, each full but the last."""
        return not self._broken and not self._ahead and (self.chunks, self.size) == (chunks, size)

    def hexdigest(self) -> str:
        """Return the SHA-256 of what is taken in so far."""
        return self._sha256.hexdigest()
