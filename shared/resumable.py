"""Writing uploads that resume: whole chunks to storage, several under way, and what is durable noted as it grows."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.bus import Bus, Raw
from shared.channels import (
    RESUMABLE_ADVANCE,
    RESUMABLE_BEGIN,
    RESUMABLE_CHUNK,
    RESUMABLE_CREATE,
    RESUMABLE_END,
    RESUMABLE_GET,
    RESUMABLE_TAIL,
    Channel,
)
from shared.clock import monotonic
from shared.errors import WherryError
from shared.model import Message
from shared.requests.artifacts import Resumable, ResumableAdvance, ResumableBegin, ResumableCreate, ResumableQuery
from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)

#: Headers of a chunk.
UPLOAD_HEADER, EPOCH_HEADER, CHUNK_HEADER = "Wherry-Upload", "Wherry-Epoch", "Wherry-Chunk"

#: Bytes after which storage is told how far a writer has come: it looks at no more than these when one is cut off.
NOTED_BYTES = 32 * CHUNK_BYTES
CALL_TIMEOUT_S, END_TIMEOUT_S = 5.0, 60.0
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one request brings of an upload.

    Attributes:
        offset: where it begins; what is durable, or it is refused.
        length: the upload's length, where it is told only now.
        is_whole: for bytes with a checksum: asked at their end whether they are those that were meant. Until then
            nothing of them counts.
    """

    offset: int
    length: int | None = None
    is_whole: Callable[[], bool] | None = None


class ResumableClient:
    """Uploads that resume, over one bus connection.

    Args:
        bus: the connection.
        patience_s: for how many seconds each call is repeated while storage is away.
    """

    def __init__(self, bus: Bus, *, patience_s: float = 60) -> None:
        self._bus = bus
        self._patience_s = patience_s

    async def create(self, wanted: ResumableCreate) -> Resumable:
        """Begin an upload.

        Raises:
            WherryError: ``uploads_open``, ``unavailable``.
        """
        return await self._ask(RESUMABLE_CREATE, wanted)

    async def get(self, upload_id: str) -> Resumable:
        """Return how far an upload has come.

        Raises:
            WherryError: ``not_found``, ``upload_ended``, ``unavailable``.
        """
        return await self._ask(RESUMABLE_GET, ResumableQuery(upload_id=upload_id), END_TIMEOUT_S)

    async def end(self, upload_id: str) -> None:
        """Drop an upload.

        Raises:
            WherryError: ``not_found``, ``upload_ended``, ``unavailable``.
        """
        await self._ask(RESUMABLE_END, ResumableQuery(upload_id=upload_id))

    async def write(self, upload_id: str, part: Part, chunks: AsyncIterator[bytes]) -> Resumable:
        """Store *chunks* and return the upload as it is then; at its length it is an artifact.

        When *chunks* raises, what has come is kept nevertheless (but for a part with a checksum).

        Raises:
            WherryError: ``offset_mismatch``, ``checksum_mismatch``, ``not_found``, ``upload_ended``, ``unavailable``.
        """
        checked = part.is_whole is not None
        begin = ResumableBegin(upload_id=upload_id, offset=part.offset, length=part.length, checked=checked)
        # Asked once: a repeat would shut out the first one's writer, which is this one.
        turn = await self._bus.ask(RESUMABLE_BEGIN, begin, timeout_s=END_TIMEOUT_S)
        if turn.state != "open":
            return turn
        writer = _Writer(self, turn, bytearray(await self._tail(upload_id, part.offset)), note=not checked)
        try:
            await writer.take(chunks)
            _check(part)
            return await writer.finish()
        except Exception:
            if not checked:  # the sender is gone, and what it has sent is as good as if it had said so
                with suppress(WherryError):
                    await writer.finish()
            raise
        finally:
            await writer.stop()

    async def put(self, upload_id: str, epoch: int, number: int, data: bytes) -> None:
        """Store one chunk of a writer."""
        headers = {UPLOAD_HEADER: upload_id, EPOCH_HEADER: str(epoch), CHUNK_HEADER: str(number)}
        await self._patiently(lambda: self._raw(RESUMABLE_CHUNK, data, headers))

    async def advance(self, upload_id: str, epoch: int, offset: int) -> Resumable:
        """Tell how far a writer has come."""
        message = ResumableAdvance(upload_id=upload_id, epoch=epoch, offset=offset)
        return await self._ask(RESUMABLE_ADVANCE, message, END_TIMEOUT_S)

    async def _tail(self, upload_id: str, offset: int) -> bytes:
        if not offset % CHUNK_BYTES:
            return b""
        question = ResumableBegin(upload_id=upload_id, offset=offset).to_bytes()
        tail = (await self._patiently(lambda: self._raw(RESUMABLE_TAIL, question, {}))).body
        if len(tail) != offset % CHUNK_BYTES:
            raise WherryError("corrupt", f"Storage gave {len(tail)} bytes of upload {upload_id} where more belong.")
        return tail

    async def _raw(self, channel: Channel[Any, Any], body: bytes, headers: Mapping[str, str]) -> Raw:
        return await self._bus.ask_raw(channel, body, headers, timeout_s=CALL_TIMEOUT_S, retry_s=0)

    async def _ask(self, channel: Channel[M, R], message: M, timeout_s: float = CALL_TIMEOUT_S) -> R:
        return await self._patiently(lambda: self._bus.ask(channel, message, timeout_s=timeout_s, retry_s=0))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        give_up_at, pause_s = monotonic() + self._patience_s, _PAUSE_S
        while True:
            try:
                return await call()
            except WherryError as error:
                if not error.retryable or monotonic() + pause_s > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def _check(part: Part) -> None:
    if part.is_whole is not None and not part.is_whole():
        raise WherryError("checksum_mismatch", "The bytes that came are not those of their checksum.")


