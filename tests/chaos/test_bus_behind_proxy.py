"""The bus on a line that carries one way only."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from shared.bus import Bus
from shared.channels import Service
from shared.permissions import OPERATOR, accounts_config, users
from shared.settings import ServiceSettings
from tests.chaos.proxy import Proxy


@pytest.mark.slow
async def test_a_server_that_hears_nothing_has_not_refused_the_credential(start_nats: Callable[..., Any]) -> None:
    impatient = "authorization { timeout: 0.5 }\n"  # sooner than the client, which waits 2 s as the server usually does
    server = start_nats(impatient + accounts_config({user.name: "secret" for user in users()}))
    async with Proxy("127.0.0.1", int(server.url.rpartition(":")[2])) as network:
        settings = ServiceSettings(
            nats_url=f"nats://127.0.0.1:{network.port}", nats_user=OPERATOR, nats_password=SecretStr("secret")
        )
        async with Bus.connect(settings, Service.STORAGE) as bus:
            network.cut()  # or the line's silence would be found by pings alone, later
            network.heal()
            network.hold("up")
            await asyncio.sleep(10)  # at least three tries
            assert not bus.closed.is_set()
            network.heal()
            await bus.until_online(90)
            assert not bus.closed.is_set()
