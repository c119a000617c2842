"""The set-up on a real server."""

import asyncio
import os
import sys

import pytest

from infra.bootstrap import bootstrap, check_sync
from infra.local.ports import free_port
from infra.local.servers import NatsServer
from shared.broker_check import check_broker
from shared.bus import Bus
from shared.channels import Service
from shared.errors import NotFound, WherryError
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


async def test_a_lost_stream_is_not_made_again_unless_it_is_asked_for_by_name(bus):
    await bootstrap(bus)
    await bus.api("STREAM.DELETE.WHERRY_FLEET", {})
    told = r"WHERRY_FLEET: made here before, and gone.*RECREATE=WHERRY_FLEET"
    with pytest.raises(WherryError, match=told) as refused:
        await bootstrap(bus)
    assert refused.value.code == "stream_lost"
    with pytest.raises(NotFound):
        await bus.api("STREAM.INFO.WHERRY_FLEET", {})
    done = await bootstrap(bus, recreate=["WHERRY_FLEET"])
    assert done == ["created stream WHERRY_FLEET", "created consumer storage-fleet of WHERRY_FLEET"]
    assert await bootstrap(bus) == []


async def test_a_lost_consumer_is_not_made_again_either(bus):
    await bootstrap(bus)
    await bus.api("CONSUMER.DELETE.WHERRY_JOBS.notifier", {})
    with pytest.raises(WherryError, match=r"^WHERRY_JOBS.notifier: made here before"):
        await bootstrap(bus)
    assert await bootstrap(bus, recreate=["WHERRY_JOBS.notifier"]) == ["created consumer notifier of WHERRY_JOBS"]


async def test_what_a_new_version_adds_is_made_where_older_things_are(bus):
    await bus.api("STREAM.CREATE.WHERRY_DLQ", next(one for one in STREAMS if one.name == "WHERRY_DLQ").config())
    assert len(await bootstrap(bus)) == len(STREAMS) + len(DURABLES) - 1


async def test_the_running_server_says_whether_it_syncs_every_write(tmp_path):
    for name, sync_always in (("synced", True), ("lazy", False)):
        server = NatsServer(tmp_path / name, f"http: 127.0.0.1:{(port := free_port())}\n", sync_always=sync_always)
        with server:
            if sync_always:
                await check_sync(f"http://127.0.0.1:{port}")
            else:
                with pytest.raises(WherryError, match="does not sync each write"):
                    await check_sync(f"http://127.0.0.1:{port}/")
    with pytest.raises(WherryError, match="does not tell"):
        await check_sync(f"http://127.0.0.1:{port}")


async def test_a_service_starts_where_all_is_well_and_says_what_differs_without_harm(bus, caplog):
    await bootstrap(bus)
    config = (await bus.api("STREAM.INFO.WHERRY_JOBS", {}))["config"]
    await bus.api("STREAM.UPDATE.WHERRY_JOBS", {**config, "max_bytes": 10**9, "max_age": 0, "duplicate_window": 10**13})
    for service in (Service.SCHEDULER, Service.STORAGE, Service.NOTIFIER):
        await check_broker(bus, service)
    assert "max_bytes is 1000000000, not 4294967296" in caplog.text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"max_age": 3600 * 10**9}, "max_age is 3600000000000"),
        ({"duplicate_window": 10**9}, "duplicate_window is 1000000000"),
        ({"discard": "old"}, "discard is 'old', not 'new'"),
        ({"subjects": ["wherry.job.>", "wherry.attempt.>"]}, "subjects is"),
        ({"max_msgs_per_subject": 5}, "max_msgs_per_subject is 5"),
    ],
)
async def test_a_service_does_not_start_on_a_stream_that_would_lose_something(bus, change, complaint):
    await bootstrap(bus)
    config = (await bus.api("STREAM.INFO.WHERRY_JOBS", {}))["config"]
    await bus.api("STREAM.UPDATE.WHERRY_JOBS", {**config, **change})
    for service in (Service.SCHEDULER, Service.STORAGE, Service.NOTIFIER):
        with pytest.raises(WherryError, match=f"stream WHERRY_JOBS would lose something: {complaint}"):
            await check_broker(bus, service)


async def test_a_service_does_not_start_on_a_consumer_that_passes_messages_over(bus):
    await bootstrap(bus)
    consumer = (await bus.api("CONSUMER.INFO.WHERRY_JOBS.notifier", {}))["config"]
    request = {"stream_name": "WHERRY_JOBS", "config": {**consumer, "max_deliver": 3}}
    await bus.api("CONSUMER.DURABLE.CREATE.WHERRY_JOBS.notifier", request)
    await check_broker(bus, Service.STORAGE)
    with pytest.raises(WherryError, match="consumer notifier of WHERRY_JOBS would lose something: max_deliver is 3"):
        await check_broker(bus, Service.NOTIFIER)


@pytest.mark.parametrize("service", ["scheduler", "notifier", "storage"])
async def test_a_service_ends_with_75_and_a_sentence_where_the_streams_are_missing(nats_server, service):
    env = {**os.environ, "WHERRY_NATS_URL": nats_server.url, "WHERRY_NATS_USER": "", "WHERRY_NATS_PASSWORD": ""}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", f"services.{service}", env=env, stderr=-1)
    async with asyncio.timeout(120):
        _, said = await process.communicate()
    assert process.returncode == 75, said
    assert b"stream WHERRY_JOBS is missing" in said
