"""The agent's end of a relay: lines over what the engine attaches us to, as connections."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from services.node_agent.adapters.reader_thread import ReaderThread
from services.node_agent.adapters.relay_program import PIECE, WINDOW, Lines, line
from services.node_agent.ports import ServeConnection
from shared import observe
from shared.errors import Unavailable
from shared.ids import new_id

_HELLO_S, _BYE_S = 20.0, 1.0
_RECEIVE_BYTES = 256 * 1024
_HEADER = struct.Struct(">BxxxL")
_STDOUT, _STDERR = 1, 2
_SAID_BYTES_MAX = 2000
_log = observe.logger("relay")


class Frames:
    """Takes an engine's frames (stream, length, bytes) apart; gives the bytes of standard output as they come."""

    def __init__(self) -> None:
        self.said = b""  # the last on standard error: why a relay has ended
        self._head = b""
        self._stream, self._left = 0, 0

    def feed(self, data: bytes) -> bytes:
        """Return what of *data* is standard output."""
        out: list[bytes] = []
        while data:
            if not self._left:
                need = _HEADER.size - len(self._head)
                self._head, data = self._head + data[:need], data[need:]
                if len(self._head) == _HEADER.size:
                    self._stream, self._left = _HEADER.unpack(self._head)
                    self._head = b""
                continue
            body, data = data[: self._left], data[self._left :]
            self._left -= len(body)
            if self._stream == _STDOUT:
                out.append(body)
            elif self._stream == _STDERR:
                self.said = (self.said + body)[-_SAID_BYTES_MAX:]
        return b"".join(out)


class RelayConnection:
    """One connection of the program. Each side may have WINDOW bytes under way."""

    def __init__(self, say: Callable[[str, bytes], None]) -> None:
        self._say = say
        self._pieces: deque[bytes] = deque()
        self._credit = WINDOW
        self._is_ended = self._is_gone = self._is_closed = False
        self._changed = asyncio.Event()

    async def receive(self) -> bytes:
        """Return the next bytes; nothing at the end.

        Raises:
            OSError: the connection is gone.
        """
        await self._until(lambda: bool(self._pieces) or self._is_ended)
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._say("more", b"%d" % len(piece))
        return piece

    async def send(self, data: bytes) -> None:
        """Send, waiting for credit; raise OSError where the connection is gone."""
        view = memoryview(data)
        while view:
            await self._until(lambda: self._credit > 0)
            piece = bytes(view[: min(PIECE, self._credit)])
            self._credit -= len(piece)
            self._say("data", piece)
            view = view[len(piece) :]

    async def close(self) -> None:
        """Close it behind what was sent."""
        if not (self._is_closed or self._is_gone):
            self._say("end", b"")
        self._is_closed = True

    def hear(self, word: str, body: bytes) -> None:
        """Take a line of the relay."""
        match word:
            case "data" if not self._is_closed:
                self._pieces.append(body)
            case "data":
                self._say("more", b"%d" % len(body))  # nobody reads it; the other side may go on to its end
            case "end":
                self._is_ended = True
            case "more":
                self._credit += int(body)
            case _:
                self._is_gone = True
        self._changed.set()

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self._is_gone:
                raise ConnectionResetError("the connection is gone")
            self._changed.clear()
            await self._changed.wait()


