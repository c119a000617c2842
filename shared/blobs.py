"""Sending and reading blobs: bounded chunks as requests to storage, some of them under way, SHA-256 at both ends.

Each chunk is a request of its own, so that it can be repeated when storage restarts, and its answer is the credit for
the next. Memory stays at about two windows (WINDOW_CHUNKS) for all transfers each way, whatever the blobs' sizes; but
a reader keeps what it has asked for until that is taken, so a dozen slow ones that begin one by one hold six windows.
"""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar

from shared.bus import Bus, Raw
from shared.channels import BLOB_ABORT, BLOB_CHUNK, BLOB_COMMIT, BLOB_OPEN, BLOB_PUT, BLOB_READ, INPUT_LIST, Channel
from shared.clock import monotonic
from shared.errors import WherryError
from shared.ids import new_id
from shared.model import Message
from shared.requests.blobs import (
    CHUNK_BYTES,
    WINDOW_CHUNKS,
    BlobRead,
    BlobScope,
    Committed,
    InputQuery,
    UploadAbort,
    UploadCommit,
    UploadOpen,
)
from shared.requests.outputs import OutputPage

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)

#: Headers of the raw messages.
UPLOAD_HEADER, CHUNK_HEADER = "Wherry-Upload", "Wherry-Chunk"
SCOPE_HEADER, SHA256_HEADER, SIZE_HEADER = "Wherry-Scope", "Wherry-Sha256", "Wherry-Size"

#: Seconds for the answer to one chunk, and to a commit (after a restart storage reads the whole blob again). The first
#: try has less: an answer that went down with storage is not worth the wait, and to ask again is harmless.
FIRST_TIMEOUT_S, CALL_TIMEOUT_S, COMMIT_TIMEOUT_S, ABORT_TIMEOUT_S = 1.5, 5.0, 60.0, 5.0
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0


