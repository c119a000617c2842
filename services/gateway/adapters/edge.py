"""The outermost layer of every request: its id, the security headers, the last resort for errors, log and numbers."""

import re
from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import Counter, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.adapters.access_log import AccessLog
from services.gateway.core import problems
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import WherryError
from shared.ids import new_id

REQUESTS = Counter("wherry_http_requests_total", "Answered HTTP requests.", ["method", "route", "status"])
SECONDS = Histogram(
    "wherry_http_request_seconds", "From the request's head to the end of its answer.", ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)  # fmt: skip

Endpoint = Callable[[Request], Awaitable[Response]]

_REQUEST_ID = re.compile(rb"^[A-Za-z0-9_-]{1,64}$")
#: Nothing here is a page: no script, no frame, no guessing of types, no copies in caches.
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_UNLESS_SET = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
_log = observe.logger("gateway")


class Edge:
    """Plain ASGI around the application.

    Args:
        app: what is inside.
        lanes: endpoints by method and path that are served without it. The framework spends as much time on a request
            as the busiest route itself (measured).
        access_log: gets a line for every request.
    """

    def __init__(self, app: ASGIApp, lanes: Mapping[tuple[str, str], Endpoint], access_log: AccessLog | None) -> None:
        self._app = app
        self._lanes = lanes
        self._access_log = access_log
        self._counters: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status, complete = monotonic(), 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_added(message["headers"], request_id)]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            lane = self._lanes.get((scope["method"], scope["path"]))
            if lane is None:
                await self._app(scope, receive, send_with_headers)
            else:
                await _serve(lane, scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request_failed", request_id=request_id, path=scope["path"], started=bool(status))
            if complete:
                return  # the framework has answered
            if status:
                raise  # the server breaks the connection: nobody takes a part for the whole
            answer = problem_answer(WherryError("internal", str(error)), request_id)
            await answer(scope, receive, send_with_headers)
        finally:
            self._count(scope, status or 499, monotonic() - started_at, request_id)

    def _count(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        lane = (scope["method"], scope["path"])
        route = lane[1] if lane in self._lanes else getattr(scope.get("route"), "path", "none")
        key = (scope["method"], route, status)
        if key not in self._counters:
            self._counters[key] = REQUESTS.labels(*key).inc, SECONDS.labels(route).observe
        inc, observe_seconds = self._counters[key]
        inc()
        observe_seconds(seconds)
        if self._access_log is not None:
            client = scope.get("client")
            self._access_log.add(
                utc_now(), seconds, lane[0], lane[1], status, client[0] if client else None, request_id
            )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.match(value):
            return value.decode()
    return new_id("r")


def _added(present: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in present}
    missing = [(name, value) for name, value in _UNLESS_SET.items() if name not in names]
    return [*_ALWAYS, *missing, (b"x-request-id", request_id.encode())]


def problem_answer(error: WherryError, request_id: str | None, headers: Mapping[str, str] | None = None) -> Response:
    """Return *error* as a problem document."""
    document = problems.problem(error, request_id)
    if document.status == 500:
        _log.error("request_refused", code=error.code, error=error.message, request_id=request_id)
    sent = dict(headers or {})
    if (seconds := problems.retry_after_s(error)) is not None:
        sent["Retry-After"] = str(seconds)
    if document.status == 401:
        sent.setdefault("WWW-Authenticate", "Bearer")
    body = document.model_dump_json(exclude_none=True)
    return Response(body, document.status, sent, problems.MEDIA_TYPE)


async def _serve(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        answer = await endpoint(Request(scope, receive))
    except WherryError as error:
        answer = problem_answer(error, scope["state"]["request_id"])
    except ClientDisconnect:
        return
    await answer(scope, receive, send)
