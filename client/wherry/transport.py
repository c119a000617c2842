"""What both drivers need of httpx: building its requests, its errors as ours, its streams as ours."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx

from client.wherry.effects import Request
from client.wherry.errors import Unreachable, WherryError

VERSION_PATH = "/v1"
USER_AGENT = "wherry-client"
DEFAULT_URL = "http://127.0.0.1:8080"


def base_url(url: str) -> str:
    """Return *url* without a trailing slash.

    Raises:
        WherryError: it is no http or https address (code ``bad_url``).

    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise WherryError("bad_url", f"{url!r} is no address of a server: give one such as {DEFAULT_URL}")
    return url.rstrip("/")


def arguments(url: str, token: str | None, request: Request, content: Any, timeout_s: float) -> dict[str, Any]:
    """Return what httpx's `build_request` takes for *request*; `content` is the body's iterator, if it has one."""
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **request.headers}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if request.body:
        headers["Content-Type"] = request.body.media_type
        if request.body.length is not None:
            headers["Content-Length"] = str(request.body.length)
    elif request.json is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(request.json).encode()
    return {
        "method": request.method,
        "url": url + VERSION_PATH + request.path,
        "params": dict(request.query) or None,
        "headers": headers,
        "content": content,
        "timeout": httpx.Timeout(timeout_s, read=request.read_timeout_s or timeout_s),
    }


def unreachable(url: str, error: httpx.HTTPError) -> WherryError:
    """Return the error that *error* is for our users."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(f"cannot reach {url}: is the server running, and is the address right?")
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{url} did not answer in time")
    return Unreachable(f"the connection to {url} broke ({type(error).__name__})")


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* by lower-case name."""
    return {name.lower(): value for name, value in headers.items()}


def is_error(status: int) -> bool:
    """Return whether a status is a refusal or a failure."""
    return status >= HTTPStatus.BAD_REQUEST
