"""What a replica's program may answer its agent, however much it is."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from services.node_agent.adapters.container_http import ContainerHttp
from shared.errors import WherryError

PIECE = b"x" * 65536


class Program:
    """A program whose answers never end, and how much of one was taken from it."""

    def __init__(self) -> None:
        self.given = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                writer.write(PIECE)
                await writer.drain()
                self.given += len(PIECE)
        except OSError:
            pass  # nobody wants more
        finally:
            writer.close()


@asynccontextmanager
async def asked(program: Program) -> AsyncGenerator[ContainerHttp]:
    server = await asyncio.start_server(program.answer, "127.0.0.1")
    http = ContainerHttp("127.0.0.1", server.sockets[0].getsockname()[1], 2)
    try:
        yield http
    finally:
        await http.close()
        server.close()


async def test_of_an_answer_that_says_a_program_is_well_nobody_reads_the_body():
    program = Program()
    async with asked(program) as http:
        # Read to its end, it would take all memory until the time is up, and then be no sign of health.
        assert not await http.is_well("/healthz", 30)
    assert program.given < 64 * 1024 * 1024


async def test_room_for_an_answer_is_asked_for_while_it_comes():
    program = Program()
    sizes: list[int] = []

    def judge(size: int) -> None:
        sizes.append(size)
        if size > 10 * len(PIECE):
            raise WherryError("replica_busy", "full")

    async with asked(program) as http:
        with pytest.raises(WherryError, match="full"):
            await http.ask("GET", "/", (), b"", 30, judge)
    assert sizes == sorted(sizes)
    assert sizes[-1] < 64 * 1024 * 1024
