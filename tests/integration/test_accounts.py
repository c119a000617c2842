"""The generated accounts on a real nats-server: what must pass, passes; what must not, changes nothing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from pydantic import SecretStr

from infra.bootstrap import BootstrapSettings, bootstrap
from infra.local.servers import NatsServer
from shared.bus import Bus
from shared.channels import CHANNELS, Account, Service
from shared.ids import new_id
from shared.permissions import accounts_config, users
from shared.streams import STREAMS

NODES = ("n1", "n2")
PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(NODES)}
OUTSIDE = [user for user in users(NODES) if user.account is not Account.CTRL]
NAMES = [stream.name for stream in STREAMS]


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[NatsServer]:
    with NatsServer(folder, accounts_config(PASSWORDS, NODES), sync_always=False) as server:
        asyncio.run(_set_up(server))
        yield server


async def _set_up(server: NatsServer) -> None:
    password = SecretStr(PASSWORDS["operator"])
    settings = BootstrapSettings(nats_url=server.url, nats_user="operator", nats_password=password)
    async with Bus.connect(settings, Service.BROKER) as bus:
        await bootstrap(bus)


@asynccontextmanager
async def connect(server: NatsServer, user: str, problems: "asyncio.Queue[str] | None" = None) -> AsyncIterator[Client]:
    async def note(problem: Exception) -> None:
        if problems is not None:
            await problems.put(str(problem).lower())

    client = await nats.connect(
        server.url, user=user, password=PASSWORDS[user], inbox_prefix=f"_INBOX.{user}".encode(), error_cb=note
    )
    try:
        yield client
    finally:
        await client.close()


async def call(client: Client, subject: str, body: object = None) -> dict[str, Any]:
    answer = await client.request(subject, json.dumps(body).encode() if body is not None else b"", timeout=20)
    told = json.loads(answer.data)
    assert "error" not in told, told
    return told


async def keep(client: Client, subject: str, body: bytes = b"{}", **headers: str) -> dict[str, Any]:
    """Publish for a stream and return its PubAck, an error included."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return json.loads((await client.request(subject, body, timeout=20, headers=named or None)).data)


async def settled(client: Client) -> None:
    """Return when the server has its subscriptions: the first ping goes out ahead of what the client still holds."""
    await client.flush()
    await client.flush()


@asynccontextmanager
async def listening(client: Client, subject: str, queue: str = "") -> AsyncIterator["asyncio.Queue[Msg]"]:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await client.subscribe(subject, queue=queue, cb=heard.put)
    await settled(client)
    yield heard
    await subscription.unsubscribe()


async def heard_of(send: Callable[[], Awaitable[Any]], heard: "asyncio.Queue[Msg]") -> Msg:
    """Send until it is heard: on a machine with much to do, the first across a wall is lost now and then."""
    for _ in range(20):
        await send()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                return await heard.get()
    raise AssertionError("it was sent twenty times, and never heard")


async def contents(operator: Client) -> dict[str, dict[str, int]]:
    """Return how many messages each stream has of each subject."""
    found = {}
    for name in NAMES:
        info = await call(operator, f"$JS.API.STREAM.INFO.{name}", {"subjects_filter": ">"})
        found[name] = info["state"].get("subjects") or {}
    return found


# --- what must pass --------------------------------------------------------------------------------------------------


async def test_a_job_created_by_the_gateway_is_kept_once_and_reaches_gateway_and_watcher_as_feed(broker: NatsServer):
    job = new_id("j")
    async with (
        connect(broker, "gateway") as gateway,
        connect(broker, "watcher") as watcher,
        listening(watcher, "wherry.feed.>") as watched,
        listening(gateway, f"wherry.feed.*.{job}.*") as fed,
    ):
        expect = {
            "Nats_Expected_Last_Subject_Sequence": "0",
            "Nats_Expected_Last_Subject_Sequence_Subject": f"wherry.job.*.{job}.>",
        }
        first = await keep(gateway, f"wherry.job.o1.{job}.created", b'{"n":1}', Nats_Msg_Id=new_id("e"), **expect)
        again = await keep(gateway, f"wherry.job.o1.{job}.created", b'{"n":2}', Nats_Msg_Id=new_id("e"), **expect)
        assert first["stream"] == "WHERRY_JOBS"
        assert again["error"]["err_code"] == 10071
        for heard in (fed, watched):
            async with asyncio.timeout(20):
                message = await heard.get()
            assert message.subject == f"wherry.feed.o1.{job}.created"
            assert message.data == b'{"n":1}'
            assert message.headers is not None
            assert message.headers["Nats-Sequence"] == str(first["seq"])
        await watcher.flush()
        assert watched.empty(), "the feed has what the stream refused"


