"""Looking into a zip that is on its way to storage or already there, without having it here."""

import asyncio
import io
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import BinaryIO, cast

from shared import zipguard
from shared.blobs import BlobClient
from shared.errors import WherryError
from shared.job import BlobRef
from shared.requests.blobs import CHUNK_BYTES, BlobRead

#: How much of an upload's end is kept: the directory of a zip with tens of thousands of entries, or all of a small zip.
TAIL_BYTES = 4 * 1024 * 1024
#: Up to this size, unpacked, the contents of a zip that is here whole are looked at too: a fraction of a second.
_CONTENTS_BYTES_MAX = 16 * 1024 * 1024
_LOCAL_HEADER, _EMPTY_ZIP = b"PK\x03\x04", b"PK\x05\x06"
# A directory of 100,000 entries takes tens of megabytes while it is judged: one at a time.
_one_at_a_time = asyncio.Semaphore(1)


class _Window(io.RawIOBase):
    """A file of *size* bytes of which *read_at* gives any part."""

    def __init__(self, size: int, read_at: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size, self._read_at, self._position = size, read_at, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        found = self._read_at(self._position, end)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


class PassingZip:
    """An upload that is judged when its last byte has passed, while storage can still be told to forget it.

    Iterate it to pass the bytes on. Of a zip that fits into the tail everything is judged, else its directory: the
    node looks at the rest before it unpacks.

    Args:
        chunks: the upload.

    Attributes:
        judged: whether the directory was within the tail that is kept; if not, judge the stored blob.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._size = 0
        self._missed = False
        self.judged = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the bytes.

        Raises:
            WherryError: ``bad_source``: it is no zip, or one that must not be unpacked.
        """
        async for chunk in self._begun():
            self._size += len(chunk)
            self._keep(chunk)
            yield chunk
        await self._judge()

    async def _begun(self) -> AsyncIterator[bytes]:
        """Give the bytes once the first four are those of a zip."""
        head = b""
        async for chunk in self._chunks:
            if len(head) < len(_LOCAL_HEADER):
                head += chunk
                if len(head) < len(_LOCAL_HEADER):
                    continue
                _check_head(head)
                yield head
            else:
                yield chunk
        if len(head) < len(_LOCAL_HEADER):
            _check_head(head)

    def _keep(self, chunk: bytes) -> None:
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())

    async def _judge(self) -> None:
        tail = b"".join(self._tail)
        self._tail.clear()
        start = self._size - len(tail)

        def read_at(first: int, end: int) -> bytes:
            self._missed = self._missed or first < start
            return b"" if first < start else tail[first - start : end - start]

        try:
            await _inspect(self._size, read_at, is_whole=start == 0)
        except WherryError:
            # An answer from a file with a hole in it is no answer.
            if not self._missed:
                raise
        self.judged = not self._missed


async def files_of(blobs: BlobClient, blob: BlobRef) -> list[str]:
    """Return the paths of the files in a zip that storage holds. Of a large one only the directory is read.

    Raises:
        WherryError: ``bad_source``: it is no zip, or one that must not be unpacked.
    """
    fetch, read_at = _reading(blobs, blob)
    _check_head(await fetch(0, min(blob.size, len(_LOCAL_HEADER))))
    file = io.BufferedReader(_Window(blob.size, read_at), CHUNK_BYTES)

    def paths() -> list[str]:
        return [entry.path for entry in zipguard.inspect(cast("BinaryIO", file), headers=False) if not entry.is_dir]

    async with _one_at_a_time:
        return await asyncio.to_thread(paths)


async def judge_stored(blobs: BlobClient, blob: BlobRef) -> None:
    """Judge a zip that storage holds.

    Raises:
        WherryError: ``bad_source``.
    """
    fetch, read_at = _reading(blobs, blob)
    _check_head(await fetch(0, min(blob.size, len(_LOCAL_HEADER))))
    if blob.size > TAIL_BYTES:
        await _inspect(blob.size, read_at, is_whole=False)
        return
    content = await fetch(0, blob.size)
    await _inspect(len(content), lambda first, end: content[first:end], is_whole=True)


def _reading(
    blobs: BlobClient, blob: BlobRef
) -> tuple[Callable[[int, int], Awaitable[bytes]], Callable[[int, int], bytes]]:
    """Return what gives bytes of a stored blob: here, and in another thread."""
    loop = asyncio.get_running_loop()

    async def fetch(first: int, end: int) -> bytes:
        return b"".join([piece async for piece in blobs.read(BlobRead(sha256=blob.sha256), start=first, end=end)])

    def read_at(first: int, end: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(fetch(first, end), loop).result()

    return fetch, read_at


async def _inspect(size: int, read_at: Callable[[int, int], bytes], *, is_whole: bool) -> None:
    file = io.BufferedReader(_Window(size, read_at), CHUNK_BYTES)
    async with _one_at_a_time:
        await asyncio.to_thread(_look, cast("BinaryIO", file), is_whole=is_whole)


def _look(file: BinaryIO, *, is_whole: bool) -> None:
    zip_ = zipguard.inspect(file, headers=is_whole)
    if is_whole and sum(entry.size for entry in zip_) <= _CONTENTS_BYTES_MAX:
        for entry in zip_:
            for _ in zip_.read(entry):
                pass


def _check_head(head: bytes) -> None:
    if head[:4] == _EMPTY_ZIP:
        raise WherryError("bad_source", "source: the zip is empty: it holds no file")
    if head[:4] != _LOCAL_HEADER:
        raise WherryError("bad_source", "source: that is not a zip")
