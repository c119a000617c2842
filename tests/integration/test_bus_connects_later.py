"""A bus that is not waited for: used before there is a server, it says so at once, and works once there is one."""

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local.servers import NatsServer
from shared.bus import Bus
from shared.channels import PING, Service
from shared.errors import Unavailable
from shared.model import Empty
from shared.permissions import accounts_config
from shared.settings import ServiceSettings
from tests.integration.conftest import NODES, PASSWORDS


def settings(server: NatsServer, password: str = PASSWORDS["node-n1"]) -> ServiceSettings:
    return ServiceSettings(nats_url=server.url, nats_user="node-n1", nats_password=SecretStr(password))


async def test_it_is_there_before_its_server_and_connects_when_that_comes(tmp_path: Path) -> None:
    with NatsServer(tmp_path, accounts_config(PASSWORDS, NODES), sync_always=False) as server:
        server.kill()
        async with Bus.connect(settings(server), Service.NODE_AGENT, peer="n1", wait=False) as bus:
            with pytest.raises(Unavailable):
                await bus.ask(PING, Empty(), retry_s=0)
            with pytest.raises(Unavailable):
                await bus.until_online(0.2)
            server.start()
            await bus.until_online(60)
            assert bus.is_connected
            assert not bus.closed.is_set()


async def test_a_refused_credential_closes_it_for_good(tmp_path: Path) -> None:
    with NatsServer(tmp_path, accounts_config(PASSWORDS, NODES), sync_always=False) as server:
        async with Bus.connect(settings(server, "wrong"), Service.NODE_AGENT, peer="n1", wait=False) as bus:
            async with asyncio.timeout(60):
                await bus.closed.wait()
            with pytest.raises(Unavailable):
                await bus.until_online()


async def test_it_can_be_closed_before_it_ever_connected(tmp_path: Path) -> None:
    with NatsServer(tmp_path, accounts_config(PASSWORDS, NODES), sync_always=False) as server:
        server.kill()
        async with asyncio.timeout(60):
            async with Bus.connect(settings(server), Service.NODE_AGENT, peer="n1", wait=False):
                await asyncio.sleep(0.1)