async def test_the_gateway_commits_an_atomic_batch_through_the_wall(broker: NatsServer):
    batch, jobs = new_id("b"), [new_id("j") for _ in range(3)]
    async with connect(broker, "gateway") as gateway:
        for number, job in enumerate(jobs[:-1], 1):
            headers = {
                "Nats-Batch-Id": batch,
                "Nats-Batch-Sequence": str(number),
                "Nats-Expected-Last-Subject-Sequence": "0",
                "Nats-Expected-Last-Subject-Sequence-Subject": f"wherry.job.*.{job}.>",
            }
            await gateway.publish(f"wherry.job.o1.{job}.created", b"{}", headers=headers)
        ack = await keep(
            gateway,
            f"wherry.job.o1.{jobs[-1]}.created",
            Nats_Batch_Id=batch,
            Nats_Batch_Sequence="3",
            Nats_Batch_Commit="1",
        )
        assert ack["count"] == 3


async def test_a_batch_with_one_stale_entry_is_refused_whole_through_the_wall(broker: NatsServer):
    batch, old, new = new_id("b"), new_id("j"), new_id("j")
    async with connect(broker, "gateway") as gateway, connect(broker, "operator") as operator:
        await keep(gateway, f"wherry.job.o1.{old}.created")
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": "1"}
        await gateway.publish(f"wherry.job.o1.{new}.created", b"{}", headers=headers)
        ack = await keep(
            gateway,
            f"wherry.job.o1.{old}.created",
            Nats_Batch_Id=batch,
            Nats_Batch_Sequence="2",
            Nats_Batch_Commit="1",
            Nats_Expected_Last_Subject_Sequence="0",
            Nats_Expected_Last_Subject_Sequence_Subject=f"wherry.job.*.{old}.>",
        )
        assert ack["error"]["err_code"] == 10071
        assert f"wherry.job.o1.{new}.created" not in (await contents(operator))["WHERRY_JOBS"]


async def test_a_heartbeat_is_answered_by_the_scheduler_while_storage_listens(broker: NatsServer):
    async with (
        connect(broker, "scheduler") as scheduler,
        connect(broker, "storage") as storage,
        connect(broker, "node-n1") as agent,
        listening(storage, "wherry.node.*.heartbeat", queue="storage") as seen,
    ):

        async def answer(message: Msg) -> None:
            await message.respond(b"desired")

        await scheduler.subscribe("wherry.node.*.heartbeat", cb=answer)
        await settled(scheduler)
        for _ in range(3):
            beat = partial(agent.request, "wherry.node.n1.heartbeat", b"here", timeout=20)
            assert (await beat()).data == b"desired"
            assert (await heard_of(beat, seen)).subject == "wherry.node.n1.heartbeat"


async def test_a_wake_reaches_its_node_and_an_attempt_event_is_acknowledged(broker: NatsServer):
    async with connect(broker, "scheduler") as scheduler, connect(broker, "node-n1") as agent:
        async with listening(agent, "wherry.node.n1.wake") as woken:
            await scheduler.publish("wherry.node.n2.wake", b"not mine")
            assert (await heard_of(partial(scheduler.publish, "wherry.node.n1.wake", b"{}"), woken)).data == b"{}"
        ack = await keep(agent, f"wherry.attempt.n1.{new_id('j')}.running", Nats_Msg_Id=new_id("e"))
        assert ack["stream"] == "WHERRY_JOBS"


