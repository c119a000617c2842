"""What the agent fetches from storage and brings there."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from services.node_agent.core import archive
from services.node_agent.core.container import Key
from services.node_agent.core.inputs import asked_path, place
from services.node_agent.core.shelf import CONTENT
from shared.blobs import BlobClient
from shared.errors import WherryError
from shared.fleet import ItemOrder, Order
from shared.job import BlobRef
from shared.manifest import Entry
from shared.requests.blobs import CHUNK_BYTES, BlobRead, BlobScope, InputQuery
from shared.states import EndReason

_FILES_AT_ONCE = 8
#: For one page of a listing; who asks tells what it waits for, and asks again.
_LIST_PATIENCE_S = 5.0


class Storage:
    """Blobs of attempts.

    Args:
        blobs: on a connection of its own.
        patience_s: how long one upload is repeated while storage is away.
        snapshot: what is stored is for this look at a running attempt, not what it leaves in the end.
    """

    def __init__(self, blobs: BlobClient, *, patience_s: float, snapshot: str | None = None) -> None:
        self._blobs = blobs
        self._patience_s = patience_s
        self._snapshot = snapshot

    def of_snapshot(self, snapshot_id: str, *, patience_s: float) -> "Storage":
        """Return the same for a look at a running attempt."""
        return Storage(self._blobs, patience_s=patience_s, snapshot=snapshot_id)

    async def fetch_source(self, order: Order, path: Path) -> None:
        """Write the source zip of *order* to *path*.

        Raises:
            WherryError: ``input_missing``, ``stage_in_failed``.
        """
        target = BlobRead(artifact_id=order.spec.source, job_id=order.job_id, min_seq=order.seq)
        try:
            with path.open("wb") as file:
                async for piece in self._blobs.read(target, patience_s=order.spec.timeouts.stage_in):
                    # A piece is half a megabyte into the page cache: not worth a thread.
                    file.write(piece)
        except WherryError as error:
            reason = EndReason.STAGE_IN_FAILED if error.retryable else EndReason.INPUT_MISSING
            raise WherryError(
                reason, f"The source {order.spec.source} could not be fetched: {error.message}"
            ) from error

    def pieces(self, wanted: BlobRead, *, patience_s: float) -> AsyncGenerator[bytes, None]:
        """Give the bytes of something that an attempt of this node may read.

        Raises:
            WherryError: storage refused, or (retryable) stayed away for *patience_s*.
        """
        return self._blobs.read(wanted, patience_s=patience_s)

    async def size(self, wanted: BlobRead, *, patience_s: float) -> int:
        """Return how many bytes it has; raises as `pieces`."""
        return await self._blobs.size(wanted, patience_s=patience_s)

    async def input_pages(self, order: Order, name: str) -> AsyncGenerator[tuple[Entry, ...], None]:
        """Give what an input consists of.

        Raises:
            WherryError: ``input_missing``; ``unavailable``, where it is worth another try.
        """
        query = InputQuery(job_id=order.job_id, input=name, min_seq=order.seq)
        while True:
            try:
                page = await self._blobs.input_page(query, patience_s=_LIST_PATIENCE_S)
            except WherryError as error:
                raise _input_error(order, name, error) from error
            yield page.entries
            if page.cursor is None:
                return
            query = query.model_copy(update={"cursor": page.cursor})

    async def input_file(self, order: Order, name: str, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Give the bytes of a file of an input, and compare them with what *entry* says that they are.

        Raises:
            WherryError: ``input_missing``, ``stage_in_failed``.
        """
        wanted, digest, size = (
            BlobRead(job_id=order.job_id, input=name, path=entry.path, min_seq=order.seq),
            sha256(),
            0,
        )
        try:
            async with aclosing(self._blobs.read(wanted, patience_s=order.spec.timeouts.stage_in)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    yield piece
        except WherryError as error:
            raise _input_error(order, name, error, EndReason.STAGE_IN_FAILED) from error
        if entry.blob is None or (digest.hexdigest(), size) != (entry.blob.sha256, entry.blob.size):
            raise WherryError(EndReason.STAGE_IN_FAILED, f"{entry.path!r} of the input {name} is not what was stored.")

    async def outputs_tar(self, order: Order, name: str, root: str) -> AsyncGenerator[bytes, None]:
        """Give outputs of another job as a tar, below the folder *root*; the one file of an input as CONTENT.

        Small files are fetched several at a time, ahead of their turn.

        Raises:
            WherryError: as `input_file`.
        """
        parts = _Parts(partial(self.input_file, order, name), asked_path(order.spec, name), root)
        yield archive.folder(root)
        try:
            async with aclosing(self.input_pages(order, name)) as pages:
                async for page in pages:
                    for entry in page:
                        parts.add(entry)
                        while parts.is_full:
                            async for part in parts.next():
                                yield part
            while parts.ahead:
                async for part in parts.next():
                    yield part
        finally:
            await parts.close()
        yield archive.END

    async def item_file(self, order: Order, item: ItemOrder) -> AsyncGenerator[bytes, None]:
        """Give the bytes of an item of the map job whose worker *order* is.

        Raises:
            WherryError: ``input_missing``; ``unavailable``, where it is worth another try.
        """
        wanted = BlobRead(artifact_id=item.spec.artifact, job_id=order.job_id, item=item.id, min_seq=order.seq)
        digest = sha256()
        try:
            async with aclosing(self._blobs.read(wanted, patience_s=_LIST_PATIENCE_S)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    yield piece
        except WherryError as error:
            if error.retryable:
                raise
            message = f"The artifact {item.spec.artifact} of the item cannot be had: {error.message}"
            raise WherryError(EndReason.INPUT_MISSING, message) from error
        if item.spec.sha256 not in (None, digest.hexdigest()):
            raise WherryError("corrupt", f"The artifact {item.spec.artifact} is not what was stored.", retryable=True)

    async def keep(self, key: Key, chunks: AsyncIterator[bytes]) -> BlobRef:
        """Store *chunks* as something that the attempt left."""
        scope = BlobScope(job_id=key.job_id, attempt=key.attempt, snapshot=self._snapshot)
        return (await self._blobs.upload(chunks, scope, patience_s=self._patience_s)).blob

    async def keep_bytes(self, key: Key, body: bytes) -> BlobRef:
        """Store *body* as something that the attempt left."""
        return await self.keep(key, _one(body))

    async def keep_file(self, key: Key, path: Path) -> BlobRef:
        """Store the file at *path*; a missing one is an empty one."""
        if not path.exists():  # noqa: ASYNC240 - one look, on the local disk
            return await self.keep_bytes(key, b"")
        with path.open("rb") as file:
            return await self.keep(key, pieces_of(file))


async def pieces_of(file: BinaryIO, size: int | None = None) -> AsyncIterator[bytes]:
    """Give a file in pieces, read in a thread; no more than its first *size* bytes, where that is given."""
    while piece := await asyncio.to_thread(file.read, CHUNK_BYTES if size is None else min(CHUNK_BYTES, size)):
        yield piece
        size = None if size is None else size - len(piece)


async def _one(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


class _Parts:
    """Entries of a listing on their way into a tar.

    Args:
        read: gives the bytes of a file.
        asked: the path among the outputs that was asked for.
        root: the folder of the tar.
    """

    def __init__(self, read: Callable[[Entry], AsyncGenerator[bytes, None]], asked: str | None, root: str) -> None:
        self.ahead: deque[tuple[Entry, asyncio.Task[bytes] | None]] = deque()
        self._read, self._asked, self._root = read, asked, root
        self._made = {""}

    @property
    def is_full(self) -> bool:
        """Return whether enough is being fetched."""
        return len(self.ahead) >= _FILES_AT_ONCE

    def add(self, entry: Entry) -> None:
        """Take in the next entry; a small file is fetched from now on."""
        is_small = entry.blob is not None and entry.blob.size <= CHUNK_BYTES
        self.ahead.append((entry, asyncio.create_task(self._whole(entry)) if is_small else None))

    async def next(self) -> AsyncGenerator[bytes, None]:
        """Give the tar's part for the first entry."""
        entry, fetching = self.ahead.popleft()
        path, mtime = place(entry.path, self._asked), int(entry.mtime)
        for folder in _folders(path, self._made):
            yield archive.folder(f"{self._root}/{folder}")
        if entry.blob is None:
            self._made.add(path)
            yield archive.folder(f"{self._root}/{path}", entry.mode & 0o777 | 0o500, mtime)
            return
        yield archive.file(f"{self._root}/{path or CONTENT}", entry.blob.size, entry.mode & 0o777 | 0o400, mtime)
        if fetching is not None:
            yield await fetching
        else:
            async for piece in self._read(entry):
                yield piece
        yield archive.padding(entry.blob.size)

    async def close(self) -> None:
        """Fetch nothing more."""
        left = [fetching for _, fetching in self.ahead if fetching is not None]
        for fetching in left:
            fetching.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _whole(self, entry: Entry) -> bytes:
        return b"".join([piece async for piece in self._read(entry)])


def _folders(path: str, made: set[str]) -> Iterator[str]:
    """Give the folders above *path* that were not given before."""
    cut = path.find("/")
    while cut > 0:
        if path[:cut] not in made:
            made.add(path[:cut])
            yield path[:cut]
        cut = path.find("/", cut + 1)


def _input_error(order: Order, name: str, error: WherryError, retryable: str | None = None) -> WherryError:
    """Return *error* as one of the job's input *name*; *retryable* is the code of one that is worth another try."""
    if error.code in (EndReason.STAGE_IN_FAILED, EndReason.BAD_SOURCE, EndReason.DISK):
        return error
    if error.retryable:
        code = retryable or error.code
    else:
        code = EndReason.STAGE_IN_FAILED if error.code == "corrupt" else EndReason.INPUT_MISSING
    message = f"The input {name} ({order.spec.inputs[name].source}) could not be fetched: {error.message}"
    return WherryError(code, message, retryable=error.retryable)
