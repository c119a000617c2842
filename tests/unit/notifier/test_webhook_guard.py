"""The guard at the connector: what is dialled is what was checked."""

import socket
from datetime import UTC, datetime

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from services.notifier.adapters.webhook import WebhookSender
from shared.errors import Unavailable, WherryError
from shared.events import DeliveryRequested

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Names(AbstractResolver):
    """A name server of our own; it counts how often it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = addresses, 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET):
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=address, port=port, family=int(family), proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


def request(url: str) -> DeliveryRequested:
    return DeliveryRequested(
        delivery_id="d1",
        job_id="j1",
        owner_id="u1",
        event_id="e1",
        event="failed",
        kind="webhook",
        target=url,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


async def secret(_request: DeliveryRequested) -> str:
    return SECRET


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("1.1.1.1", "10.0.0.1"), ("::ffff:127.0.0.1",), ("64:ff9b::1",)])
async def test_a_name_that_leads_to_a_private_address_is_not_called(addresses: tuple[str, ...]):
    names = Names(*addresses)
    async with WebhookSender((), 60, "", secret, names) as sender:
        outcome = await sender.send(request("https://rebind.example.org/hook"))
    assert outcome.verdict.value == "hopeless"
    assert "not a public address" in outcome.detail
    assert names.asked == 1


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/", "https://[::1]/", "https://[::ffff:169.254.169.254]/", "http://example.org/",
     "https://example.org:4222/", "https://169.254.169.254/latest/meta-data", "gopher://example.org:443/", "https:///x",
     "https://[fe80::1%25eth0]/", "nonsense"],
)  # fmt: skip
async def test_urls_to_forbidden_places_are_refused_without_a_look_up(url: str):
    names = Names("1.1.1.1")
    async with WebhookSender((), 60, "", secret, names) as sender:
        outcome = await sender.send(request(url))
    assert outcome.verdict.value == "hopeless"
    assert names.asked == 0


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "017700000001", "localhost"])
async def test_other_ways_to_write_this_machine_do_not_get_through(host: str):
    async with WebhookSender((), 60, "", secret) as sender:
        outcome = await sender.send(request(f"https://{host}/"))
    assert outcome.verdict.value == "hopeless"
    assert "public" in outcome.detail or "no URL" in outcome.detail


async def test_a_secret_that_is_gone_ends_the_delivery_and_one_that_cannot_be_had_now_does_not():
    async def gone(_request: DeliveryRequested) -> str:
        raise WherryError("not_found", "no such secret")

    async def away(_request: DeliveryRequested) -> str:
        raise Unavailable("storage does not answer")

    url = "https://example.org/"
    async with WebhookSender((), 60, "", gone) as sender:
        assert (await sender.send(request(url))).verdict.value == "hopeless"
    async with WebhookSender((), 60, "", away) as sender:
        assert (await sender.send(request(url))).verdict.value == "postponed"