async def test_output_of_a_node_is_kept_and_reaches_the_gateway_as_tail(broker: NatsServer):
    async with (
        connect(broker, "gateway") as gateway,
        connect(broker, "node-n1") as agent,
        listening(gateway, "wherry.tail.*.j1.*") as tail,
    ):
        line = partial(agent.publish, "wherry.log.n1.j1.1", b'{"lines":[]}')
        assert (await heard_of(line, tail)).subject == "wherry.tail.n1.j1.1"


async def test_a_request_to_a_replica_reaches_its_node_alone_and_is_answered_through_the_wall(broker: NatsServer):
    job = new_id("j")
    async with (
        connect(broker, "gateway") as gateway,
        connect(broker, "node-n1") as agent,
        connect(broker, "node-n2") as other,
        listening(other, "wherry.serve.n2.*") as astray,
    ):

        async def answer(message: Msg) -> None:
            assert message.headers
            await agent.publish(message.reply, b"answer to " + message.data, headers={"Seen": message.headers["Step"]})

        with pytest.raises(NoRespondersError):
            await gateway.request(f"wherry.serve.n1.{job}", b"1", timeout=20)
        await agent.subscribe("wherry.serve.n1.*", cb=answer)
        await settled(agent)
        for _ in range(3):
            got = await gateway.request(f"wherry.serve.n1.{job}", b"2", timeout=20, headers={"Step": "ask"})
            assert (got.data, (got.headers or {})["Seen"]) == (b"answer to 2", "ask")
        await other.flush()
        assert astray.empty()


async def test_an_agent_answers_what_reached_it_once_and_no_other_inbox(broker: NatsServer):
    problems: asyncio.Queue[str] = asyncio.Queue()
    asked: asyncio.Queue[Msg] = asyncio.Queue()
    async with (
        connect(broker, "gateway") as gateway,
        connect(broker, "node-n1", problems) as agent,
        connect(broker, "node-n2") as victim,
        listening(victim, "_INBOX.node-n2.>") as inbox,
    ):
        await agent.subscribe("wherry.serve.n1.*", cb=asked.put)
        await settled(agent)
        await agent.publish("_INBOX.node-n2.1", b"a heartbeat's answer, says node 1")
        async with asyncio.timeout(20):
            assert "permissions violation for publish" in await problems.get()
        asking = asyncio.create_task(gateway.request(f"wherry.serve.n1.{new_id('j')}", b"", timeout=20))
        async with asyncio.timeout(20):
            message = await asked.get()
        await agent.publish(message.reply, b"first")
        assert (await asking).data == b"first"
        await agent.publish(message.reply, b"second")
        async with asyncio.timeout(20):
            assert "permissions violation for publish" in await problems.get()
        await victim.flush()
        assert inbox.empty()


async def test_a_revoked_token_reaches_the_gateway(broker: NatsServer):
    async with (
        connect(broker, "gateway") as gateway,
        connect(broker, "storage") as storage,
        listening(gateway, "wherry.auth.revoked") as heard,
    ):
        await heard_of(partial(storage.publish, "wherry.auth.revoked", b"{}"), heard)


@pytest.mark.parametrize(
    ("user", "subject"), [("node-n1", "wherry.blob.node.n1.chunk"), ("gateway", "wherry.blob.gateway.g7.chunk")]
)
async def test_chunks_go_to_storage_with_their_headers_and_come_back_with_an_answer(
    broker: NatsServer, user: str, subject: str
):
    chunk = bytes(range(256)) * 2048
    async with connect(broker, "storage") as storage, connect(broker, user) as sender:

        async def store(message: Msg) -> None:
            assert message.headers is not None
            told = {"Wherry-Size": str(len(message.data)), "Wherry-Upload": message.headers["Wherry-Upload"]}
            await storage.publish(message.reply, message.data[:8], headers=told)

        await storage.subscribe("wherry.blob.*.*.chunk", queue="storage", cb=store)
        await settled(storage)
        answers = await asyncio.gather(
            *(sender.request(subject, chunk, timeout=20, headers={"Wherry-Upload": f"u{n}"}) for n in range(16))
        )
        assert [a.headers and a.headers["Wherry-Upload"] for a in answers] == [f"u{n}" for n in range(16)]
        assert {a.headers and a.headers["Wherry-Size"] for a in answers} == {str(len(chunk))}


