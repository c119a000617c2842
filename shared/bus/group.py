"""Group commit: what is recorded at the same time is stored with one fsync."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from shared import observe, wire
from shared.bus.answers import LateConflict
from shared.errors import Unavailable, WherryError
from shared.wire import BATCH_BYTES_MAX, BATCH_MAX, Entry, Stored


class Write(Protocol):
    """Store *entries* in *stream*, all or none; *suspect*: an earlier try of the same may have been stored."""

    async def __call__(self, entries: Sequence[Entry], stream: str, *, suspect: bool = False) -> list[Stored]: ...


_log = observe.logger("bus")


class Group:
    """Group commit for one stream: what arrives while a batch is under way makes up the next."""

    def __init__(self, write: Write, stream: str) -> None:
        self._write, self._stream = write, stream
        self._waiting: deque[tuple[Entry, asyncio.Future[Stored]]] = deque()
        self._some = asyncio.Event()

    async def add(self, entry: Entry) -> Stored:
        stored: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, stored))
        self._some.set()
        return await stored

    async def run(self) -> None:
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                await asyncio.sleep(0)  # whoever can run now adds its own
                while batch := self._take():
                    await self._store(batch)
        finally:
            _fail_all(self._waiting, Unavailable("The bus was closed."))

    def _take(self) -> list[tuple[Entry, asyncio.Future[Stored]]]:
        """Take the next batch out of the queue.

        Two writers that expect the same of one filter never share a batch: the server compares all of a batch with the
        stream before it, and both would win.
        """
        taken: list[tuple[Entry, asyncio.Future[Stored]]] = []
        left: list[tuple[Entry, asyncio.Future[Stored]]] = []
        marks: set[str | None] = set()
        size = 0
        while self._waiting and len(taken) < BATCH_MAX and size < BATCH_BYTES_MAX:
            one = self._waiting.popleft()
            entry, stored = one
            mine = {entry.expects, entry.headers[wire.MSG_ID]} - {None}
            if stored.done():
                continue  # whoever waited for it has given up before it was sent
            if mine & marks:
                left.append(one)
                continue
            marks |= mine
            size += len(entry.body)
            taken.append(one)
        self._waiting.extendleft(reversed(left))
        return taken

    async def _store(self, batch: Sequence[tuple[Entry, asyncio.Future[Stored]]]) -> None:
        try:
            found = await self._write([entry for entry, _ in batch], self._stream)
        except WherryError as error:
            if len(batch) == 1 or isinstance(error, Unavailable):
                _fail_all(batch, error)
            else:
                late = isinstance(error, LateConflict)
                await asyncio.gather(*(self._store_alone(entry, stored, suspect=late) for entry, stored in batch))
        except Exception as error:  # noqa: BLE001 - logged, and handed to whoever waits
            _log.exception("group_failed", stream=self._stream)
            _fail_all(batch, error)
        else:
            for (_, stored), place in zip(batch, found, strict=True):
                if not stored.done():
                    stored.set_result(place)
        finally:  # whoever knows nothing by now never will: this was cancelled
            _fail_all(batch, Unavailable("The bus was closed."))

    async def _store_alone(self, entry: Entry, stored: asyncio.Future[Stored], *, suspect: bool) -> None:
        try:
            [place] = await self._write([entry], self._stream, suspect=suspect)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for this record
            _fail(stored, error)
        else:
            if not stored.done():
                stored.set_result(place)


def _fail_all(batch: Iterable[tuple[Entry, asyncio.Future[Stored]]], error: Exception) -> None:
    for _, stored in batch:
        _fail(stored, error)


def _fail(stored: asyncio.Future[Stored], error: Exception) -> None:
    if not stored.done():
        stored.set_exception(error)
