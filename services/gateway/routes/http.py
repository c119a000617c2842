"""What all routes share: who is calling, what was sent, and how answers and errors are put."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from services.gateway.core import problems, sse
from services.gateway.shell.gateway import Gateway
from shared import observe
from shared.errors import FieldProblem, Unavailable, WherryError
from shared.requests.accounts import Principal

M = TypeVar("M", bound=BaseModel)

JSON = "application/json"
#: Seconds that a reader may leave one piece of an answer lying.
_SEND_TIMEOUT_S = 60.0
_log = observe.logger("gateway")


def gateway_of(request: Request) -> Gateway:
    """Return the running gateway.

    Raises:
        Unavailable: it has not reached the bus yet.
    """
    gateway: Gateway | None = request.app.state.gateway
    if gateway is None:
        raise Unavailable("The gateway has not reached NATS yet.")
    return gateway


def bearer(request: Request) -> str:
    """Return the token that came with the request.

    Raises:
        WherryError: ``unauthenticated``.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise WherryError("unauthenticated", "Send `Authorization: Bearer <token>`; POST /v1/login gives one.")
    return token.strip()


async def caller(request: Request) -> Principal:
    """Return who is calling.

    Raises:
        WherryError: ``unauthenticated``, ``unavailable``.
    """
    return await gateway_of(request).tokens.principal(bearer(request))


Caller = Annotated[Principal, Depends(caller)]
Door = Annotated[Gateway, Depends(gateway_of)]
Key = Annotated[str | None, Header(description="Makes the request safe to repeat.")]


async def body_of(request: Request, bytes_max: int) -> bytes:
    """Return the whole body.

    Raises:
        WherryError: ``too_large`` above *bytes_max*, before it was read where its length was declared; ``too_slow``.
    """
    declared = request.headers.get("content-length", "")
    too_large = WherryError("too_large", f"This body may have {bytes_max} bytes.")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise too_large
    held = bytearray()
    async with aclosing(uploaded(request)) as chunks:
        async for chunk in chunks:
            held += chunk
            if len(held) > bytes_max:
                raise too_large
    return bytes(held)


async def uploaded(request: Request) -> AsyncGenerator[bytes, None]:
    """Give the body as it arrives. Who stops sending does not keep a place for ever.

    Raises:
        WherryError: ``too_slow``.
        ClientDisconnect: the rest will not come.
    """
    idle_s = gateway_of(request).settings.upload_idle_s
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise WherryError("too_slow", f"Nothing came for {idle_s:g} s.") from None
        if chunk is None:
            return
        yield chunk


async def json_of(request: Request, model: type[M]) -> M:
    """Return the JSON body as a *model*.

    Raises:
        WherryError: ``too_large``, ``invalid_json``, ``invalid``.
    """
    return parsed(await body_of(request, gateway_of(request).settings.form_bytes_max), model)


async def json_or_default(request: Request, model: type[M]) -> M:
    """Return the JSON body as a *model*; without a body, the model's defaults.

    Raises:
        WherryError: as `json_of`.
    """
    body = await body_of(request, gateway_of(request).settings.form_bytes_max)
    return parsed(body, model) if body.strip() else model()


def parsed(body: bytes, model: type[M]) -> M:
    """Return JSON as a *model*.

    Raises:
        WherryError: ``invalid_json``, ``invalid``.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise problems.from_validation(error, model) from None


def answer(view: BaseModel, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return *view* as JSON."""
    return Response(view.model_dump_json(), status, dict(headers or {}), JSON)


class Stream(Response):
    """An answer in pieces. Its generator and its place end with it, and a reader that stands still is dropped.

    An error before the first piece is answered as a problem document; one in the middle breaks the connection, so
    that nobody takes a part for the whole.

    Args:
        content: the pieces.
        held: what is given back at the end.
    """

    def __init__(
        self, content: AsyncGenerator[bytes, None], held: AsyncExitStack | None = None, status_code: int = 200,
        headers: Mapping[str, str] | None = None, media_type: str | None = None,
    ) -> None:  # fmt: skip
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self._content = content
        self._held = held or AsyncExitStack()
        self._held.push_async_callback(content.aclose)
        self.init_headers(headers)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send it until its end, or until nobody is there any more."""
        async with self._held:
            sending = asyncio.create_task(self._send(send))
            gone = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                sending.cancel()
                await asyncio.wait({sending, gone})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        piece = await anext(self._content, None)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while piece is not None:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await anext(self._content, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def event_stream(gateway: Gateway, frames: AsyncGenerator[bytes, None]) -> Stream:
    """Return *frames* as server-sent events. An error in the middle is told as a last event.

    Raises:
        WherryError: ``busy``: too many streams are open.
    """
    held = AsyncExitStack()
    await held.enter_async_context(gateway.streams.taken())
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(_told(frames), held, headers=headers, media_type=sse.MEDIA_TYPE)


async def _told(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield sse.HEARTBEAT  # the answer's head goes out at once
        async for frame in frames:
            yield frame
    except WherryError as error:
        _log.info("stream_ended", code=error.code, reason=error.message)
        yield sse.frame(problems.problem(error).model_dump_json(exclude_none=True), event="error")
    finally:
        await frames.aclose()


def links(request: Request) -> Callable[[str], str]:
    """Return what makes a path the URL under which the caller reaches this gateway."""
    base = str(request.base_url).rstrip("/")
    return lambda path: base + path


def chosen(given: Iterable[str] | None, states: type[StrEnum]) -> tuple[str, ...]:
    """Return the *states* that a query names, repeated or with commas.

    Raises:
        WherryError: ``invalid``: one is none.
    """
    known = {state.value for state in states}
    named = [text.strip() for item in given or () for text in item.split(",") if text.strip()]
    if unknown := [text for text in named if text not in known]:
        message = f"{unknown[0]!r} is no state; there are {', '.join(states)}"
        raise problems.invalid([FieldProblem(field="state", message=message)])
    return tuple(named)


def wants_events(request: Request, *, follow: bool) -> bool:
    """Return whether the caller asks for server-sent events."""
    return follow or sse.MEDIA_TYPE in request.headers.get("accept", "")


def wants_json(request: Request) -> bool:
    """Return whether the caller asks for JSON where something else is usual."""
    return JSON in request.headers.get("accept", "")


def json_body(model: type[BaseModel], **others: Any) -> dict[str, Any]:
    """Return the part of an OpenAPI operation that says what is sent; `app` puts the schema where it belongs."""
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content | others}}


def optional_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the same for a body that may be left out."""
    body = json_body(model)
    return {"requestBody": body["requestBody"] | {"required": False}}
