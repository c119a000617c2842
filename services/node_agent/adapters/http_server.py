"""HTTP/1.1 on a connection that somebody else has accepted: the only module that knows h11."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import h11

from services.node_agent.ports import Connection
from shared import observe
from shared.errors import WherryError

_HEAD_BYTES_MAX = 32 * 1024
#: For the next bytes of a request, and for somebody who does not take the answer.
_SILENT_S = 120.0
#: What still comes of a request that was answered before it was whole; then whoever sends it reads the answer.
_LEFT_OVER_BYTES = 8 * 1024 * 1024
_log = observe.logger("api")


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `headers` are in lower case.

    `body` is to be read at most once; it raises `Gone`, which is not to be answered.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    @property
    def length(self) -> int | None:
        """Return the body's length, where it is given."""
        text = self.headers.get("content-length")
        return int(text) if text is not None else None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. A body that comes in pieces is closed when it is not needed any more."""

    status: int = 200
    body: bytes | AsyncGenerator[bytes, None] = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of_json(cls, value: Any, status: int = 200, media_type: str = "application/json") -> "Answer":
        """Return an answer with *value* as JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": media_type})


Handle = Callable[[Request], Awaitable[Answer]]


class Gone(Exception):
    """The other side has gone away, or says nothing any more."""


async def serve_http(connection: Connection, handle: Handle, *, silent_s: float = _SILENT_S) -> None:
    """Answer what comes on *connection*, request after request, until either side closes it."""
    talk = _Talk(connection, silent_s)
    try:
        while await talk.one(handle):
            pass
        await talk.take_left_over()
    except (Gone, OSError, TimeoutError, h11.ProtocolError) as error:
        _log.debug("connection_ended", error=repr(error))
    except WherryError as error:  # in the middle of an answer: that it is not whole, its end without an end shows
        _log.warning("answer_cut", error=error.message)
    finally:
        with suppress(OSError):
            await connection.close()


class _Talk:
    def __init__(self, connection: Connection, silent_s: float) -> None:
        self._connection = connection
        self._silent_s = silent_s
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)

    async def one(self, handle: Handle) -> bool:
        """Answer the next request; return whether there may be another."""
        try:
            event = await self._next()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return False
        if not isinstance(event, h11.Request):
            return False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        request = Request(event.method.decode("ascii"), event.target.decode("latin-1"), headers, self._body())
        answer = await handle(request)
        await self._give(answer, is_empty=request.method == "HEAD")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    async def take_left_over(self) -> None:
        """Let the rest of a request come: closed at once, the other side would lose the answer that it was sent."""
        if self._http.their_state is not h11.SEND_BODY:
            return
        left = _LEFT_OVER_BYTES
        while left > 0:
            async with asyncio.timeout(self._silent_s):
                if not (data := await self._connection.receive()):
                    return
            left -= len(data)

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                async with asyncio.timeout(self._silent_s):
                    self._http.receive_data(await self._connection.receive())
            except (OSError, TimeoutError) as error:
                raise Gone from error
        return event

    async def _body(self) -> AsyncGenerator[bytes, None]:
        try:
            while isinstance(event := await self._next(), h11.Data):
                yield bytes(event.data)
        except h11.RemoteProtocolError as error:
            raise WherryError("bad_request", f"The body cannot be read: {error}") from error

    async def _give(self, answer: Answer, *, is_empty: bool) -> None:
        headers = dict(answer.headers)
        if isinstance(answer.body, bytes):
            headers["Content-Length"] = str(len(answer.body))
        if self._http.their_state is h11.SEND_BODY:
            headers["Connection"] = "close"  # more of the request comes than anybody wanted
        await self._send(h11.Response(status_code=answer.status, headers=list(headers.items())))
        if isinstance(answer.body, bytes):
            if answer.body and not is_empty:
                await self._send(h11.Data(data=answer.body))
        else:
            async with aclosing(answer.body) as pieces:
                async for piece in pieces:
                    await self._send(h11.Data(data=piece))
        await self._send(h11.EndOfMessage())

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"title": "The request cannot be read", "detail": str(error)}).encode()
            status = error.error_status_hint or 400
            await self._give(Answer(status, body, {"Content-Type": "application/problem+json"}), is_empty=False)

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            async with asyncio.timeout(self._silent_s):
                await self._connection.send(data)


async def whole_body(request: Request, bytes_max: int) -> bytes:
    """Return the body.

    Raises:
        WherryError: ``too_large``.
    """
    body = bytearray()
    if (request.length or 0) <= bytes_max:
        async for piece in request.body:
            body += piece
            if len(body) > bytes_max:
                break
        else:
            return bytes(body)
    raise WherryError("too_large", f"The body has more than {bytes_max} bytes.")
