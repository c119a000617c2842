"""Bytes that storage itself takes in from elsewhere, stored as an upload of the gateway's would be."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from services.storage.adapters.mongo import PyMongoError
from services.storage.core.access import OwnerScope
from services.storage.shell.uploads import Put, Uploads
from shared.errors import Unavailable, WherryError
from shared.ids import new_id
from shared.requests.blobs import CHUNK_BYTES, BlobScope, Committed, UploadCommit

T = TypeVar("T")

#: Who these uploads belong to; no gateway can name itself so, for its id has to be one token.
KIND, PEER = "gateway", "of storage"
WINDOW = 8
_TRIES, _PAUSE_S = 60, 0.5


class Inflow:
    """One blob on its way in. Memory stays at WINDOW chunks.

    Args:
        uploads: where it goes.
        scope: whose artifact it becomes.
    """

    def __init__(self, uploads: Uploads, scope: OwnerScope) -> None:
        self.upload_id = new_id("b")
        self.size = 0
        self._uploads = uploads
        self._scope = scope
        self._held = bytearray()
        self._digest = hashlib.sha256()
        self._chunks = 0
        self._credit = asyncio.Semaphore(WINDOW)
        self._sending: set[asyncio.Task[None]] = set()

    async def take(self, piece: bytes) -> None:
        """Take in what comes next, of any size.

        Raises:
            WherryError: it cannot be stored.
        """
        self._digest.update(piece)
        self.size += len(piece)
        self._held += piece
        while len(self._held) > CHUNK_BYTES:  # what is exactly a chunk may be all there is, and goes as one
            await self._send(bytes(self._held[:CHUNK_BYTES]))
            del self._held[:CHUNK_BYTES]

    async def commit(self) -> Committed:
        """Make an artifact of all that came.

        Raises:
            WherryError: it cannot be stored.
        """
        body, sha256 = bytes(self._held), self._digest.hexdigest()
        if not self._chunks:
            return await _patiently(lambda: self._uploads.put(Put(body, sha256, self._scope)))
        await self._send(body)
        await asyncio.gather(*self._sending)
        commit = UploadCommit(upload_id=self.upload_id, chunks=self._chunks, size=self.size, sha256=sha256)
        return await _patiently(lambda: self._uploads.commit(KIND, PEER, commit))

    async def drop(self) -> None:
        """Forget all that came."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._chunks:
            with suppress(PyMongoError):  # then it is swept up later
                await self._uploads.abort(KIND, PEER, self.upload_id)

    async def _send(self, body: bytes) -> None:
        number = self._chunks
        if not number:
            owner = self._scope
            scope = BlobScope(owner_id=owner.owner_id, name=owner.name, media_type=owner.media_type)
            await _patiently(lambda: self._uploads.open(KIND, PEER, self.upload_id, scope))
        self._chunks += 1
        await self._credit.acquire()
        for failed in [task for task in self._sending if task.done() and task.exception()]:
            failed.result()
        self._sending = {task for task in self._sending if not task.done()}
        self._sending.add(asyncio.create_task(self._store(number, body)))

    async def _store(self, number: int, body: bytes) -> None:
        try:
            await _patiently(lambda: self._uploads.chunk(KIND, PEER, self.upload_id, number, body))
        finally:
            self._credit.release()


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Return what *call* gives, as soon as MongoDB answers and there is room, within about half a minute."""
    for _ in range(_TRIES):
        try:
            return await call()
        except PyMongoError:
            pass
        except WherryError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(_PAUSE_S)
    raise Unavailable("Storage's database does not answer.")
