"""A lean HTTP/1.1 load generator: keep-alive connections that each send the next request when the answer is there.

It parses only the status and the length, so that the server under test, not this program, is what two cores are spent on.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What a run gave. Latencies in seconds, unsorted."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def rate(self, status: int) -> float:
        """Answers with *status* per second."""
        return self.statuses[status] / self.seconds

    def percentile(self, share: float) -> float:
        """The latency below which *share* (0 to 1) of the answers lie."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._buffer = bytearray()
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        if time.perf_counter() >= self._run.until:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._run.next_request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head_end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:head_end]).lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self._buffer) < head_end + 4 + length:
                return
            del self._buffer[: head_end + 4 + length]
            self._run.answered(int(head[9:12]), time.perf_counter() - self._sent_at)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.closed()


class _Run:
    def __init__(self, until: float, connections: int, next_request: Callable[[], bytes]) -> None:
        self.until = until
        self.next_request = next_request
        self.outcome = Outcome()
        self._open = connections
        self.done = asyncio.Event()

    def answered(self, status: int, latency: float) -> None:
        self.outcome.statuses[status] += 1
        self.outcome.latencies.append(latency)

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self.done.set()


async def load(host: str, port: int, next_request: Callable[[], bytes], *, connections: int, seconds: float) -> Outcome:
    """Send what *next_request* gives over *connections* keep-alive connections for *seconds*."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    run = _Run(started + seconds, connections, next_request)
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(run), host, port)
    async with asyncio.timeout(seconds + 60):
        await run.done.wait()
    run.outcome.seconds = time.perf_counter() - started
    return run.outcome


def post(path: str, body: bytes, token: str, headers: str = "") -> bytes:
    """Return a whole POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: wherry\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body