class BlobClient:
    """Blobs over one bus connection (one of its own: never the control connection).

    Args:
        bus: the connection.
        kind: who is asking; the broker lets each speak only for itself.
        peer: the gateway's or node's id.
    """

    def __init__(self, bus: Bus, kind: Literal["gateway", "node"], peer: str) -> None:
        self._bus = bus
        self._who = {"kind": kind, "peer": peer}
        # All uploads share it, one chunk after the other: what is held does not grow with how many there are.
        self._room = asyncio.Semaphore(2 * WINDOW_CHUNKS)
        self._readers = 0  # who share as much between them

    async def upload(self, chunks: AsyncIterator[bytes], scope: BlobScope, *, patience_s: float = 60) -> Committed:
        """Store what *chunks* gives, in pieces of any size, and return the stored blob.

        Nothing is left behind when *chunks* raises or the task is cancelled.

        Args:
            chunks: the bytes.
            scope: what they are for.
            patience_s: for how many seconds each call is repeated while storage is away.

        Raises:
            WherryError: storage refused it, or stayed away (``unavailable``).
        """
        pieces = _recut(chunks)
        first = await anext(pieces, b"")
        second = await anext(pieces, None) if len(first) == CHUNK_BYTES else None
        if second is None:
            return await self._put(first, scope, patience_s)
        upload_id = new_id("b")
        await self._ask(BLOB_OPEN, UploadOpen(upload_id=upload_id, scope=scope), patience_s)
        try:
            commit = await self._send(upload_id, _chain(first, second, pieces), patience_s)
            return await self._ask(BLOB_COMMIT, commit, patience_s, COMMIT_TIMEOUT_S)
        except BaseException:
            # Shielded: a cancelled task still tells storage to forget what has arrived.
            await asyncio.shield(self._abort(upload_id))
            raise

    async def read(
        self, target: BlobRead, *, start: int = 0, end: int | None = None, patience_s: float = 60
    ) -> AsyncGenerator[bytes, None]:
        """Give the bytes from *start* up to (not with) *end* in order, asking ahead: all readers together two windows.

        Args:
            target: which blob; its `offset` and `length` are not looked at.
            start: the first byte.
            end: the byte after the last; None is the blob's end.
            patience_s: for how many seconds each call is repeated while storage is away.

        Raises:
            WherryError: ``not_found``, ``forbidden``, ``unavailable``; ``corrupt`` when the bytes are not what
                `target.sha256` says (a whole blob only) or an answer is short.
        """
        window: deque[asyncio.Task[tuple[bytes, int]]] = deque()
        self._readers += 1
        try:
            body, size = await self._range(target, start, _piece_end(start, end), patience_s)
            stop = size if end is None else min(end, size)
            digest = hashlib.sha256() if target.sha256 and start == 0 and stop == size else None
            asked = given = start
            while True:
                if len(body) != max(0, min(_piece_end(given, stop), size) - given):
                    raise WherryError("corrupt", f"Storage gave {len(body)} bytes where more belong.")
                asked, given = max(asked, given + len(body)), given + len(body)
                share = max(2, 2 * WINDOW_CHUNKS // self._readers)
                # By quarters of the share: storage looks for what is asked for at once with one question, and while
                # one quarter is looked for another is on its way (measured: a fifth faster than by halves of half).
                # Where many share, by two: one question each costs storage and the database more (a fifteenth).
                part = max(share // 4, min(2, share // 2))
                room = share - len(window) if len(window) <= share - part else 0
                while asked < stop and room > 0:
                    room -= 1
                    until = _piece_end(asked, stop)
                    window.append(asyncio.ensure_future(self._range(target, asked, until, patience_s)))
                    asked = until
                if digest is not None:
                    digest.update(body)
                if body:
                    yield body
                if given >= stop:
                    break
                body, _ = await window.popleft()
        finally:
            self._readers -= 1
            await _cancel(window)
        if digest is not None and digest.hexdigest() != target.sha256:
            raise WherryError("corrupt", "The bytes that came are not those that the blob's SHA-256 names.")

    async def input_page(self, query: InputQuery, *, patience_s: float = 60) -> OutputPage:
        """Return a page of what an input of a job consists of.

        Raises:
            WherryError: ``not_found``, ``forbidden`` or ``unavailable``.
        """
        return await self._ask(INPUT_LIST, query, patience_s)

    async def size(self, target: BlobRead, *, patience_s: float = 60) -> int:
        """Return the blob's length in bytes.

        Raises:
            WherryError: ``not_found``, ``forbidden`` or ``unavailable``.
        """
        return (await self._range(target, 0, 0, patience_s))[1]

    async def _put(self, body: bytes, scope: BlobScope, patience_s: float) -> Committed:
        # ASCII with escapes: a header takes neither line ends nor every character.
        scope_text = json.dumps(scope.model_dump(mode="json", exclude_defaults=True))
        # With an id: what is sent again, for an answer that did not come in time, becomes no second artifact.
        headers = {
            UPLOAD_HEADER: new_id("b"), SCOPE_HEADER: scope_text, SHA256_HEADER: hashlib.sha256(body).hexdigest(),
        }  # fmt: skip
        answer = await self._ask_raw(BLOB_PUT, body, headers, patience_s)
        return Committed.from_bytes(answer.body)

    async def _send(self, upload_id: str, pieces: AsyncIterator[bytes], patience_s: float) -> UploadCommit:
        digest, size, count = hashlib.sha256(), 0, 0
        credit = asyncio.Semaphore(WINDOW_CHUNKS)

        async def send(number: int, body: bytes) -> None:
            headers = {UPLOAD_HEADER: upload_id, CHUNK_HEADER: str(number)}
            await self._ask_raw(BLOB_CHUNK, body, headers, patience_s)

        def sent(_: asyncio.Task[None]) -> None:
            credit.release()
            self._room.release()

        try:
            async with asyncio.TaskGroup() as under_way:
                async for piece in pieces:
                    await credit.acquire()
                    await self._room.acquire()
                    # A callback, for a task that is cancelled before it begins gives nothing back itself.
                    under_way.create_task(send(count, piece)).add_done_callback(sent)
                    digest.update(piece)
                    size, count = size + len(piece), count + 1
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        return UploadCommit(upload_id=upload_id, chunks=count, size=size, sha256=digest.hexdigest())

    async def _abort(self, upload_id: str) -> None:
        # Best effort: storage forgets uploads that nobody goes on with.
        with suppress(WherryError):
            await self._ask(BLOB_ABORT, UploadAbort(upload_id=upload_id), 0, ABORT_TIMEOUT_S)

    async def _range(self, target: BlobRead, start: int, end: int, patience_s: float) -> tuple[bytes, int]:
        question = target.model_copy(update={"offset": start, "length": end - start})
        answer = await self._ask_raw(BLOB_READ, question.to_bytes(), {}, patience_s)
        return answer.body, int(answer.headers[SIZE_HEADER])

    async def _ask(self, channel: Channel[M, R], message: M, patience_s: float, timeout_s: float = CALL_TIMEOUT_S) -> R:
        return await _patiently(
            lambda most_s: self._bus.ask(channel, message, timeout_s=most_s, retry_s=0, **self._who),
            patience_s,
            timeout_s,
        )

    async def _ask_raw(
        self, channel: Channel[Any, Any], body: bytes, headers: Mapping[str, str], patience_s: float
    ) -> Raw:
        return await _patiently(
            lambda most_s: self._bus.ask_raw(channel, body, headers, timeout_s=most_s, retry_s=0, **self._who),
            patience_s,
            CALL_TIMEOUT_S,
        )


async def _patiently(call: Callable[[float], Awaitable[T]], patience_s: float, timeout_s: float) -> T:
    give_up_at, pause_s = monotonic() + patience_s, _PAUSE_S
    most_s = FIRST_TIMEOUT_S if timeout_s == CALL_TIMEOUT_S < patience_s else timeout_s
    while True:
        try:
            return await call(most_s)
        except WherryError as error:
            if not error.retryable or monotonic() + pause_s > give_up_at:
                raise
        await asyncio.sleep(pause_s)
        pause_s, most_s = min(2 * pause_s, _PAUSE_MAX_S), timeout_s


def _piece_end(start: int, end: int | None) -> int:
    """Return where the piece from *start* on ends: at the next chunk border, so that one document answers it."""
    border = start - start % CHUNK_BYTES + CHUNK_BYTES
    return border if end is None else max(start, min(end, border))


async def _recut(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    held = bytearray()
    async for chunk in chunks:
        view = memoryview(chunk)
        while len(held) + len(view) >= CHUNK_BYTES:
            taken = CHUNK_BYTES - len(held)
            yield b"".join((held, view[:taken]))
            held.clear()
            view = view[taken:]
        held += view
    if held:
        yield bytes(held)


async def _chain(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    yield second
    async for piece in rest:
        yield piece


async def _cancel(tasks: "deque[asyncio.Task[tuple[bytes, int]]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
