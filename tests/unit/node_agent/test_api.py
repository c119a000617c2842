"""Network ``api`` without an engine: routes and rights, HTTP on any connection, the relay's lines, the relay itself."""

import asyncio
import contextlib
import json
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.ports import free_port
from services.node_agent.adapters import relay_program
from services.node_agent.adapters.docker_relay import Frames, RelayConnection
from services.node_agent.adapters.http_server import Answer, Gone, Request, serve_http, whole_body
from services.node_agent.adapters.relay_program import PIECE, WINDOW, Lines, line
from services.node_agent.core import api, container, door
from services.node_agent.core.container import Place
from shared.errors import WherryError
from shared.fleet import Order
from shared.spec import JobSpec, Notify

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROGRAM = Path(relay_program.__file__).read_text()
ORDER = Order(
    job_id="j1", owner_id="u1", attempt=1, seq=1,
    spec=JobSpec(image="x", network="api", env={"A": "b"}, notify=(Notify(email="ann@example.com"),)),
)  # fmt: skip


# --- routes and rights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("GET", "/v1/job", api.Asked("job")),
        ("GET", "/v1/job/", api.Asked("job")),
        ("GET", "/v1/job/source", api.Asked("source")),
        ("GET", "/v1/job/inputs", api.Asked("inputs")),
        ("GET", "/v1/job/inputs/a", api.Asked("input", "a")),
        ("GET", "/v1/job/inputs/a/b/c%20%C3%BC", api.Asked("input", "a", "b/c ü")),
        ("PUT", "/v1/job/outputs/a/b", api.Asked("output", path="a/b")),
        ("POST", "/v1/job/outputs?unpack=true", api.Asked("unpack")),
        ("POST", "/v1/job/outputs?path=x/y&unpack=1", api.Asked("unpack", path="x/y")),
        ("POST", "/v1/job/progress", api.Asked("progress")),
        ("POST", "/v1/job/metrics", api.Asked("metrics")),
        ("POST", "/v1/job/remarks", api.Asked("remarks")),
    ],
)
def test_a_request_is_for_one_thing(method: str, target: str, found: api.Asked) -> None:
    assert api.asked(method, target) == found


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/", "not_found"), ("GET", "/v1/jobs", "not_found"), ("GET", "/v1/jobx", "not_found"),
        ("GET", "/v1/job/tokens", "not_found"), ("GET", "/v1/job/source/x", "not_found"),
        ("GET", "http://elsewhere/v1/job", "not_found"), ("POST", "/v1/job", "method_not_allowed"),
        ("GET", "/v1/job/outputs/a", "method_not_allowed"), ("POST", "/v1/job/outputs", "invalid"),
        ("PUT", "/v1/job/outputs/%2e%2e/a", "invalid"), ("PUT", "/v1/job/outputs/a/./b", "invalid"),
        ("PUT", "/v1/job/outputs/a//b", "invalid"), ("PUT", "/v1/job/outputs/a%00b", "invalid"),
        ("PUT", "/v1/job/outputs//etc/passwd", "invalid"), ("PUT", "/v1/job/outputs/%ff", "invalid"),
        ("PUT", f"/v1/job/outputs/{'x' * 256}", "invalid"), ("PUT", f"/v1/job/outputs/{'x/' * 600}y", "invalid"),
        ("POST", "/v1/job/outputs?unpack=true&path=../x", "invalid"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(method: str, target: str, code: str) -> None:
    with pytest.raises(WherryError) as caught:
        api.asked(method, target)
    assert caught.value.code == code


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=60), st.sampled_from(["PUT", "POST", "GET"]))
def test_no_path_of_the_outputs_leads_out_of_them(rest: str, method: str) -> None:
    try:
        path = api.asked(method, f"/v1/job/outputs/{rest}").path
    except WherryError:
        return
    assert not path.startswith("/")
    assert all(part not in ("", ".", "..") for part in path.split("/"))


