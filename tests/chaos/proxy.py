"""A network that misbehaves on demand: a TCP proxy that cuts, swallows for a while, delays and flaps.

    async with Proxy("127.0.0.1", 4222) as network:
        agent(f"nats://127.0.0.1:{network.port}")
        network.hold("up")      # the agent hears and cannot speak
        network.heal()

What is held is not lost: it arrives, in order, after `heal`, as TCP's own repeats would make it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from typing import Literal, Self

Direction = Literal["up", "down"]  # up: from the client to the server
_CHUNK_BYTES = 64 * 1024
_CHUNKS_ON_THE_WAY = 256
_RESET = struct.pack("ii", 1, 0)  # linger for no time: close() sends RST


class Proxy:
    """Takes connections on a port of the loopback and hands them on to one server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._delay_s = 0.0
        self._is_cut = False
        self.heal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        self.cut()
        await asyncio.gather(*(link.ended.wait() for link in tuple(self._links)))
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._links)

    def heal(self) -> None:
        """Pass everything on at once, and what was held before it."""
        self._is_cut, self._delay_s = False, 0.0
        for gate in self._open.values():
            gate.set()

    def cut(self) -> None:
        """Reset every connection, and each new one until `heal`."""
        self._is_cut = True
        for link in tuple(self._links):
            link.reset()

    def hold(self, *directions: Direction) -> None:
        """Let nothing through in these directions (none given: both) until `heal`; connections stay."""
        for direction in directions or ("up", "down"):
            self._open[direction].clear()

    def delay(self, seconds: float) -> None:
        """From now on every byte takes so long, in each direction."""
        self._delay_s = seconds

    @contextlib.asynccontextmanager
    async def flapping(self, good_s: float, bad_s: float) -> AsyncGenerator[None]:
        """Inside the block the network is cut for *bad_s* and whole for *good_s* seconds, in turns; whole after it."""
        task = asyncio.create_task(self._flap(good_s, bad_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.heal()

    async def _flap(self, good_s: float, bad_s: float) -> None:
        while True:
            self.cut()
            await asyncio.sleep(bad_s)
            self.heal()
            await asyncio.sleep(good_s)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._is_cut:
                return
            with contextlib.suppress(OSError):  # includes a reset by either side
                await self._connect(link, reader, writer)
        finally:
            link.reset()
            self._links.discard(link)
            link.ended.set()

    async def _connect(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection(*self._target)
        link.writers.append(to_server)
        ways = [
            asyncio.create_task(self._carry(reader, to_server, self._open["up"])),
            asyncio.create_task(self._carry(there, writer, self._open["down"])),
        ]
        try:
            await asyncio.wait({*ways, link.cutting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Bring bytes from one to the other until there are no more."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)
        arriving = asyncio.create_task(_arrive(on_the_way, sink, gate))
        try:
            while not arriving.done():
                chunk = await source.read(_CHUNK_BYTES)
                await on_the_way.put((asyncio.get_running_loop().time() + self._delay_s, chunk))
                if not chunk:
                    await arriving
                    return
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)


class _Link:
    """One connection of a client with its other half, once there is one."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.ended = asyncio.Event()
        self.cutting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def reset(self) -> None:
        """End both halves as a dead network's first answer would."""
        if not self.cutting.done():
            self.cutting.set_result(None)
        for writer in self.writers:
            held: socket.socket | None = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if held:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


async def _arrive(
    on_the_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    while True:
        due, chunk = await on_the_way.get()
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        await gate.wait()
        if not chunk:
            return
        sink.write(chunk)
        await sink.drain()
