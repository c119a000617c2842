"""HTTP to the program of a replica: the agent's way into its own containers, and no other."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx

from services.node_agent.core.serving import passed_on
from shared.errors import WherryError

_CONNECT_S = 5.0
#: Seconds after which a connection that nobody uses is closed.
_KEEP_S = 30.0
#: Of an answer that says that a program is well: what is in it is nobody's.
_HEALTH_BYTES_MAX = 64 * 1024
_GONE, _LOST = "replica_gone", "replica_lost"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a program has answered. The body is as it came, also where it is compressed."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ContainerHttp:
    """A client of one program, with connections that are kept.

    Args:
        host: its address.
        port: where it listens.
        connections: at once.
    """

    def __init__(self, host: str, port: int, connections: int) -> None:
        self.host, self.port = host, port
        self._client = self._new_client(connections)

    async def ask(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        timeout_s: float,
        judge: Callable[[int], None],
        *,
        repeatable: bool = True,
    ) -> Answered:
        """Send a request and return the answer.

        A connection that was kept may be closed by the program at this very moment: then it is asked once more. What
        is not *repeatable* has a connection of its own, on which that cannot be.

        Args:
            method: as the others, of the request.
            path: with its query.
            headers: those about the connection are left out.
            body: whole.
            timeout_s: for all of it.
            judge: told how many bytes of the answer there are, as they come; what it raises ends the request.
            repeatable: it does no harm to ask it twice.

        Raises:
            WherryError: ``replica_gone``: it has not got the request; ``replica_lost``: it does not answer, or broke
                off; ``replica_timeout``; what *judge* raises.
        """
        sent = [_encoded(name, value) for name, value in passed_on(headers)]
        may_have_it = False
        try:
            async with asyncio.timeout(timeout_s):
                if not repeatable:
                    async with self._new_client(1) as client:
                        return await _asked(client, method, path, sent, body, judge)
                try:
                    return await _asked(self._client, method, path, sent, body, judge)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    may_have_it = True
                    return await _asked(self._client, method, path, sent, body, judge)
        except TimeoutError:
            raise WherryError("replica_timeout", f"No answer within {timeout_s:g} s.") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            code = _LOST if may_have_it else _GONE
            raise WherryError(code, f"The replica takes no connection: {error!r}", retryable=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WherryError(_LOST, f"The replica broke off: {error!r}", retryable=True) from error

    async def is_well(self, path: str | None, timeout_s: float) -> str:
        """Return why the program is not well, or nothing: *path* answers 2xx, or (None) the port takes connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await (self._connects() if path is None else self._answers(path))
        return f"no answer within {timeout_s:g} s"

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _new_client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEP_S
        )
        return httpx.AsyncClient(
            base_url=f"http://{self.host}:{self.port}", limits=limits, trust_env=False, follow_redirects=False,
            verify=False,  # noqa: S501 - http alone; else each client reads all certificates of this machine
        )  # fmt: skip

    async def _answers(self, path: str) -> str:
        try:
            timeout = httpx.Timeout(None, connect=_CONNECT_S)
            async with self._client.stream("GET", path, timeout=timeout) as answer:
                size = 0
                async for piece in answer.aiter_raw():  # to its end, so that the connection is kept; but not for ever
                    size += len(piece)
                    if size > _HEALTH_BYTES_MAX:
                        break
                return "" if answer.is_success else f"GET {path} answers {answer.status_code}"
        except httpx.HTTPError as error:
            return f"GET {path}: {error!r}"

    async def _connects(self) -> str:
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except OSError as error:
            return f"port {self.port}: {error}"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return ""


async def _asked(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    judge: Callable[[int], None],
) -> Answered:
    if client.is_closed:  # the replica ended a moment ago
        raise httpx.ConnectError("it has ended")
    timeout = httpx.Timeout(None, connect=_CONNECT_S)
    async with client.stream(method, path, headers=list(headers), content=body or None, timeout=timeout) as answer:
        held = bytearray()
        async for piece in answer.aiter_raw():
            held += piece
            judge(len(held))
        return Answered(answer.status_code, passed_on(answer.headers.multi_items()), bytes(held))


def _encoded(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode("latin-1", "replace"), value.encode("latin-1", "replace")
