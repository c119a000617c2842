"""Getting files from the web: each address on the way is checked, and what is dialled is what was checked."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from services.storage.core.fetching import FetchBroke, Head, failed, media_type, refused, strong_validator
from shared.outbound import BlockedAddressError, Outward, WayOut

REDIRECTS_MAX = 5
CONNECT_TIMEOUT_S = 15.0
_PIECE_BYTES = 256 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body is still to come."""

    head: Head
    pieces: AsyncIterator[bytes]


class Web(Outward):
    """Asks for files. Use as ``async with Web(…) as web:``.

    Args:
        allowed: ``host:port`` of places that the operator vouches for: by http too, and whatever their address.
        idle_s: the longest silence, in seconds.
        resolver: who looks names up for the guard; the system if None.
    """

    def __init__(self, allowed: Collection[str], idle_s: float, resolver: AbstractResolver | None = None) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s)
        super().__init__(WayOut(allowed, timeout, resolver))

    @asynccontextmanager
    async def get(self, url: str, start: int = 0, validator: str | None = None) -> AsyncGenerator[Answer, None]:
        """Ask for the bytes of *url* from *start* on, as long as they are those that *validator* names.

        Raises:
            WherryError: ``input_missing`` or ``stage_in_failed``: it may not be called, or never can be.
            FetchBroke: not this time; also out of the pieces.
        """
        headers = {"User-Agent": "wherry", "Accept": "*/*", "Accept-Encoding": "identity"}
        if start and validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        try:
            answer = await self._followed(url, headers)
            try:
                yield Answer(_head(answer), _pieces(answer))
            finally:
                answer.close()
        except aiohttp.ClientConnectorError as error:
            raise _unreached(url, error) from error
        except aiohttp.InvalidURL as error:
            raise refused(url, "it is no address that can be called") from error
        except ValueError as error:
            raise failed(url, "the server's answer cannot be understood") from error
        except TimeoutError as error:
            raise FetchBroke("the server says nothing") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FetchBroke(f"the connection broke ({type(error).__name__})") from error

    async def _followed(self, first: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        url = first
        for _ in range(REDIRECTS_MAX + 1):
            if why := self._way.refusal(url):
                raise refused(first, why if url == first else f"it leads to {url}, and there {why}")
            target = URL(url)
            answer = await self._way.session(target).get(target, headers=headers, allow_redirects=False)
            if answer.status not in _REDIRECTS:
                return answer
            place = answer.headers.get("Location")
            answer.close()
            try:
                url = str(target.join(URL(place or "")))
            except ValueError:
                place = None
            if not place:
                raise failed(first, f"the server answers {answer.status} and names no address that it is at")
        raise failed(first, f"it leads on and on, more than {REDIRECTS_MAX} times")


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
            yield piece
    except TimeoutError as error:
        raise FetchBroke("the server says nothing any more") from error
    except (aiohttp.ClientError, OSError) as error:
        raise FetchBroke(f"the connection broke ({type(error).__name__})") from error


def _head(answer: aiohttp.ClientResponse) -> Head:
    return Head(
        status=answer.status,
        reason=(answer.reason or "").encode("ascii", "replace").decode()[:100],
        length=answer.content_length,
        content_range=answer.headers.get("Content-Range"),
        validator=strong_validator(answer.headers.get("ETag"), answer.headers.get("Last-Modified")),
        media_type=media_type(answer.headers.get("Content-Type")),
    )


def _unreached(url: str, error: aiohttp.ClientConnectorError) -> Exception:
    blocked: Any = error.os_error
    if isinstance(blocked, BlockedAddressError):
        return refused(url, str(blocked))
    if isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError):
        return failed(url, "there is no trusted TLS connection to the server")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchBroke("the server's name is not known")
    return FetchBroke("the server cannot be reached")
