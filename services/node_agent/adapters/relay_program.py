"""Brings the connections that a job's program makes to its node's agent, and back: one file, standard library only.

    python3 -I -S -u -c "$(cat relay_program.py)" PORT

It runs in a container whose only network is the loopback that it shares with the job. It listens on PORT there, and
all that goes to the agent and comes from it are lines on its standard output and input, to which the agent is attached:

    <word> <connection> <length> <body as base64>

    hello  both      a session begins: whatever was open before it is closed, and forgotten
    bye    to relay  the agent goes; who connects now waits for the next one
    open   to agent  somebody has connected
    data   both      bytes of a connection
    more   both      so many bytes more may be sent (of each connection, at first, WINDOW)
    end    both      nothing more comes from this side; from the agent: close it
    gone   to agent  it is closed

A line that was cut off by the end of an agent is not what it says it is (its length), and is passed over. The agent
imports the lines from here, so that both sides speak of one thing.
"""

import asyncio
import base64
import binascii
import sys

#: Bytes of one line's body, and bytes of a connection that are under way in one direction.
PIECE, WINDOW = 48 * 1024, 256 * 1024
#: Connections that are open at a time; others wait to be accepted.
CONNECTIONS_MAX = 64
_LINE_MAX = 2 * PIECE


def line(word: str, connection: int = 0, body: bytes = b"") -> bytes:
    """Return one line."""
    return b"%s %d %d %s\n" % (word.encode(), connection, len(body), base64.b64encode(body))


class Lines:
    """Cuts bytes as they arrive into lines."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> "list[tuple[str, int, bytes]]":
        """Return word, connection and body of each line that is whole with *data*."""
        self._held += data
        if b"\n" not in data:
            if len(self._held) > _LINE_MAX:
                self._held.clear()  # it is none of ours
            return []
        *whole, rest = self._held.split(b"\n")
        self._held = rest
        return [one for one in (_read(bytes(text)) for text in whole) if one is not None]


def _read(text: bytes) -> "tuple[str, int, bytes] | None":
    try:
        word, connection, length, packed = text.split(b" ")
        body = base64.b64decode(packed, validate=True)
        return (word.decode(), int(connection), body) if len(body) == int(length) else None
    except (ValueError, binascii.Error):
        return None


class _Way:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: close it. Bounded by WINDOW
        self.credit, self.changed = WINDOW, asyncio.Event()


class Relay:
    """All connections, and the lines to the agent."""

    def __init__(self, out: asyncio.StreamWriter) -> None:
        self._out = out
        self._drain = asyncio.Lock()
        self._is_heard = asyncio.Event()
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)
        self._ways: dict[int, _Way] = {}
        self._count = 0

    async def hear(self, word: str, connection: int, body: bytes) -> None:
        """Take a line of the agent."""
        way = self._ways.get(connection)
        if word == "hello":
            for number in list(self._ways):
                old = self._ways.pop(number)
                old.writer.transport.abort()
                old.inbox.put_nowait(None)
            await self._say("hello", 0, body)
            self._is_heard.set()
        elif word == "bye":
            self._is_heard.clear()
        elif way is None:
            return
        elif word == "data":
            way.inbox.put_nowait(body)
        elif word == "end":
            way.inbox.put_nowait(None)
        elif word == "more":
            way.credit += int(body)
            way.changed.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until the agent, or who has made it, closes it."""
        async with self._room:
            await self._is_heard.wait()
            self._count += 1
            number, way = self._count, _Way(reader, writer)
            self._ways[number] = way
            up = asyncio.ensure_future(self._up(number, way))
            try:
                await self._say("open", number)
                await self._down(number, way)
            except OSError:
                pass  # who has made it is gone
            finally:
                up.cancel()
                if self._ways.pop(number, None) is not None:
                    await self._say("gone", number)
                writer.close()

    async def _up(self, number: int, way: _Way) -> None:
        try:
            while True:
                while way.credit <= 0:
                    way.changed.clear()
                    await way.changed.wait()
                data = await way.reader.read(min(PIECE, way.credit))
                if not data:
                    break
                way.credit -= len(data)
                await self._say("data", number, data)
            await self._say("end", number)
        except OSError:
            way.inbox.put_nowait(None)

    async def _down(self, number: int, way: _Way) -> None:
        while True:
            body = await way.inbox.get()
            if body is None or way.writer.transport.is_closing():
                return
            way.writer.write(body)
            await way.writer.drain()
            await self._say("more", number, b"%d" % len(body))

    async def _say(self, word: str, connection: int, body: bytes = b"") -> None:
        self._out.write(line(word, connection, body))
        async with self._drain:
            await self._out.drain()


async def main(port: int) -> None:
    """Relay until the container is removed."""
    loop = asyncio.get_running_loop()
    heard = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(heard), sys.stdin.buffer)
    # A protocol that has the flow control which a writer wants.
    pipe, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), sys.stdout.buffer
    )
    relay = Relay(asyncio.StreamWriter(pipe, protocol, None, loop))
    server = await asyncio.start_server(relay.serve, "127.0.0.1", port, backlog=CONNECTIONS_MAX)
    async with server:
        lines = Lines()
        while True:
            data = await heard.read(_LINE_MAX)
            if not data:
                return
            for word, connection, body in lines.feed(data):
                await relay.hear(word, connection, body)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