def test_only_the_whole_token_opens() -> None:
    api.check_bearer("Bearer secret", "secret")
    api.check_bearer("bearer  secret ", "secret")
    for header in ("", "secret", "Bearer", "Bearer secre", "Bearer secrets", "Basic secret", "Bearer sécret"):
        with pytest.raises(WherryError) as caught:
            api.check_bearer(header, "secret")
        assert caught.value.code == "unauthenticated"


def test_a_program_is_told_of_its_job_and_not_of_who_else_is_told() -> None:
    told = api.described(ORDER, [])
    assert (told["id"], told["attempt"], told["spec"]["env"]) == ("j1", 1, {"A": "b"})
    assert "ann@example.com" not in json.dumps(told)


def test_what_is_said_is_checked_and_faults_are_named() -> None:
    assert api.progress_of(b'{"fraction": 0.5, "message": " half "}', NOW).message == "half"
    assert [one.name for one in api.metrics_of(b'{"values": {"a": 1, "b": 2}, "step": 3}', NOW)] == ["a", "b"]
    assert api.remarks_of(b"one\n two", "text/plain") == ("one two",)
    assert api.remarks_of(b'{"remarks": ["a", "b"]}', "application/json; charset=utf-8") == ("a", "b")
    with pytest.raises(WherryError) as caught:
        api.metrics_of(b'{"values": {"bad name": 1}}', NOW)
    assert caught.value.fields[0].field.startswith("values.bad name")
    for body in (b"[" * 100_000, b"\xff", b'{"fraction": NaN}', b'{"fraction": 0.1, "more": 1}', b"null"):
        with pytest.raises(WherryError):
            api.progress_of(body, NOW)


def test_a_container_with_a_door_has_all_other_walls() -> None:
    plain = container.job_container(Place("s", "n"), ORDER, "id", pids_limit=9)
    joined = door.joined(plain, "relay-id")
    assert joined["HostConfig"] == plain["HostConfig"] | {"NetworkMode": "container:relay-id"}
    assert set(joined) == set(plain)
    assert "WHERRY_API=http://127.0.0.1:8081" in joined["Env"]
    assert "A=b" in joined["Env"]
    relay = door.relay_container(Place("s", "n"), ORDER, "python", "program")
    assert relay["HostConfig"]["NetworkMode"] == "none"
    assert relay["HostConfig"]["CapDrop"] == ["ALL"]
    assert relay["HostConfig"]["ReadonlyRootfs"]
    assert "Env" not in relay


def test_a_variable_of_the_users_own_stays() -> None:
    named = ORDER.model_copy(update={"spec": ORDER.spec.model_copy(update={"env": {"NO_PROXY": "mine"}})})
    joined = door.joined(container.job_container(Place("s", "n"), named, "id", pids_limit=9), "r")
    assert [one for one in joined["Env"] if one.startswith("NO_PROXY=")] == ["NO_PROXY=mine"]


# --- HTTP ----------------------------------------------------------------------------------------------------------