@pytest.mark.parametrize(
    ("user", "stream", "durable", "subject"),
    [
        ("storage", "WHERRY_JOBS", "storage", "wherry.job.o1.{}.created"),
        ("notifier", "WHERRY_JOBS", "notifier", "wherry.job.o1.{}.succeeded"),
        ("storage", "WHERRY_LOGS", "storage-log", "wherry.log.n1.{}.1"),
        ("storage", "WHERRY_NOTIFY", "storage-delivery", "wherry.delivery.o1.{}.tried"),
        ("notifier", "WHERRY_NOTIFY", "deliver", "wherry.delivery.o1.{}.requested"),
    ],
)
async def test_a_service_works_through_its_own_consumer(
    broker: NatsServer, user: str, stream: str, durable: str, subject: str
):
    problems: asyncio.Queue[str] = asyncio.Queue()
    async with connect(broker, "operator") as operator, connect(broker, user, problems) as service:
        await keep(operator, subject.format(new_id("j")))
        pull = await service.jetstream().pull_subscribe_bind(durable, stream)
        for message in await pull.fetch(500, timeout=20):
            await message.ack_sync(timeout=20)
        left = await call(operator, f"$JS.API.CONSUMER.INFO.{stream}.{durable}")
        assert (left["num_pending"], left["num_ack_pending"]) == (0, 0)
        assert problems.empty()


async def test_the_scheduler_writes_follows_and_looks_up_its_log(broker: NatsServer):
    problems: asyncio.Queue[str] = asyncio.Queue()
    async with connect(broker, "scheduler", problems) as scheduler:
        job = new_id("j")
        ack = await keep(scheduler, f"wherry.job.o1.{job}.placed", Nats_Msg_Id=new_id("e"))
        config = {"filter_subjects": ["wherry.job.>", "wherry.request.>"], "ack_policy": "none", "mem_storage": True}
        made = await call(
            scheduler,
            "$JS.API.CONSUMER.CREATE.WHERRY_JOBS.follow-1",
            {
                "stream_name": "WHERRY_JOBS",
                "config": {**config, "name": "follow-1", "inactive_threshold": 30_000_000_000},
            },
        )
        assert made["num_pending"] > 0
        pull = await scheduler.jetstream().pull_subscribe_bind("follow-1", "WHERRY_JOBS")
        assert await pull.fetch(1, timeout=20)
        await call(scheduler, "$JS.API.CONSUMER.DELETE.WHERRY_JOBS.follow-1")
        one = await call(scheduler, "$JS.API.STREAM.MSG.GET.WHERRY_JOBS", {"last_by_subj": f"wherry.job.*.{job}.>"})
        assert one["message"]["seq"] == ack["seq"]
        direct = await scheduler.request("$JS.API.DIRECT.GET.WHERRY_JOBS", b'{"seq":%d}' % ack["seq"], timeout=20)
        assert direct.headers is not None
        assert direct.headers["Nats-Sequence"] == str(ack["seq"])
        await keep(scheduler, "wherry.snapshot.1.0", b"state")
        await keep(scheduler, "wherry.leader.main", b"me")
        assert problems.empty()


# --- what must not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credential", [{}, {"user": "gateway", "pass": "guess"}, {"user": "gateway"}, {"user": "node-n9", "pass": ""}]
)
async def test_a_client_without_a_credential_is_refused(broker: NatsServer, credential: dict[str, str]):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    async with asyncio.timeout(20):
        assert b'"auth_required":true' in await reader.readline()
    writer.write(b"CONNECT " + json.dumps({"verbose": False, **credential}).encode() + b"\r\nSUB > 1\r\nPING\r\n")
    async with asyncio.timeout(30):
        told = await reader.read()  # to the end: the server hangs up
    writer.close()
    assert told == b"-ERR 'Authorization Violation'\r\n"


