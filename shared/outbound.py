"""The way out to the web, for the two services that have one: sessions that dial only what the guard lets through."""

import socket
from collections.abc import Collection
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from shared.guard import is_named, is_public, url_refusal


class BlockedAddressError(OSError):
    """A name led to an address that may not be called."""


class PublicResolver(AbstractResolver):
    """Lets only public addresses through. What it returns is what is dialled: nothing can change between.

    Args:
        inner: who looks names up; the system if None.
    """

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of *host*.

        Raises:
            BlockedAddressError: one of them is not public.
            OSError: there are none.
        """
        found = await self._inner.resolve(host, port, family)
        for result in found:
            if not is_public(result["host"]):
                raise BlockedAddressError(f"{host} is at {result['host']}, which is not a public address")
        return found

    async def close(self) -> None:
        """Close the resolver below."""
        await self._inner.close()


class WayOut:
    """Calls to the web, and to the places that the operator vouches for. Use as ``async with WayOut(…) as way:``.

    Args:
        allowed: those places as ``host:port``: by http too, and whatever their address.
        timeout: of each call.
        resolver: who looks names up for the guard; the system if None.
    """

    def __init__(
        self, allowed: Collection[str], timeout: aiohttp.ClientTimeout, resolver: AbstractResolver | None = None
    ) -> None:
        self._allowed = allowed
        self._timeout = timeout
        self._resolver = resolver
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    async def __aenter__(self) -> Self:
        self._sessions = _session(PublicResolver(self._resolver), self._timeout), _session(None, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._sessions or ():
            await opened.close()
        self._sessions = None

    def refusal(self, url: str) -> str | None:
        """Return why *url* may not be called, or None. A name's addresses are judged when they are dialled."""
        return url_refusal(url, self._allowed)

    def session(self, url: URL) -> aiohttp.ClientSession:
        """Return the session in which *url*, which `refusal` lets through, is called.

        Raises:
            RuntimeError: the way is not open.
        """
        if self._sessions is None:
            raise RuntimeError("the way to the web is not open")
        guarded, named = self._sessions
        return named if is_named(url.host or "", url.port or 0, self._allowed) else guarded


class Outward:
    """Something that calls out by a way of its own, which is open within ``async with``."""

    def __init__(self, way: WayOut) -> None:
        self._way = way

    async def __aenter__(self) -> Self:
        await self._way.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._way.__aexit__(kind, error, trace)


def _session(resolver: AbstractResolver | None, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Return a session without proxies, cookies or decompression, which looks every name up anew."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=0),
        timeout=timeout,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
