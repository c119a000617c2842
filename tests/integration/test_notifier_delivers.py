"""The notifier as a process of its own, on a real broker, with a real mail server and a real HTTP receiver."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import nats
import pytest
from aiohttp import web
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from pydantic import SecretStr
from standardwebhooks import Webhook

from infra.bootstrap import bootstrap
from infra.local.ports import free_port
from infra.local.servers import NatsServer
from services.notifier.shell import WAITING_PER_HOST
from shared.bus import Bus
from shared.channels import JOB_CHANGED, SECRET_GET, TELL, Service
from shared.clock import utc_now
from shared.errors import Unavailable, WherryError
from shared.events import DeadLetter, DeliveryRequested, DeliveryTried, Event, JobChanged, Notice
from shared.ids import new_id
from shared.job import Failure, Job, Owner
from shared.permissions import accounts_config, users
from shared.requests.accounts import SecretRef, SecretValue
from shared.settings import ServiceSettings
from shared.spec import JobSpec
from shared.states import EndReason, JobState
from shared.wire import Record

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {user.name: f"password-of-{user.name}" for user in users(())}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[NatsServer]:
    with NatsServer(folder, accounts_config(PASSWORDS, ()), sync_always=False) as server:
        asyncio.run(_set_up(server))
        yield server


async def _set_up(server: NatsServer) -> None:
    settings = ServiceSettings(
        nats_url=server.url, nats_user="operator", nats_password=SecretStr(PASSWORDS["operator"])
    )
    async with Bus.connect(settings, Service.STORAGE, purpose="set-up") as connected:
        await bootstrap(connected)


@asynccontextmanager
async def operator(server: NatsServer) -> AsyncIterator[Any]:
    client = await nats.connect(server.url, user="operator", password=PASSWORDS["operator"])
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def bus(server: NatsServer, service: Service) -> AsyncIterator[Bus]:
    settings = ServiceSettings(
        nats_url=server.url, nats_user=service.value, nats_password=SecretStr(PASSWORDS[service.value])
    )
    async with Bus.connect(settings, service) as connected:
        yield connected


@dataclass
class Receiver:
    """A webhook receiver that answers as it is told; 200 when nothing is left to say."""

    answers: dict[str, list[int]] = field(default_factory=dict)
    calls: asyncio.Queue[tuple[str, dict[str, str], bytes]] = field(default_factory=asyncio.Queue)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        await self.calls.put((request.path, {k.lower(): v for k, v in request.headers.items()}, body))
        if request.path.startswith("/slow"):
            await self.holding.wait()
        rest = self.answers.get(request.path, [])
        return web.Response(status=rest.pop(0) if rest else 200, headers={"Location": "http://127.0.0.1:1/"})

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


class Mailbox:
    def __init__(self) -> None:
        self.mails: asyncio.Queue[EmailMessage] = asyncio.Queue()
        self.refuse: dict[str, list[str]] = {}
        self._loop = asyncio.get_running_loop()

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any):  # noqa: N802
        rest = self.refuse.get(address, [])
        if rest:
            return rest.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        mail = message_from_bytes(bytes(envelope.content or b""), policy=policy.default)
        self._loop.call_soon_threadsafe(self.mails.put_nowait, mail)
        return "250 kept"


@dataclass
class World:
    server: NatsServer
    scheduler: Bus
    receiver: Receiver
    mailbox: Mailbox
    tries: asyncio.Queue[DeliveryTried]
    env: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    log: asyncio.Task[bytes] | None = None
    jobs: set[str] = field(default_factory=set)
    storage: Bus | None = None
    refusals: list[str] = field(default_factory=list)  # what storage says instead of giving the secret, once each

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.notifier", cwd=ROOT, env=self.env, stderr=asyncio.subprocess.PIPE
        )
        assert self.process.stderr
        self.log = asyncio.create_task(self.process.stderr.read())  # all the time: a pipe that is full would stop it

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        assert self.log
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code, log = await self.process.wait(), await self.log
        assert b"Traceback" not in log, log.decode()
        return code

    async def end_job(self, *notify: dict[str, Any], state: JobState = JobState.SUCCEEDED) -> Event[JobChanged]:
        now = utc_now()
        job = Job(
            id=new_id("j"),
            owner=Owner(id="u1", name="ann"),
            spec=JobSpec.model_validate({"name": "train", "image": "x", "notify": notify}),
            state=state,
            created_at=now,
            updated_at=now,
            ended_at=now,
            error=None if state is JobState.SUCCEEDED else Failure(reason=EndReason.OOM, message="out of memory"),
        )
        params = {"owner": "u1", "job_id": job.id, "event": state.value}
        event = self.scheduler.event(JOB_CHANGED, JobChanged(job=job), subject=job.id, **params)
        self.jobs.add(job.id)
        await self.scheduler.record(Record(JOB_CHANGED, params, event))
        return event

    async def tried(self) -> DeliveryTried:
        """Return the next try for one of this test's jobs: retries of an earlier test's may still come."""
        async with asyncio.timeout(120):
            while (tried := await self.tries.get()).job_id not in self.jobs:
                pass
        return tried


@pytest.fixture
async def world(broker: NatsServer) -> AsyncIterator[World]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    mailbox = Mailbox()
    smtp_port = free_port()
    mail = Controller(mailbox, hostname="127.0.0.1", port=smtp_port, ready_timeout=60)
    mail.start()
    env = {
        **os.environ,
        "WHERRY_NATS_URL": broker.url,
        "WHERRY_NATS_USER": "notifier",
        "WHERRY_NATS_PASSWORD": PASSWORDS["notifier"],
        "WHERRY_SMTP_HOST": "127.0.0.1",
        "WHERRY_SMTP_PORT": str(smtp_port),
        "WHERRY_MAIL_FROM": "wherry@example.org",
        "WHERRY_WEBHOOK_ALLOW": f"127.0.0.1:{receiver.port}",
        "WHERRY_PUBLIC_URL": "https://wherry.example.org",
        "WHERRY_WEBHOOK_TIMEOUT_S": "30",  # a held call must not fail by itself on a busy machine
    }

    refusals: list[str] = []

    async def secret(_params: object, asked: SecretRef) -> SecretValue:
        assert asked.owner_id == "u1"
        if refusals:
            raise Unavailable(refusals.pop())
        return SecretValue(value=SECRET)

    async with bus(broker, Service.SCHEDULER) as scheduler, bus(broker, Service.STORAGE) as storage:
        await storage.serve(SECRET_GET, secret, queue="storage")
        async with operator(broker) as client:
            tries: asyncio.Queue[DeliveryTried] = asyncio.Queue()

            async def note(message: Any) -> None:
                await tries.put(Event[DeliveryTried].from_bytes(message.data).data)

            await client.subscribe("wherry.delivery.*.*.tried", cb=note)
            await client.flush()
            world = World(broker, scheduler, receiver, mailbox, tries, env, storage=storage, refusals=refusals)
            await world.start()
            try:
                yield world
            finally:
                receiver.holding.set()
                if world.process and world.process.returncode is None:
                    await world.stop(signal.SIGKILL)
                mail.stop()
                await runner.cleanup()


async def test_email_and_webhook_of_an_end_arrive_once_each_and_the_signature_verifies(world: World):
    event = await world.end_job(
        {"email": "ann@example.org"}, {"webhook": {"url": world.receiver.url("/ok")}}, state=JobState.FAILED
    )
    async with asyncio.timeout(120):
        path, headers, body = await world.receiver.calls.get()
    async with asyncio.timeout(120):
        mail = await world.mailbox.mails.get()
    tries = {(tried.state, tried.tries) for tried in (await world.tried(), await world.tried())}
    assert tries == {("delivered", 1)}

    assert path == "/ok"
    told = Webhook(SECRET).verify(body, headers)
    assert (told["type"], told["id"], told["subject"]) == ("io.wherry.job.failed.v1", event.id, event.subject)
    assert told["data"]["error"] == {"reason": "oom", "message": "out of memory"}
    assert mail["To"] == "ann@example.org"
    assert mail["Subject"] == "[wherry] train failed"
    assert "out of memory" in mail.get_content()
    assert await world.stop() == 0
    assert world.receiver.calls.empty()
    assert world.mailbox.mails.empty()


async def test_a_receiver_that_fails_gets_the_same_message_again_under_the_same_id(world: World):
    world.receiver.answers["/flaky"] = [500]
    await world.end_job({"webhook": {"url": world.receiver.url("/flaky")}})
    async with asyncio.timeout(120):
        _, first, body = await world.receiver.calls.get()
    told = await world.tried()
    assert (told.state, told.tries) == ("retrying", 1)
    assert told.next_at is not None
    assert 5 <= (told.next_at - told.at).total_seconds() <= 6
    async with asyncio.timeout(120):
        _, second, again = await world.receiver.calls.get()
    assert first["webhook-id"] == second["webhook-id"] == told.delivery_id
    assert body == again
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    done = await world.tried()
    assert (done.state, done.tries) == ("delivered", 2)


async def test_what_is_no_jobs_end_is_told_once_however_often_storage_asks_for_it(world: World):
    assert world.storage
    request = DeliveryRequested(
        delivery_id=new_id("d"), job_id=new_id("q"), owner_id="u1", event_id=new_id("q"), event="fine_tune_requested",
        kind="email", target="expert@example.org", at=utc_now(),
        notice=Notice(title="A better model\nis wanted", text="Please.", topic="model.fine_tune_requested"),
    )  # fmt: skip
    world.jobs.add(request.job_id)
    for _ in range(2):
        await world.storage.ask(TELL, request, retry_s=120)
    async with asyncio.timeout(120):
        mail = await world.mailbox.mails.get()
    assert (mail["To"], mail["Subject"]) == ("expert@example.org", "[wherry] A better model is wanted")
    assert "Please." in mail.get_content()
    assert (await world.tried()).state == "delivered"
    assert await world.stop() == 0
    assert world.mailbox.mails.empty()
    unknown = request.model_copy(update={"kind": "pigeon"})
    await world.start()
    with pytest.raises(WherryError, match="pigeon"):
        await world.storage.ask(TELL, unknown, retry_s=120)


async def test_storage_that_cannot_give_the_secret_costs_the_receiver_none_of_its_tries(world: World):
    world.refusals += ["not now"] * 3
    await world.end_job({"webhook": {"url": world.receiver.url("/patient")}})
    async with asyncio.timeout(120):
        assert (await world.receiver.calls.get())[0] == "/patient"
    done = await world.tried()
    assert (done.state, done.tries) == ("delivered", 1)
    assert world.refusals == []


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.TIMED_OUT])
async def test_a_receiver_that_is_gone_is_not_asked_again(world: World, state: JobState):
    world.receiver.answers["/gone"] = [410]
    await world.end_job({"webhook": {"url": world.receiver.url("/gone")}}, state=state)
    told = await world.tried()
    assert (told.state, told.next_at) == ("given_up", None)
    assert "410" in told.detail


async def test_a_redirect_is_a_failure_and_is_not_followed(world: World):
    world.receiver.answers["/moved"] = [302]
    await world.end_job({"webhook": {"url": world.receiver.url("/moved")}})
    told = await world.tried()
    assert told.state == "retrying"
    assert "redirects are not followed" in told.detail


async def test_an_address_that_nobody_named_is_not_called(world: World):
    async with bus(world.server, Service.SCHEDULER):
        await world.end_job({"webhook": {"url": "http://127.0.0.1:9/"}})
    told = await world.tried()
    assert told.state == "given_up"
    assert "only https" in told.detail


async def test_a_slow_receiver_does_not_hold_up_the_others(world: World):
    slow = {"webhook": {"url": world.receiver.url("/slow")}}
    await asyncio.gather(*(world.end_job(slow) for _ in range(WAITING_PER_HOST + 50)))
    await world.end_job({"email": "ann@example.org"})
    async with asyncio.timeout(120):
        mail = await world.mailbox.mails.get()
    assert mail["To"] == "ann@example.org"
    assert not world.receiver.holding.is_set()
    world.receiver.holding.set()
    ends = [await world.tried() for _ in range(WAITING_PER_HOST + 51)]
    odd = [(tried.state, tried.tries, tried.detail) for tried in ends if (tried.state, tried.tries) != ("delivered", 1)]
    assert odd == [], "waiting is no try"
    assert len({tried.delivery_id for tried in ends}) == len(ends)


async def test_a_mailbox_that_does_not_exist_is_given_up_and_one_that_is_busy_is_tried_again(world: World):
    world.mailbox.refuse = {"no@example.org": ["550 no such user"], "busy@example.org": ["451 later"]}
    await world.end_job({"email": "no@example.org"})
    gone = await world.tried()
    await world.end_job({"email": "busy@example.org"})
    busy = await world.tried()
    assert (gone.state, busy.state) == ("given_up", "retrying")
    assert "no such user" in gone.detail
    assert busy.next_at is not None
    assert 60 <= (busy.next_at - busy.at).total_seconds() <= 72


async def test_what_was_under_way_when_the_notifier_died_is_delivered_by_the_next_one(world: World):
    assert world.process
    await world.end_job({"webhook": {"url": world.receiver.url("/ok")}})
    await world.tried()
    async with asyncio.timeout(120):
        await world.receiver.calls.get()
    await world.stop(signal.SIGKILL)
    event = await world.end_job({"webhook": {"url": world.receiver.url("/ok")}})
    await world.start()
    async with asyncio.timeout(120):
        _, _, body = await world.receiver.calls.get()
    assert json.loads(body)["id"] == event.id
    assert (await world.tried()).state == "delivered"


async def test_what_cannot_be_read_becomes_a_dead_letter_and_a_replayed_end_is_told(world):
    async with operator(world.server) as client:
        letters: asyncio.Queue[DeadLetter] = asyncio.Queue()

        async def note(message: Any) -> None:
            await letters.put(Event[DeadLetter].from_bytes(message.data).data)

        await client.subscribe("wherry.dlq.notifier", cb=note)
        stream = client.jetstream(timeout=60)
        for number in range(100):
            await stream.publish(f"wherry.job.u1.jbroken{number}.succeeded", b"no event")
        await stream.publish("wherry.delivery.u1.jbroken.requested", b"no delivery")
        await world.end_job({"webhook": {"url": world.receiver.url("/after")}})
        assert (await world.tried()).state == "delivered"  # nobody waited
        async with asyncio.timeout(120):
            kept = [await letters.get() for _ in range(101)]
        assert {(one.stream, one.reader) for one in kept} == {
            ("WHERRY_JOBS", "notifier"),
            ("WHERRY_NOTIFY", "notifier"),
        }
        assert len({one.id for one in kept}) == 101
        # Once the reader can read it: the same letter with a body that it understands.
        event = await world.end_job({"webhook": {"url": world.receiver.url("/again")}})
        assert (await world.tried()).state == "delivered"
        job = event.data.job
        other = event.model_copy(update={"id": new_id("e")})
        letter = kept[0].model_copy(
            update={
                "target": f"wherry.job.u1.{job.id}.succeeded",
                "body": base64.b64encode(other.to_bytes()).decode(),
            }
        )
        await client.publish("wherry.replay.notifier", letter.to_bytes())
        assert (await world.tried()).state == "delivered"
        assert [(await world.receiver.calls.get())[0] for _ in range(3)] == ["/after", "/again", "/again"]