class Wire:
    """A connection in memory."""

    def __init__(self, *pieces: bytes, is_open: bool = False) -> None:
        self.pieces = list(pieces)
        self.is_open = is_open
        self.sent = b""
        self.is_closed = False

    async def receive(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if self.is_open:
            await asyncio.Event().wait()
        return b""

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def close(self) -> None:
        self.is_closed = True


async def echo(request: Request) -> Answer:
    body = await whole_body(request, 100)
    return Answer.of_json([request.method, request.target, body.decode()])


async def test_requests_on_one_connection_are_answered_in_order_however_they_come() -> None:
    two = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    for wire in (Wire(two), Wire(*(two[at : at + 1] for at in range(len(two))))):
        await serve_http(wire, echo)
        assert wire.sent.count(b"200") == 2
        assert wire.sent.index(b'["GET", "/a", ""]') < wire.sent.index(b'["POST", "/b", "abc"]')
        assert wire.is_closed


async def test_a_chunked_body_and_one_that_waits_to_be_wanted_are_taken() -> None:
    chunked = Wire(b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    await serve_http(chunked, echo)
    assert b'"abc"' in chunked.sent
    waits = Wire(b"PUT /c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", b"z")
    await serve_http(waits, echo)
    assert waits.sent.startswith(b"HTTP/1.1 100")
    assert b'"z"' in waits.sent


async def refusing(request: Request) -> Answer:
    return Answer(413, b"no")


async def test_an_answer_before_the_whole_request_is_read_by_who_sends_it() -> None:
    wire = Wire(b"PUT /c HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n", b"x" * 100, b"x" * 100, b"x" * 100)
    await serve_http(wire, refusing)
    assert wire.sent.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in wire.sent.lower()
    assert (wire.pieces, wire.is_closed) == ([], True)


async def test_the_rest_of_an_answered_request_is_waited_for_as_long_as_any_request() -> None:
    wire = Wire(b"PUT /c HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n", b"x" * 100, is_open=True)
    await serve_http(wire, refusing, silent_s=0.01)
    assert wire.sent.startswith(b"HTTP/1.1 413")
    assert (wire.pieces, wire.is_closed) == ([], True)


@pytest.mark.parametrize(
    "sent", [b"no http at all\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_request_is_refused(sent: bytes) -> None:
    wire = Wire(sent)
    await serve_http(wire, echo)
    assert wire.sent.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert wire.is_closed


@given(st.binary(max_size=200))
def test_no_bytes_break_the_server(sent: bytes) -> None:
    wire = Wire(sent)
    asyncio.run(serve_http(wire, echo))
    assert wire.is_closed


async def test_somebody_who_says_nothing_is_left() -> None:
    ends: list[str] = []

    async def reads(request: Request) -> Answer:
        try:
            async for _ in request.body:
                pass
        except Gone:
            ends.append("gone")
            raise
        return Answer()

    wire = Wire(b"PUT /c HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", is_open=True)
    await serve_http(wire, reads, silent_s=0.01)
    assert (ends, wire.sent, wire.is_closed) == (["gone"], b"", True)


async def test_an_answer_that_breaks_has_no_end() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise WherryError("unavailable", "storage went away")

    async def breaks(request: Request) -> Answer:
        return Answer(200, pieces())

    wire = Wire(b"GET /c HTTP/1.1\r\nHost: x\r\n\r\n")
    await serve_http(wire, breaks)
    assert b"first" in wire.sent
    assert not wire.sent.endswith(b"0\r\n\r\n")
    assert wire.is_closed


# --- lines and frames ----------------------------------------------------------------------------------------------

LINES = st.lists(st.tuples(st.sampled_from(["data", "open", "end"]), st.integers(0, 999), st.binary(max_size=50)))


@given(LINES, st.lists(st.integers(1, 40)))
def test_lines_are_whole_however_they_are_cut(sent: list[tuple[str, int, bytes]], cuts: list[int]) -> None:
    lines, stream, heard = Lines(), b"".join(line(*one) for one in sent), []
    for cut in cuts:
        heard += lines.feed(stream[:cut])
        stream = stream[cut:]
    assert heard + lines.feed(stream) == sent


@given(st.integers(0, 3), st.binary(min_size=1, max_size=50), st.data())
def test_a_line_that_an_agent_did_not_end_is_passed_over(number: int, body: bytes, data: st.DataObject) -> None:
    whole = line("data", number, body)
    part = whole[: data.draw(st.integers(0, len(whole) - 2))]
    assert Lines().feed(part + b"\n" + line("hello", 0, b"next")) == [("hello", 0, b"next")]


def test_what_has_no_end_is_not_held() -> None:
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"x" * PIECE) == []
    assert len(lines._held) <= 3 * PIECE  # pyright: ignore[reportPrivateUsage]
    assert lines.feed(b"\n" + line("end", 1)) == [("end", 1, b"")]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30))), st.lists(st.integers(1, 20)))