class _Writer:
    """One writer's turn: chunks under way in order, and how far they are durable."""

    def __init__(self, client: ResumableClient, turn: Resumable, held: bytearray, *, note: bool) -> None:
        self._client = client
        self._turn = turn
        self._held = held
        self._note_often = note
        self._sent = turn.offset - len(held)
        self._durable = self._noted = turn.offset
        self._under_way: deque[tuple[int, asyncio.Task[None]]] = deque()

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Send whole chunks of what comes; the rest is held."""
        async for chunk in chunks:
            view = memoryview(chunk)
            while len(self._held) + len(view) >= CHUNK_BYTES:
                taken = CHUNK_BYTES - len(self._held)
                piece = b"".join((self._held, view[:taken]))
                self._held.clear()
                view = view[taken:]
                await self._send(piece)
            self._held += view
            if self._note_often and self._durable - self._noted >= NOTED_BYTES:
                await self._note()

    async def finish(self) -> Resumable:
        """Send what is held, wait until all is stored, and tell how far that is."""
        if self._held:
            piece = bytes(self._held)
            self._held.clear()
            await self._send(piece)
        while self._under_way:
            await self._oldest()
        return await self._note()

    async def stop(self) -> None:
        """Let go of what is still under way."""
        tasks = [task for _, task in self._under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, piece: bytes) -> None:
        while len(self._under_way) >= WINDOW_CHUNKS:
            await self._oldest()
        number = self._sent // CHUNK_BYTES
        self._sent += len(piece)
        put = self._client.put(self._turn.upload_id, self._turn.epoch, number, piece)
        self._under_way.append((self._sent, asyncio.create_task(put)))

    async def _oldest(self) -> None:
        end, task = self._under_way[0]
        await task
        self._under_way.popleft()
        self._durable = end

    async def _note(self) -> Resumable:
        self._noted = self._durable
        return await self._client.advance(self._turn.upload_id, self._turn.epoch, self._durable)
