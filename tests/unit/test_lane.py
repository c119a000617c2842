"""What comes on a connection to NATS is taken apart the same, however it is cut on its way."""

import asyncio
import random

import nats.errors
import pytest

from shared.lane import _header_block, _Message, _Wire

BIG = bytes(range(256)) * 2400  # 600 KiB, with line ends in it
STREAM = b"".join([
    b'INFO {"max_payload":1048576}\r\n',
    b"MSG some.subject 7 5\r\nhe\r\nl\r\n",
    b"PING\r\n",
    b"MSG some.subject 8 _INBOX.x.1 0\r\n\r\n",
    b"HMSG big 9 _INBOX.x.2 12 %d\r\nNATS/1.0\r\n\r\n%b\r\n" % (12 + len(BIG), BIG),
    b"HMSG none 10 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
    b"PONG\r\n",
])  # fmt: skip
ARRIVED = [
    b'INFO {"max_payload":1048576}\r\n',
    _Message(7, b"some.subject", b"", b"", b"he\r\nl"),
    b"PING\r\n",
    _Message(8, b"some.subject", b"_INBOX.x.1", b"", b""),
    _Message(9, b"big", b"_INBOX.x.2", b"NATS/1.0\r\n\r\n", BIG),
    _Message(10, b"none", b"", b"NATS/1.0 503\r\n\r\n", b""),
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
    b"PONG\r\n",
]


class Socket(asyncio.Transport):
    """As much of an open socket as reading needs."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def connected() -> _Wire:
    wire = _Wire()
    wire.connection_made(Socket())
    return wire


def come(wire: _Wire, data: bytes, most: int) -> None:
    """Let *data* arrive as a socket gives it: as much as there is room for, and at most *most* bytes at a time."""
    while data:
        room = wire.get_buffer(-1)
        took = min(len(room), len(data), most)
        assert took, "the buffer has no room"
        room[:took] = data[:took]
        wire.buffer_updated(took)
        data = data[took:]


@pytest.mark.parametrize("most", [1, 7, 1000, 65536, 10**9])
async def test_it_is_taken_apart_however_it_is_cut(most):
    # Byte for byte the large one takes long and shows nothing new.
    stream, arrived = (STREAM, ARRIVED) if most > 1 else (STREAM.split(b"HMSG")[0], ARRIVED[:4])
    wire = connected()
    come(wire, stream, most)
    assert list(await wire.arrivals()) == arrived


async def test_a_long_stream_cut_at_random_arrives_whole_and_in_order():
    chance, wire, found = random.Random(1), connected(), []
    rest = STREAM * 20
    while rest:
        most = chance.choice([3, 100, 5000, 70_000, 400_000])
        come(wire, rest[: 3 * most], most)
        rest = rest[3 * most :]
        if chance.random() < 0.5 and wire._arrived:
            found += await wire.arrivals()
    found += await wire.arrivals()
    assert found == ARRIVED * 20


@pytest.mark.parametrize(
    "line", [b"MSG a 1\r\n", b"MSG a b 3\r\nabc\r\n", b"MSG a 1 r x\r\n", b"MXG a 1 0\r\n\r\n", b"x" * 100_000]
)
async def test_what_is_not_nats_is_an_error(line):
    wire = connected()
    come(wire, line, 10**9)
    with pytest.raises(nats.errors.ProtocolError):
        await wire.arrivals()


async def test_what_came_before_the_end_is_still_given():
    wire = connected()
    come(wire, b"-ERR 'Authorization Violation'\r\n", 10**9)
    wire.connection_lost(None)
    assert await wire.readline() == b"-ERR 'Authorization Violation'\r\n"
    assert await wire.readline() == b""
    with pytest.raises(nats.errors.UnexpectedEOF):
        await wire.arrivals()


async def test_a_writer_waits_while_the_socket_takes_no_more():
    wire = connected()
    wire.pause_writing()
    waiting = asyncio.create_task(wire.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.resume_writing()
    await waiting
    wire.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await wire.drain()


async def test_what_is_written_to_a_connection_that_is_closed_goes_nowhere_and_harms_nobody():
    class Closed(Socket):
        """As uvloop's own."""

        def is_closing(self) -> bool:
            return True

        def writelines(self, list_of_data: object) -> None:
            raise RuntimeError(f"{list_of_data}: the handler is closed")

        write = writelines

    wire = _Wire()
    wire.connection_made(Closed())
    wire.write(b"PONG\r\n")
    wire.writelines([b"PUB x 0\r\n", b"\r\n"])


def test_no_header_brings_a_line_of_its_own():
    assert _header_block({"A": "1\r\nB: 2"}) == b"NATS/1.0\r\nA: 1  B: 2\r\n\r\n"
    with pytest.raises(nats.errors.BadHeaderError):
        _header_block({"A\r\nB": "1"})