PUBLISH_REFUSED = [
    ("node-n1", "wherry.attempt.n2.j1.finished"),
    ("node-n1", "wherry.node.n2.heartbeat"),
    ("node-n1", "wherry.node.n1.wake"),
    ("node-n1", "wherry.log.n2.j1.1"),
    ("node-n1", "wherry.blob.node.n2.commit"),
    ("node-n1", "wherry.blob.gateway.n1.commit"),
    ("node-n1", "wherry.job.o1.j1.succeeded"),
    ("node-n1", "wherry.job.o1.j1.created"),
    ("node-n1", "wherry.request.o1.j1.cancel"),
    ("node-n1", "wherry.storage.users.list"),
    ("node-n1", "wherry.serve.n1.j1"),
    ("node-n1", "wherry.serve.n2.j1"),
    ("watcher", "wherry.serve.n1.j1"),
    ("scheduler", "wherry.serve.n1.j1"),
    ("gateway", "wherry.serve.n1.j1.more"),
    ("node-n1", "_INBOX.node-n2.x"),
    ("node-n1", "$JS.API.STREAM.MSG.GET.WHERRY_JOBS"),
    ("node-n1", "$JS.API.CONSUMER.MSG.NEXT.WHERRY_JOBS.storage"),
    ("node-n1", "$SYS.REQ.SERVER.PING"),
    ("gateway", "wherry.job.o1.j1.succeeded"),
    ("gateway", "wherry.attempt.n1.j1.finished"),
    ("gateway", "wherry.feed.o1.j1.succeeded"),
    ("gateway", "wherry.blob.node.n1.commit"),
    ("gateway", "wherry.node.n1.heartbeat"),
    ("gateway", "wherry.auth.revoked"),
    ("gateway", "$JS.API.STREAM.PURGE.WHERRY_JOBS"),
    ("watcher", "wherry.feed.o1.j1.created"),
    ("watcher", "wherry.job.o1.j1.created"),
    ("watcher", "wherry.storage.ping"),
    ("storage", "wherry.job.o1.j1.succeeded"),
    ("storage", "wherry.delivery.o1.j1.tried"),
    ("storage", "$JS.API.CONSUMER.MSG.NEXT.WHERRY_JOBS.notifier"),
    ("storage", "$JS.API.STREAM.DELETE.WHERRY_JOBS"),
    ("storage", "wherry.leader.main"),
    ("notifier", "wherry.job.o1.j1.succeeded"),
    ("notifier", "wherry.storage.users.list"),
    ("notifier", "$JS.API.CONSUMER.MSG.NEXT.WHERRY_NOTIFY.storage-delivery"),
    ("notifier", "wherry.snapshot.1.0"),
    ("scheduler", "wherry.attempt.n1.j1.finished"),
    ("scheduler", "wherry.delivery.o1.j1.requested"),
    ("scheduler", "wherry.auth.revoked"),
    ("scheduler", "$JS.API.STREAM.PURGE.WHERRY_JOBS"),
    ("scheduler", "$JS.API.STREAM.PURGE.WHERRY_SNAPSHOT"),
    ("scheduler", "$JS.API.STREAM.DELETE.WHERRY_SNAPSHOT"),
]


@pytest.mark.parametrize(("user", "subject"), PUBLISH_REFUSED)
async def test_a_user_may_not_publish_what_is_not_its_own(broker: NatsServer, user: str, subject: str):
    problems: asyncio.Queue[str] = asyncio.Queue()
    async with connect(broker, "operator") as operator, connect(broker, user, problems) as client:
        before = await contents(operator)
        await client.publish(subject, b"{}")
        async with asyncio.timeout(20):
            assert "permissions violation for publish" in await problems.get()
        assert await contents(operator) == before


SUBSCRIBE_REFUSED = [
    *[(user.name, subject) for user in users(NODES) if user.subscribe for subject in (">", "_INBOX.>", "$SYS.>")],
    ("node-n1", "wherry.node.n2.wake"),
    ("node-n1", "wherry.node.*.wake"),
    ("node-n1", "_INBOX.node-n2.>"),
    ("node-n1", "wherry.feed.>"),
    ("node-n1", "wherry.serve.n2.*"),
    ("node-n1", "wherry.serve.*.*"),
    ("gateway", "wherry.serve.*.*"),
    ("watcher", "wherry.serve.*.*"),
    ("gateway", "wherry.job.>"),
    ("gateway", "wherry.node.*.heartbeat"),
    ("gateway", "wherry.storage.auth.login"),
    ("watcher", "wherry.tail.>"),
    ("watcher", "wherry.auth.revoked"),
    ("watcher", "_INBOX.gateway.>"),
    ("storage", "wherry.node.*.heartbeat"),
    ("storage", "_INBOX.scheduler.>"),
    ("scheduler", "wherry.storage.auth.login"),
    ("notifier", "wherry.storage.secrets.get"),
]


