"""The outermost layer of every request: its id, the security headers, the last resort for errors, log and numbers."""

import re
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.core import problems
from shared import observe
from shared.clock import monotonic
from shared.errors import WherryError
from shared.ids import new_id

REQUESTS = Counter("wherry_http_requests_total", "Answered HTTP requests.", ["method", "route", "status"])
SECONDS = Histogram(
    "wherry_http_request_seconds", "From the request's head to the end of its answer.", ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)  # fmt: skip

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
    """Plain ASGI middleware.

    Args:
        app: what is inside.
        access_log: whether every request is logged.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool) -> None:
        self._app = app
        self._access_log = access_log
        self._counters: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status = monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_added(message["headers"], request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request_failed", request_id=request_id, path=scope["path"], started=bool(status))
            if status:
                raise  # the server breaks the connection: nobody takes a part for the whole
            await _answer_500(error, request_id, send_with_headers)
        finally:
            self._count(scope, status or 499, monotonic() - started_at, request_id)

    def _count(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "none")
        key = (scope["method"], route, status)
        if key not in self._counters:
            self._counters[key] = REQUESTS.labels(*key).inc, SECONDS.labels(route).observe
        inc, observe_seconds = self._counters[key]
        inc()
        observe_seconds(seconds)
        if self._access_log:
            client = scope.get("client")
            _log.info(
                "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1),
                client=client[0] if client else None, request_id=request_id,
            )  # fmt: skip


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.match(value):
            return value.decode()
    return new_id("r")


def _added(present: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in present}
    missing = [(name, value) for name, value in _UNLESS_SET.items() if name not in names]
    return [*_ALWAYS, *missing, (b"x-request-id", request_id.encode())]


async def _answer_500(error: Exception, request_id: str, send: Send) -> None:
    document = problems.problem(WherryError("internal", str(error)), request_id)
    body = document.model_dump_json(exclude_none=True).encode()
    headers = [(b"content-type", problems.MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
