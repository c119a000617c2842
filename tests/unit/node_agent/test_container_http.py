"""What a replica's program may answer its agent, however much it is."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from services.node_agent.adapters.container_http import ContainerHttp
from shared.errors import WherryError

PIECE = b"x" * 65536


class Endless:
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
            writer.transport.abort()  # closed in order, it would be there until what was written is read


@asynccontextmanager
async def replica(program: "Endless | Forgetful") -> AsyncGenerator[ContainerHttp]:
    server = await asyncio.start_server(program.answer, "127.0.0.1")
    http = ContainerHttp("127.0.0.1", server.sockets[0].getsockname()[1], 2)
    try:
        yield http
    finally:
        await http.close()
        server.close()


async def test_of_an_answer_that_says_a_program_is_well_nobody_reads_the_body():
    program = Endless()
    async with replica(program) as http:
        # Read to its end, it would take all memory until the time is up, and then be no sign of health.
        assert not await http.is_well("/healthz", 30)
    assert program.given < 64 * 1024 * 1024


async def test_room_for_an_answer_is_asked_for_while_it_comes():
    program = Endless()
    sizes: list[int] = []

    def judge(size: int) -> None:
        sizes.append(size)
        if size > 10 * len(PIECE):
            raise WherryError("replica_busy", "full")

    async with replica(program) as http:
        with pytest.raises(WherryError, match="full"):
            await http.ask("GET", "/", (), b"", 30, judge)
    assert sizes == sorted(sizes)
    assert sizes[-1] < 64 * 1024 * 1024


class Forgetful:
    """A program that answers one request on each connection, and closes it when the next one has come; it counts."""

    def __init__(self) -> None:
        self.got = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.got += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.got += 1
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


class Breaking(Forgetful):
    """A program that breaks off whatever it is asked."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.got += 1
        writer.close()


async def put(http: ContainerHttp, *, repeatable: bool) -> bytes:
    return (await http.ask("POST", "/", (), b"", 30, lambda _: None, repeatable=repeatable)).body


async def test_what_may_not_be_repeated_is_never_put_to_a_program_twice():
    program = Forgetful()
    async with replica(program) as http:
        assert [await put(http, repeatable=False) for _ in range(3)] == [b"ok"] * 3
        assert program.got == 3
        # On a connection that was kept, the second is lost, and asked again on a new one.
        assert [await put(http, repeatable=True) for _ in range(2)] == [b"ok"] * 2
        assert program.got == 6


@pytest.mark.parametrize(("repeatable", "times"), [(True, 2), (False, 1)])
async def test_what_breaks_off_is_lost(times: int, *, repeatable: bool):
    program = Breaking()
    async with replica(program) as http:
        with pytest.raises(WherryError) as lost:
            await put(http, repeatable=repeatable)
    assert (lost.value.code, program.got) == ("replica_lost", times)


class Dying(Breaking):
    """A program that ends when it is asked."""

    server: asyncio.Server

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server.close()
        await super().answer(reader, writer)


async def test_what_ends_a_program_is_lost_and_not_kept_from_it():
    program = Dying()
    program.server = await asyncio.start_server(program.answer, "127.0.0.1")
    http = ContainerHttp("127.0.0.1", program.server.sockets[0].getsockname()[1], 2)
    with pytest.raises(WherryError) as lost:
        await put(http, repeatable=True)
    assert (lost.value.code, program.got) == ("replica_lost", 1)
    await http.close()


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_program_that_takes_no_connection_has_not_got_the_request(*, repeatable: bool):
    server = await asyncio.start_server(Breaking().answer, "127.0.0.1")
    http = ContainerHttp("127.0.0.1", server.sockets[0].getsockname()[1], 2)
    server.close()
    await server.wait_closed()
    with pytest.raises(WherryError) as gone:
        await put(http, repeatable=repeatable)
    assert gone.value.code == "replica_gone"
    await http.close()


async def test_a_replica_that_ended_a_moment_ago_is_gone_and_no_fault_of_the_agents():
    program = Forgetful()
    async with replica(program) as http:
        await http.close()
        with pytest.raises(WherryError) as gone:
            await put(http, repeatable=True)
    assert (gone.value.code, program.got) == ("replica_gone", 0)