@pytest.mark.parametrize(("user", "subject"), SUBSCRIBE_REFUSED)
async def test_a_user_may_not_hear_what_is_not_its_own(broker: NatsServer, user: str, subject: str):
    problems: asyncio.Queue[str] = asyncio.Queue()
    async with connect(broker, user, problems) as client:
        await client.subscribe(subject, cb=asyncio.Queue().put)
        async with asyncio.timeout(20):
            assert "permissions violation for subscription" in await problems.get()


VICTIMS = (
    "wherry.job.o1.victim.succeeded",
    "wherry.job.o1.victim.created",
    "wherry.attempt.n2.victim.finished",
    "wherry.request.o1.victim.cancel",
    "wherry.delivery.o1.victim.requested",
    "wherry.snapshot.9.0",
    "wherry.leader.main",
    "wherry.log.n2.victim.1",
    "wherry.node.n2.wake",
    "$JS.API.STREAM.PURGE.WHERRY_JOBS",
    "$JS.API.STREAM.DELETE.WHERRY_SNAPSHOT",
)


@asynccontextmanager
async def obedient_services(broker: NatsServer) -> AsyncIterator[None]:
    """Let scheduler and storage answer whatever they may hear, to whatever reply subject comes with it."""
    async with connect(broker, "scheduler") as scheduler, connect(broker, "storage") as storage:

        async def answer(message: Msg) -> None:
            if message.reply:
                await (scheduler if message.subject.endswith("heartbeat") else storage).publish(
                    message.reply, b'{"x":1}'
                )

        await scheduler.subscribe("wherry.node.*.heartbeat", cb=answer)
        for channel in CHANNELS:
            if channel.reply is not None and channel.name != "heartbeat":
                await storage.subscribe(channel.wildcard(), queue="storage", cb=answer)
        await settled(scheduler)
        await settled(storage)
        yield
        await scheduler.flush()
        await storage.flush()


@pytest.mark.parametrize("user", OUTSIDE, ids=lambda user: user.name)
async def test_a_forged_reply_subject_changes_nothing_in_any_stream(broker: NatsServer, user: Any):
    async with connect(broker, "operator") as operator, connect(broker, user.name) as thief:
        async with obedient_services(broker), listening(operator, "wherry.node.n2.wake") as woken:
            before = await contents(operator)
            mine = [subject.replace("*", "mine") for subject in user.publish]
            for subject in mine:
                for victim in VICTIMS:
                    await thief.publish(subject, b"{}", reply=victim)
            await thief.flush()
            with contextlib.suppress(nats.errors.Error):  # behind the forged ones in every queue
                await asyncio.gather(*(thief.request(subject, b"{}", timeout=20) for subject in mine))
        after = await contents(operator)
        assert woken.empty()
    for stream, subjects in after.items():
        changed = {subject for subject, count in subjects.items() if count != before[stream].get(subject, 0)}
        assert changed <= set(mine), f"{user.name} wrote into {stream}"
        assert set(before[stream]) <= set(subjects), f"{user.name} removed from {stream}"


async def test_a_forged_reply_inside_ctrl_is_refused_to_the_responder(broker: NatsServer):
    """The notifier asks storage with a stream's subject as reply: storage may not publish there."""
    async with connect(broker, "operator") as operator, connect(broker, "notifier") as notifier:
        async with obedient_services(broker):
            before = await contents(operator)
            for victim in VICTIMS:
                await notifier.publish("wherry.storage.secrets.get", b"{}", reply=victim)
            await notifier.request("wherry.storage.secrets.get", b"{}", timeout=20)
        assert await contents(operator) == before
