"""The bus through the broker's real accounts and permissions: what each service must be able to do, it can."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from infra.bootstrap import bootstrap
from shared import channels, wire
from shared.bus import Bus, Record
from shared.channels import JOBS, LEADER, SNAPSHOT, Service
from shared.clock import utc_now
from shared.errors import Conflict, Forbidden
from shared.events import AttemptRunning, CancelRequested
from shared.permissions import accounts_config, users
from shared.settings import ServiceSettings

PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(["n1"])}


@pytest.fixture
async def connect(start_nats):
    """Connect as a user of the real configuration, its streams set up."""
    server = start_nats(accounts=accounts_config(PASSWORDS, ["n1"]))

    @asynccontextmanager
    async def as_user(user: str, service: Service, peer: str | None = None):
        settings = ServiceSettings(nats_url=server.url, nats_user=user, nats_password=PASSWORDS[user])
        async with Bus.connect(settings, service, peer=peer) as bus:
            yield bus

    async with as_user("operator", Service.BROKER) as operator:
        await bootstrap(operator)
        assert await bootstrap(operator) == []
    return as_user


def cancel(bus: Bus, job: str, expect: int | None = None) -> Record:
    event = bus.event(channels.CANCEL_REQUESTED, CancelRequested(by="u1", at=utc_now()), subject=job)
    mark = None if expect is None else (f"wherry.request.*.{job}.>", expect)
    return Record(channels.CANCEL_REQUESTED, {"owner": "o1", "job_id": job}, event, mark)


def running(bus: Bus, node: str, job: str) -> Record:
    event = bus.event(channels.ATTEMPT_RUNNING, AttemptRunning(attempt=1, at=utc_now()), subject=job)
    return Record(channels.ATTEMPT_RUNNING, {"node_id": node, "job_id": job}, event)


async def test_the_gateway_writes_alone_and_in_groups_and_sees_conflicts(connect):
    async with connect("gateway", Service.GATEWAY, "g1") as gateway:
        assert (await gateway.record(cancel(gateway, "j0", expect=0))).seq == 1
        with pytest.raises(Conflict):
            await gateway.record(cancel(gateway, "j0", expect=0))
        stored = await asyncio.gather(*(gateway.record_grouped(cancel(gateway, f"j{i}", 0)) for i in range(1, 100)))
        assert sorted(one.seq for one in stored) == list(range(2, 101))


async def test_the_gateway_knows_its_own_write_without_reading_the_stream(connect):
    async with connect("gateway", Service.GATEWAY, "g1") as gateway:
        record = cancel(gateway, "j1", expect=0)
        await gateway.record(record)
        entry = wire.entry(record)
        [again] = await gateway.write([entry], JOBS, suspect=True)
        assert (again.seq, again.duplicate) == (1, True)
        with pytest.raises(Conflict):
            await gateway.write([wire.entry(cancel(gateway, "j1", expect=0))], JOBS, suspect=True)


async def test_an_agent_reports_as_itself_and_as_nobody_else(connect):
    async with connect("node-n1", Service.NODE_AGENT, "n1") as agent:
        assert (await agent.record(running(agent, "n1", "j1"), deadline_s=None)).seq == 1
        assert (await agent.record_grouped(running(agent, "n1", "j2"))).seq == 2
        with pytest.raises(Forbidden):
            await agent.record(running(agent, "n2", "j1"))


async def test_the_scheduler_follows_leases_snapshots_and_looks_up(connect):
    async with connect("scheduler", Service.SCHEDULER) as scheduler, connect("gateway", Service.GATEWAY) as gateway:
        for i in range(3):
            await gateway.record(cancel(gateway, f"j{i}"))
        stream = scheduler.follow(JOBS, ["wherry.job.>", "wherry.attempt.>", "wherry.request.>"], start_seq=1)
        seqs: list[int] = []
        async with asyncio.timeout(60):
            async for messages in stream:
                seqs += [message.seq for message in messages]
                if not messages:
                    break
        await stream.aclose()
        assert seqs == [1, 2, 3]
        assert await scheduler.stream_last_seq(JOBS) == 3
        lease = await scheduler.put("wherry.leader.scheduler", b"me", expect_seq=0, ttl_s=60)
        assert await scheduler.get_last(LEADER, "wherry.leader.scheduler") == (lease, b"me")
        piece = await scheduler.put("wherry.snapshot.scheduler.0", b"a")
        assert await scheduler.get_last(SNAPSHOT, "wherry.snapshot.scheduler.0") == (piece, b"a")


@pytest.mark.parametrize(
    ("user", "service", "stream", "durable"),
    [
        ("storage", Service.STORAGE, "WHERRY_NOTIFY", "storage-delivery"),
        ("notifier", Service.NOTIFIER, "WHERRY_NOTIFY", "deliver"),
    ],
)
async def test_storage_and_notifier_consume_and_settle(connect, user, service, stream, durable):
    async with connect("operator", Service.BROKER) as operator:
        await operator.put("wherry.delivery.o.j.requested", b"{}")
    async with connect(user, service) as bus, asyncio.timeout(60):
        async for [message] in bus.consume(stream, durable):
            await message.ack_sync()
            break
        assert await bus.last(stream, "wherry.delivery.>") is not None
        assert await bus.stream_last_seq(stream) == 1


async def test_giving_up_before_a_server_was_there_says_what_one_gave_up_for():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            async with Bus.connect(ServiceSettings(nats_url="nats://127.0.0.1:1"), Service.STORAGE):
                pass