def test_frames_of_an_engine_give_what_was_printed(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(struct.pack(">BxxxL", kind, len(body)) + body for kind, body in sent)
    frames, heard = Frames(), b""
    for cut in cuts:
        heard += frames.feed(stream[:cut])
        stream = stream[cut:]
    heard += frames.feed(stream)
    assert heard == b"".join(body for kind, body in sent if kind == 1)
    assert frames.said == b"".join(body for kind, body in sent if kind == 2)[-2000:]


async def test_no_more_is_sent_than_the_other_side_gives_room_for() -> None:
    said: list[tuple[str, bytes]] = []
    connection = RelayConnection(lambda word, body: said.append((word, body)))
    sending = asyncio.create_task(connection.send(bytes(WINDOW + 10)))
    await asyncio.sleep(0)
    assert sum(len(body) for _, body in said) == WINDOW
    assert not sending.done()
    connection.hear("more", b"10")
    await sending
    assert sum(len(body) for _, body in said) == WINDOW + 10
    waiting = asyncio.create_task(connection.send(b"x"))
    await asyncio.sleep(0)
    connection.hear("gone", b"")
    with pytest.raises(OSError, match="gone"):
        await waiting


# --- the relay itself, as a program --------------------------------------------------------------------------------


class Relay:
    """The program with us for an agent."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines = Lines()
        self.heard: list[tuple[str, int, bytes]] = []

    def say(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)

    async def hear(self, word: str) -> tuple[str, int, bytes]:
        """Return the next line with *word*; others before it are dropped."""
        async with asyncio.timeout(30):
            while True:
                while self.heard:
                    if (found := self.heard.pop(0))[0] == word:
                        return found
                assert self.process.stdout
                data = await self.process.stdout.read(65536)
                assert data, "the relay has ended"
                self.heard += self.lines.feed(data)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    port = free_port()
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-u", "-c", PROGRAM, str(port), **pipes)
    relay = Relay(process, port)
    try:
        relay.say(line("hello", 0, b"first"))
        assert await relay.hear("hello") == ("hello", 0, b"first")
        yield relay
    finally:
        assert process.stdin
        process.stdin.close()
        async with asyncio.timeout(30):
            assert await process.wait() == 0  # with its input, it ends


async def test_the_relay_carries_bytes_both_ways_and_tells_of_the_end(relay: Relay) -> None:
    reader, writer = await relay.connect()
    _, number, _ = await relay.hear("open")
    writer.write(b"question")
    assert await relay.hear("data") == ("data", number, b"question")
    relay.say(line("data", number, b"answer") + line("end", number))
    assert await reader.read() == b"answer"
    assert (await relay.hear("gone"))[1] == number
    writer.close()


async def test_the_relay_takes_no_more_than_is_read(relay: Relay) -> None:
    _, writer = await relay.connect()
    _, number, _ = await relay.hear("open")
    writer.write(bytes(4 * WINDOW))
    got = 0
    while got < WINDOW:
        got += len((await relay.hear("data"))[2])
    assert got == WINDOW
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await relay.hear("data")
    relay.say(line("more", number, b"5"))
    assert len((await relay.hear("data"))[2]) == 5
    writer.close()


async def test_another_agent_takes_over_and_old_connections_end(relay: Relay) -> None:
    reader, writer = await relay.connect()
    _, first, _ = await relay.hear("open")
    relay.say(line("data", first, b"half of an ans")[:-5])  # killed while it wrote
    relay.say(b"\n" + line("hello", 0, b"second"))
    assert await relay.hear("hello") == ("hello", 0, b"second")
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    reader, writer = await relay.connect()
    _, second, _ = await relay.hear("open")
    assert second != first
    relay.say(line("data", second, b"new") + line("end", second))
    assert await reader.read() == b"new"
    writer.close()


async def test_who_connects_while_no_agent_is_there_waits_for_the_next(relay: Relay) -> None:
    relay.say(line("bye"))
    relay.say(line("more", 99, b"1"))
    reader, writer = await relay.connect()
    writer.write(b"patient")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await relay.hear("open")
    relay.say(line("hello", 0, b"second"))
    _, number, _ = await relay.hear("open")
    assert await relay.hear("data") == ("data", number, b"patient")
    relay.say(line("data", number, b"thanks") + line("end", number))
    assert await reader.read() == b"thanks"
    writer.close()
