"""A thread that reads a stream which may be silent for hours, seen from asyncio."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

T = TypeVar("T")


class ReaderThread:
    """Runs *read* in a thread of its own (never in a pool: it blocks for as long as a program runs).

    Args:
        name: of the thread.
        read: does the reading; asks `is_closed` between two pieces.
        interrupt: wakes *read* from a blocked call; called at most once, from any thread.
    """

    def __init__(self, name: str, read: "Callable[[ReaderThread], None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._closed = threading.Event()
        self._read = read
        self.interrupt: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Return whether nobody wants more."""
        return self._closed.is_set()

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond `close`."""
        self._closed.wait(seconds)

    async def wait(self) -> None:
        """Return when the thread has read everything or was closed; raise what it raised."""
        await asyncio.shield(self._done)

    def close(self) -> None:
        """Make the thread end soon."""
        self._closed.set()
        if (interrupt := self.interrupt) is not None:
            with suppress(OSError):
                interrupt()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._read(self)
        except Exception as caught:  # noqa: BLE001 - given to whoever waits
            error = None if self.is_closed else caught
        with suppress(RuntimeError):  # the loop is gone: so is everybody who waited
            self._loop.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
            self._done.exception()  # seen: a waiter that has left is no reason for a warning


def in_daemon_thread(name: str, call: Callable[[], T]) -> asyncio.Future[T]:
    """Run *call*, which may hang for good, in a thread that keeps no program from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def end(value: T | None, error: Exception | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(cast("T", value))

    def run() -> None:
        value, error = None, None
        try:
            value = call()
        except Exception as caught:  # noqa: BLE001 - given to whoever waits
            error = caught
        with suppress(RuntimeError):  # the loop is gone: so is everybody who waited
            loop.call_soon_threadsafe(end, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result
