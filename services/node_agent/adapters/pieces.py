"""Bytes on their way between the event loop and threads, in pieces."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Iterator


class Pulled:
    """What an asynchronous generator gives, for a thread to iterate over once.

    Args:
        source: closed by `aclose`.
    """

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._next: concurrent.futures.Future[bytes | None] | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces; called in a thread.

        Raises:
            InterruptedError: it was stopped.
        """
        while True:
            self._next = asyncio.run_coroutine_threadsafe(self._pull(), self._loop)
            if self._stopped.is_set():
                self._next.cancel()
            try:
                piece = self._next.result()
            except concurrent.futures.CancelledError:
                raise InterruptedError from None
            if piece is None:
                return
            yield piece

    async def _pull(self) -> bytes | None:
        return await anext(self._source, None)

    def stop(self) -> None:
        """Let the thread that iterates fail soon, wherever it waits."""
        self._stopped.set()
        if self._next is not None:
            self._next.cancel()

    async def aclose(self) -> None:
        """Let go of the source, once nobody iterates any more."""
        await self._source.aclose()


class Stoppable:
    """What an iterator gives, until it is stopped.

    Args:
        pieces: iterated over once.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces.

        Raises:
            InterruptedError: it was stopped.
        """
        for piece in self._pieces:
            if self._stopped.is_set():
                raise InterruptedError
            yield piece

    def stop(self) -> None:
        """Let who iterates fail at the next piece."""
        self._stopped.set()

    async def aclose(self) -> None:
        """Do nothing: what it holds goes with the thread that iterates."""


class PieceReader:
    """Makes a file of pieces, for tarfile.

    Args:
        pieces: of any size.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes; nothing at the end."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._held = piece
        taken, self._held = self._held[:size], self._held[size:]
        return taken
