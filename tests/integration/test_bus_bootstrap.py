"""The set-up on a real server."""

import asyncio
import os
import sys

import pytest

from infra.bootstrap import bootstrap
from shared.bus import Bus
from shared.channels import Service
from shared.errors import WherryError
from shared.settings import ServiceSettings
from shared.streams import DURABLES, STREAMS


@pytest.fixture
async def bus(nats_server):
    async with Bus.connect(ServiceSettings(nats_url=nats_server.url), Service.BROKER) as connected:
        yield connected


async def test_an_empty_server_gets_everything_and_a_second_time_changes_nothing(bus):
    done = await bootstrap(bus)
    assert len(done) == len(STREAMS) + len(DURABLES)
    assert await bootstrap(bus) == []


async def test_what_may_change_is_brought_back_into_line(bus):
    await bootstrap(bus)
    config = (await bus.api("STREAM.INFO.WHERRY_DLQ", {}))["config"]
    await bus.api("STREAM.UPDATE.WHERRY_DLQ", {**config, "max_age": 10**12})
    consumer = (await bus.api("CONSUMER.INFO.WHERRY_JOBS.storage", {}))["config"]
    request = {"stream_name": "WHERRY_JOBS", "config": {**consumer, "ack_wait": 10**9}}
    await bus.api("CONSUMER.DURABLE.CREATE.WHERRY_JOBS.storage", request)
    done = await bootstrap(bus)
    assert done == ["updated stream WHERRY_DLQ: max_age", "updated consumer storage of WHERRY_JOBS: ack_wait"]
    assert await bootstrap(bus) == []


async def test_what_may_not_change_is_refused_in_words_and_left_alone(bus):
    await bus.api("STREAM.CREATE.WHERRY_DLQ", {"name": "WHERRY_DLQ", "subjects": ["wherry.dlq.>"], "storage": "memory"})
    with pytest.raises(WherryError, match=r"WHERRY_DLQ .*storage is 'memory', not 'file'") as refused:
        await bootstrap(bus)
    assert refused.value.code == "stream_mismatch"
    assert (await bus.api("STREAM.INFO.WHERRY_DLQ", {}))["config"]["storage"] == "memory"


async def test_it_runs_as_a_command(nats_server, bus):
    env = {**os.environ, "WHERRY_NATS_URL": nats_server.url, "WHERRY_NATS_USER": "", "WHERRY_NATS_PASSWORD": ""}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "infra.bootstrap", env=env, stderr=-1)
    _, said = await process.communicate()
    assert process.returncode == 0, said
    assert await bootstrap(bus) == []
