"""The way out to the web, for the two services that have one: sessions that dial only what the guard lets through."""

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from shared.guard import is_public


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


def session(resolver: AbstractResolver | None, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Return a session without proxies, cookies or decompression, which looks every name up anew.

    Args:
        resolver: a `PublicResolver`; None only for places that the operator has named.
        timeout: of each call.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=0),
        timeout=timeout,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
