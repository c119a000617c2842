"""The misbehaving network itself, with a server that says everything back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from tests.chaos.proxy import Proxy

SOON_S, NEVER_S = 60.0, 0.3


@dataclass
class Echo:
    """The server's port and what it has heard."""

    port: int
    heard: bytearray


@contextlib.asynccontextmanager
async def echo() -> AsyncGenerator[Echo]:
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                heard.extend(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Echo(server.sockets[0].getsockname()[1], heard)


@dataclass
class Line:
    """A client's connection through the proxy."""

    network: Proxy
    server: Echo
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, count: int, timeout_s: float = SOON_S) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await self.reader.readexactly(count)


@pytest.fixture
async def line() -> AsyncGenerator[Line]:
    async with echo() as server, Proxy("127.0.0.1", server.port) as network:
        reader, writer = await asyncio.open_connection("127.0.0.1", network.port)
        yield Line(network, server, reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_bytes_pass_whole_and_in_order(line: Line) -> None:
    sent = bytes(range(256)) * 20_000
    hearing = asyncio.create_task(line.hears(len(sent)))
    line.writer.write(sent)
    await line.writer.drain()
    assert await hearing == sent


async def test_the_end_of_one_side_ends_the_other(line: Line) -> None:
    line.writer.write(b"x")
    await line.hears(1)
    line.writer.write_eof()
    async with asyncio.timeout(SOON_S):
        while line.network.connections:
            await asyncio.sleep(0.01)


async def test_a_cut_resets_what_there_is_and_what_comes_until_it_heals(line: Line) -> None:
    line.writer.write(b"x")
    await line.hears(1)
    line.network.cut()
    with pytest.raises(ConnectionResetError):
        await line.hears(1)

    reader, writer = await asyncio.open_connection("127.0.0.1", line.network.port)
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(SOON_S):
            await reader.readexactly(1)
    writer.close()

    line.network.heal()
    reader, writer = await asyncio.open_connection("127.0.0.1", line.network.port)
    writer.write(b"again")
    async with asyncio.timeout(SOON_S):
        assert await reader.readexactly(5) == b"again"
    writer.close()


async def test_a_black_hole_keeps_connections_and_gives_back_what_it_swallowed(line: Line) -> None:
    line.network.hold()
    line.writer.write(b"hello")
    with pytest.raises(TimeoutError):
        await line.hears(1, NEVER_S)
    assert not line.server.heard
    line.network.heal()
    assert await line.hears(5) == b"hello"


async def test_up_alone_is_held_while_down_goes_on(line: Line) -> None:
    line.network.delay(0.3)  # what is on its way down when up is held arrives
    line.writer.write(b"one")
    async with asyncio.timeout(SOON_S):
        while not line.server.heard:
            await asyncio.sleep(0.01)
    line.network.hold("up")
    line.writer.write(b"two")
    assert await line.hears(3) == b"one"
    await asyncio.sleep(2 * NEVER_S)
    assert bytes(line.server.heard) == b"one"
    line.network.heal()
    assert await line.hears(3) == b"two"


async def test_down_alone_is_held_while_up_goes_on(line: Line) -> None:
    line.network.hold("down")
    line.writer.write(b"one")
    async with asyncio.timeout(SOON_S):
        while bytes(line.server.heard) != b"one":
            await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await line.hears(1, NEVER_S)
    line.network.heal()
    assert await line.hears(3) == b"one"


async def test_a_delay_is_kept_in_each_direction_and_does_not_narrow_the_line(line: Line) -> None:
    line.network.delay(0.2)
    began = asyncio.get_running_loop().time()
    for part in range(100):
        line.writer.write(bytes([part]) * 1000)
        await asyncio.sleep(0.01)
    assert await line.hears(100_000) == b"".join(bytes([part]) * 1000 for part in range(100))
    assert 0.4 <= asyncio.get_running_loop().time() - began < 100 * 0.2, "one after the other"


async def test_flapping_cuts_again_and_again_and_ends_whole(line: Line) -> None:
    cuts = 0
    async with line.network.flapping(good_s=0.1, bad_s=0.05):
        while cuts < 3:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", line.network.port)
                try:
                    async with asyncio.timeout(SOON_S):
                        await reader.readexactly(1)
                finally:
                    cuts += 1
                    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", line.network.port)
    writer.write(b"whole")
    async with asyncio.timeout(SOON_S):
        assert await reader.readexactly(5) == b"whole"
    writer.close()
