"""How bytes move on a connection to NATS: nats-py's client, with reading and writing of our own underneath.

nats-py keeps the connection (credentials, pings, subscriptions, reconnecting). What it does with bytes costs three to
six times as much as it has to for messages of half a megabyte (measured): streams that allocate anew for each read, a
buffer that is shifted after each message, expressions tried in turn, and a copy of the whole message to put its head
before it. Here one buffer is read into, a message is copied out of it once, and goes out as the pieces it is made of.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import nats.errors
from nats.aio.client import Client, Srv

from shared.clock import monotonic

#: Bytes of the buffer: at first, and once something large has come (most of a processor's own cache).
_BUFFER_BYTES, _LARGE_BUFFER_BYTES = 64 * 1024, 2 * 1024 * 1024
#: With less room left than this, what is in the buffer moves to its front.
_ROOM_BYTES = 128 * 1024
#: Bytes that may wait in the socket's own queue before writers do.
_UNSENT_BYTES = 4 * 1024 * 1024
#: From so many bytes on, a body is not copied to stand behind its head.
_APART_BYTES = 16 * 1024
_CLOSE_S = 2.0
_LINE_MOST = 64 * 1024  # of the server's; an INFO with many addresses is the longest
_HEADER_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_ENDS = str.maketrans({"\r": " ", "\n": " "})
_M, _H = b"MH"


class _Message(NamedTuple):
    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    body: bytes


class _Wire(asyncio.BufferedProtocol):
    """A socket as nats-py wants it, and what came on it, taken apart: lines, and messages.

    Takes the place of `nats.aio.transport.TcpTransport`.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what is not yet taken apart
        self._wanted = 0  # bytes from the start that the next message needs, where its head has been read
        self._arrived: deque[bytes | _Message] = deque()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._error: Exception | None = None

    # --- what the event loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the protocol's
        room = len(self._buffer) - self._end
        if self._wanted > len(self._buffer) or (room < _ROOM_BYTES and self._start):
            self._make_room()
        elif not room:
            self._wanted = len(self._buffer) + 1
            self._make_room()
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._end - self._start < self._wanted:
            return
        try:
            self._take_apart()
        except (ValueError, IndexError):
            self._error = nats.errors.ProtocolError()
        self._news.set()

    def eof_received(self) -> None:
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = self._error or exc
        self._lost.set()
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        held = self._end - self._start
        if self._wanted > len(self._buffer):
            buffer = bytearray(max(self._wanted + _ROOM_BYTES, _LARGE_BUFFER_BYTES))
            view = memoryview(buffer)
        else:
            buffer, view = self._buffer, self._view
        view[:held] = self._view[self._start : self._end]
        self._buffer, self._view, self._start, self._end = buffer, view, 0, held

    def _take_apart(self) -> None:
        buffer, self._wanted = self._buffer, 0
        while self._start < self._end:
            line_end = buffer.find(b"\r\n", self._start, self._end)
            if line_end < 0:
                if self._end - self._start > _LINE_MOST:
                    raise ValueError("no end of a line")
                break
            if buffer[self._start] in (_M, _H):
                head = bytes(self._view[self._start : line_end]).split()
                if not 4 <= len(head) <= 6:
                    raise ValueError("no head of a message")
                end = line_end + 4 + int(head[-1])
                if end > self._end:
                    self._wanted = end - self._start
                    break
                self._arrived.append(self._message(head, line_end + 2, end - 2))
            else:
                end = line_end + 2
                self._arrived.append(bytes(self._view[self._start : end]))
            self._start = end
        if self._start == self._end:
            self._start = self._end = 0

    def _message(self, head: list[bytes], start: int, end: int) -> _Message:
        """Copy out a message: ``MSG subject sid [reply] bytes`` or ``HMSG subject sid [reply] header-bytes bytes``."""
        numbers = 1 if head[0] == b"MSG" else 2
        if head[0] not in (b"MSG", b"HMSG") or not 0 <= len(head) - 3 - numbers <= 1:
            raise ValueError("no message")
        body = start + int(head[-2]) if numbers == 2 else start
        reply = head[3] if len(head) == 4 + numbers else b""
        view = self._view
        return _Message(int(head[2]), head[1], reply, bytes(view[start:body]), bytes(view[body:end]))

    async def arrivals(self) -> Iterable[bytes | _Message]:
        """Return what has come, when something has: server lines as they are, and messages.

        Raises:
            ProtocolError: what came is not NATS.
            UnexpectedEOF: nothing more will come.
        """
        while not self._arrived:
            if isinstance(self._error, nats.errors.ProtocolError):
                raise self._error
            if self.at_eof():
                raise nats.errors.UnexpectedEOF
            self._news.clear()
            await self._news.wait()
        arrived, self._arrived = self._arrived, deque()
        return arrived

    async def readline(self) -> bytes:
        """Return the server's next line; empty when there will be none. For the opening words of a connection."""
        while not self._arrived:
            if self.at_eof() or self._error is not None:
                return b""
            self._news.clear()
            await self._news.wait()
        line = self._arrived.popleft()
        return line if isinstance(line, bytes) else b""

    def at_eof(self) -> bool:
        """Return whether the connection is gone."""
        return self._transport is None or self._lost.is_set()

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, payload: bytes) -> None:
        """Send *payload* soon."""
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """Send all of *payload* soon. A connection that is gone takes it and sends nothing, as asyncio's own do."""
        transport = self._open_transport()
        if not transport.is_closing():  # uvloop raises then, out of the client's own close
            transport.writelines(payload)

    async def drain(self) -> None:
        """Wait while more than is good waits to be sent.

        Raises:
            ConnectionResetError: the connection is gone.
        """
        if self._lost.is_set():
            raise ConnectionResetError("The connection to NATS was lost.")
        await self._writable.wait()

    # --- beginning and end -------------------------------------------------------------------------------------------

    async def connect(self, host: str, port: int, connect_timeout: float) -> None:
        """Open the socket, within *connect_timeout* seconds."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            await loop.create_connection(lambda: self, host, port)

    async def connect_tls(
        self, host: str, ssl_context: ssl.SSLContext, _buffer_size: int, connect_timeout: float
    ) -> None:
        """Go on encrypted, within *connect_timeout* seconds."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(self._open_transport(), self, ssl_context, server_hostname=host)
        if transport is not None:
            self.connection_made(transport)

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionResetError("There is no connection to NATS.")
        return self._transport

    def close(self) -> None:
        """Close the socket once all is sent."""
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed; what the other side does not take is given up after a while."""
        if self._transport is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self._lost.wait()
            except TimeoutError:
                self._transport.abort()

    def __bool__(self) -> bool:
        return self._transport is not None


class LaneClient(Client):
    """A NATS client that moves bytes with few copies. Otherwise nats-py's own."""

    _transport: Any
    _pending: list[bytes]
    _pongs: list[asyncio.Future[bool]]

    async def _connect_to_server(self, s: Srv) -> None:
        s.last_attempt = monotonic()
        wire = _Wire()
        await wire.connect(s.uri.hostname or "", s.uri.port or 0, self.options["connect_timeout"])
        self._transport = wire

    async def _read_loop(self) -> None:
        try:
            while not (self.is_closed or self.is_reconnecting):
                for one in await self._transport.arrivals():
                    if isinstance(one, _Message):
                        await self._process_msg(one.sid, one.subject, one.reply, one.body, one.headers)
                    else:
                        await self._heed(one)
        except Exception as error:  # noqa: BLE001 - whatever it is, a connection that is no longer read is none
            await self._error_cb(error)
            await self._process_op_err(error)

    async def _heed(self, line: bytes) -> None:
        """Do what the server's *line* asks for, as nats-py does."""
        word = line[:4].upper()
        if word == b"PING":
            await self._process_ping()
        elif word == b"PONG":
            await self._process_pong()
        elif word == b"-ERR":
            await self._process_err(line[4:].strip().decode(errors="replace").lower())
        elif word == b"INFO":
            await self._ps.parse(line)
        elif not line.startswith(b"+OK"):
            raise nats.errors.ProtocolError("nats: unknown protocol")

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Of a flush that was given up: nats-py would raise here, and lose a connection that works.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: Mapping[str, Any] | None
    ) -> None:
        block = _header_block(headers) if headers else b""
        size = payload_size + len(block)
        head = f"HPUB {subject} {reply} {len(block)} {size}\r\n" if block else f"PUB {subject} {reply} {size}\r\n"
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        if payload_size < _APART_BYTES:
            await self._send_command(b"".join((head.encode(), block, payload, b"\r\n")))
        else:
            # One after the other without waiting in between: nothing else may come between them.
            self._pending += (head.encode() + block, payload)
            self._pending_data_size += len(head) + size
            await self._send_command(b"\r\n")
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


def _header_block(headers: Mapping[str, Any]) -> bytes:
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        key = name.strip()
        if not _HEADER_KEY.fullmatch(key):
            raise nats.errors.BadHeaderError(key)
        lines.append(f"{key}: {value.strip().translate(_LINE_ENDS)}")
    return "\r\n".join([*lines, "", ""]).encode()
