"""Webhooks: a signed POST to where it may go, and nowhere else."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from services.notifier.core import texts
from services.notifier.core.delivery import Outcome, Verdict, judge_webhook
from services.notifier.core.signing import sign
from shared.clock import utc_now
from shared.errors import WherryError
from shared.events import DeliveryRequested
from shared.outbound import BlockedAddressError, Outward, WayOut

#: As much of an answer is read, so that the connection can be used again; what it says is nobody's business.
ANSWER_BYTES_MAX = 64 * 1024

#: Returns the secret of a delivery, or raises `WherryError`.
SecretOf = Callable[[DeliveryRequested], Awaitable[str]]


class WebhookSender(Outward):
    """Posts events. Use as ``async with WebhookSender(…) as sender:``.

    Args:
        allowed: ``host:port`` of places that the operator vouches for.
        timeout_s: the longest a whole call may take, in seconds.
        public_url: where users find the gateway; may be empty.
        secret_of: looks up what to sign with.
        resolver: who looks names up for the guard; the system if None.

    """

    def __init__(
        self,
        allowed: Collection[str],
        timeout_s: float,
        public_url: str,
        secret_of: SecretOf,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        super().__init__(WayOut(allowed, aiohttp.ClientTimeout(total=timeout_s), resolver))
        self._public_url = public_url
        self._secret_of = secret_of

    def host(self, request: DeliveryRequested) -> str:
        """Return the receiver's host and port."""
        try:
            url = URL(request.target)
        except ValueError:
            return ""
        return f"{url.host}:{url.port}"

    async def send(self, request: DeliveryRequested) -> Outcome:
        """Post once."""
        try:
            url = URL(request.target)
        except ValueError:
            return Outcome(Verdict.HOPELESS, "the address is no URL")
        if refused := self._way.refusal(request.target):
            return Outcome(Verdict.HOPELESS, f"not sent: {refused}")
        try:
            secret = await self._secret_of(request)
        except WherryError as error:
            verdict = Verdict.POSTPONED if error.retryable else Verdict.HOPELESS
            return Outcome(verdict, f"not sent: the signing secret cannot be had ({error.code})")
        return await self._post(url, request, secret)

    async def _post(self, url: URL, request: DeliveryRequested, secret: str) -> Outcome:
        body = texts.payload(request, self._public_url)
        try:
            headers = self._headers(request, secret, body)
        except ValueError as error:
            return Outcome(Verdict.HOPELESS, f"not sent: {error}")
        try:
            session = self._way.session(url)
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await _drain(answer)
                return judge_webhook(answer.status, _seconds(answer.headers.get("Retry-After")))
        except aiohttp.InvalidURL:
            return Outcome(Verdict.HOPELESS, "not sent: the address is no URL that can be called")
        except TimeoutError:
            return Outcome(Verdict.FAILED, f"no answer in {self._timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            return _unreached(error)
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(Verdict.FAILED, f"the call broke ({type(error).__name__})")

    def _headers(self, request: DeliveryRequested, secret: str, body: bytes) -> dict[str, str]:
        sent_at = int(utc_now().timestamp())
        return {
            "Content-Type": "application/cloudevents+json; charset=utf-8",
            "User-Agent": "wherry",
            "webhook-id": request.delivery_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": sign(secret, request.delivery_id, sent_at, body),
        }


async def _drain(answer: aiohttp.ClientResponse) -> None:
    """Read the beginning of an answer; a longer one costs its connection."""
    left = ANSWER_BYTES_MAX
    async for chunk in answer.content.iter_any():
        left -= len(chunk)
        if left <= 0:
            answer.close()
            return


def _unreached(error: aiohttp.ClientConnectorError) -> Outcome:
    blocked: Any = error.os_error
    if isinstance(blocked, BlockedAddressError):
        return Outcome(Verdict.HOPELESS, f"not sent: {blocked}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Outcome(Verdict.FAILED, "the receiver's name is not known")
    if isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError):
        return Outcome(Verdict.FAILED, "no trusted TLS connection to the receiver")
    return Outcome(Verdict.FAILED, "the receiver cannot be reached")


def _seconds(text: str | None) -> float | None:
    """Return a Retry-After given in seconds; its form as a date is rare and left to the schedule."""
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 9 else None
