"""What the agent fetches from storage and brings there."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO

from services.node_agent.core.container import Key
from services.node_agent.core.inputs import asked_path, place
from shared.blobs import BlobClient
from shared.errors import WherryError
from shared.fleet import Order
from shared.job import BlobRef
from shared.manifest import Entry
from shared.requests import CHUNK_BYTES, BlobRead, BlobScope, InputQuery
from shared.states import EndReason

_FILES_AT_ONCE = 8


class Storage:
    """Blobs of attempts.

    Args:
        blobs: on a connection of its own.
        patience_s: how long one upload is repeated while storage is away.
    """

    def __init__(self, blobs: BlobClient, *, patience_s: float) -> None:
        self._blobs = blobs
        self._patience_s = patience_s

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

    async def fetch_inputs(self, order: Order, folder: Path) -> None:
        """Write every input of *order* to *folder*: a file or a folder for each name.

        Raises:
            WherryError: ``input_missing``, ``stage_in_failed``, ``disk``.
        """
        room = order.spec.resources.disk
        for name, given in order.spec.inputs.items():
            try:
                room = await self._fetch_input(order, name, folder / name, room)
            except WherryError as error:
                if error.code in (EndReason.DISK, EndReason.STAGE_IN_FAILED):
                    raise
                reason = EndReason.STAGE_IN_FAILED if error.retryable else EndReason.INPUT_MISSING
                message = f"The input {name} ({given.source}) could not be fetched: {error.message}"
                raise WherryError(reason, message) from error

    async def _fetch_input(self, order: Order, name: str, target: Path, room: int) -> int:
        """Write one input; return what is left of *room* bytes."""
        asked, patience_s = asked_path(order.spec, name), order.spec.timeouts.stage_in
        query = InputQuery(job_id=order.job_id, input=name, min_seq=order.seq)
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            page = await self._blobs.input_page(query, patience_s=patience_s)
            is_file = len(page.entries) == 1 and page.entries[0].path == asked and page.entries[0].blob is not None
            if not is_file:
                target.mkdir(exist_ok=True)  # noqa: ASYNC240 - on the local disk
            room -= sum(entry.blob.size for entry in page.entries if entry.blob)
            if room < 0:
                raise WherryError(EndReason.DISK, "The inputs need more than the disk that the job was promised.")
            await self._fetch_entries(order, name, target, page.entries)
            if page.cursor is None:
                return room
            query = query.model_copy(update={"cursor": page.cursor})

    async def _fetch_entries(self, order: Order, name: str, target: Path, entries: Iterable[Entry]) -> None:
        places, asked = asyncio.Semaphore(_FILES_AT_ONCE), asked_path(order.spec, name)

        async def fetch(entry: Entry, path: Path) -> None:
            try:
                wanted = BlobRead(job_id=order.job_id, input=name, path=entry.path, min_seq=order.seq)
                await self._fetch_file(wanted, entry, path, order.spec.timeouts.stage_in)
            finally:
                places.release()

        try:
            async with asyncio.TaskGroup() as group:
                for entry in entries:
                    path = target / place(entry.path, asked)
                    if entry.blob is None:
                        path.mkdir(parents=True, exist_ok=True)
                    else:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        await places.acquire()
                        group.create_task(fetch(entry, path))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _fetch_file(self, wanted: BlobRead, entry: Entry, path: Path, patience_s: float) -> None:
        digest = hashlib.sha256()
        with path.open("xb") as file:
            async for piece in self._blobs.read(wanted, patience_s=patience_s):
                digest.update(piece)
                file.write(piece)  # as with the source: not worth a thread
        if entry.blob is None or digest.hexdigest() != entry.blob.sha256:
            raise WherryError(EndReason.STAGE_IN_FAILED, f"{entry.path!r} is not what the other job left.")
        path.chmod(entry.mode & 0o777 | 0o400)  # noqa: ASYNC240 - on the local disk
        os.utime(path, (entry.mtime, entry.mtime))

    async def keep(self, key: Key, chunks: AsyncIterator[bytes]) -> BlobRef:
        """Store *chunks* as something that the attempt left."""
        scope = BlobScope(job_id=key.job_id, attempt=key.attempt)
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


async def pieces_of(file: BinaryIO) -> AsyncIterator[bytes]:
    """Give a file in pieces, read in a thread."""
    while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield piece


async def _one(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
