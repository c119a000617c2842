"""What the agent fetches from storage and brings there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from services.node_agent.core.container import Key
from shared.blobs import BlobClient
from shared.errors import WherryError
from shared.fleet import Order
from shared.job import BlobRef
from shared.requests import CHUNK_BYTES, BlobRead, BlobScope
from shared.states import EndReason


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