class RelayDoor:
    """All connections of one attempt's program, by its relay.

    Args:
        name: of the relay, for logs.
        heard: the engine's attachment to what it says; closed with the door.
        told: the one to what it reads. Two, for a connection by TLS is no thing for two threads.
        serve: serves one connection.
    """

    def __init__(self, name: str, heard: Any, told: Any, serve: ServeConnection) -> None:
        self._name = name
        self._heard, self._told = _Attachment(heard), _Attachment(told)
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._session = new_id("o").encode()
        self._is_begun = asyncio.Event()
        self._frames, self._lines = Frames(), Lines()
        self._connections: dict[int, RelayConnection] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._out: SimpleQueue[bytes | None] = SimpleQueue()  # None: that was all. Bounded by what may be under way
        self._reader = ReaderThread(f"door-{name}", self._read)
        self._reader.interrupt = self._heard.shut_down
        self._writer = ReaderThread(f"door-out-{name}", self._write)

    async def begin(self) -> None:
        """Wait until the relay listens, and answers us.

        Raises:
            Unavailable: it does not.
        """
        self._out.put(b"\n")  # an agent before us may have ended in the middle of a line
        self._say(0, "hello", self._session)
        begun = asyncio.create_task(self._is_begun.wait())
        ended = asyncio.create_task(self._reader.wait())
        try:
            await asyncio.wait({begun, ended}, timeout=_HELLO_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
            ended.cancel()
            await asyncio.wait({begun, ended})
        if not self._is_begun.is_set():
            said = self._frames.said.decode("utf-8", "replace").strip()
            raise Unavailable(f"The relay of network api does not answer. {said}".strip())

    async def wait(self) -> None:
        """Return once the relay has ended, or the engine does not answer any more."""
        with suppress(OSError):
            await self._reader.wait()

    async def close(self) -> None:
        """Detach; the relay keeps who connects now for the next one."""
        self._say(0, "bye")
        self._out.put(None)
        with suppress(OSError):  # a time-out is one
            async with asyncio.timeout(_BYE_S):
                await self._writer.wait()
        self._writer.close()
        self._reader.close()
        for connection in self._connections.values():
            connection.hear("gone", b"")
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        with suppress(OSError):
            await self._reader.wait()
        self._heard.close()
        self._told.close()

    # --- in and out ---

    def _read(self, reader: ReaderThread) -> None:
        while not reader.is_closed and (data := self._heard.receive(_RECEIVE_BYTES)):
            self._loop.call_soon_threadsafe(self._feed, data)

    def _feed(self, data: bytes) -> None:
        for word, number, body in self._lines.feed(self._frames.feed(data)):
            if word == "hello":
                if body == self._session:
                    self._is_begun.set()
            elif self._is_begun.is_set():  # what was said before was for somebody else
                self._hear(word, number, body)

    def _hear(self, word: str, number: int, body: bytes) -> None:
        if word == "open":
            connection = self._connections[number] = RelayConnection(partial(self._say, number))
            task = asyncio.create_task(self._serve(connection), name=f"door {self._name} {number}")
            self._serving.add(task)
            task.add_done_callback(self._served)
        elif (found := self._connections.get(number)) is not None:
            found.hear(word, body)
            if word == "gone":
                del self._connections[number]

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("serving_failed", relay=self._name, exc_info=error)

    def _say(self, number: int, word: str, body: bytes = b"") -> None:
        self._out.put(line(word, number, body))

    def _write(self, writer: ReaderThread) -> None:
        while not writer.is_closed and (data := self._out.get()) is not None:
            try:
                self._told.send(data)
            except OSError:
                self._reader.close()
                raise


class _Attachment:
    """What an engine gives whoever attaches: a socket, or the pipes of a program that has made the connection (ssh).

    Args:
        attached: as docker's client returns it.
    """

    def __init__(self, attached: Any) -> None:
        self._attached = attached
        self._socket: Any = getattr(attached, "_sock", attached)
        self._program: Any = getattr(self._socket, "proc", None)
        self._socket.settimeout(None)
        # The socket of such a program would wait for all that was asked for.
        self.receive: Callable[[int], bytes] = self._program.stdout.read1 if self._program else self._socket.recv
        self.send: Callable[[bytes], object] = self._socket.sendall

    def shut_down(self) -> None:
        """Wake whoever reads."""
        if self._program:
            self._program.terminate()
        else:
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            self.shut_down()
        with suppress(OSError):
            self._socket.close()
        with suppress(OSError, AttributeError):
            self._attached._response.close()  # noqa: SLF001 - docker keeps the answer there
