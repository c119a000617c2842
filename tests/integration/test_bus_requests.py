"""Requests and answers on a real server, and what the broker's refusals do."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from nats.errors import FlushTimeoutError

from infra.bootstrap import bootstrap
from shared import channels
from shared.bus import Bus, Raw, Record
from shared.channels import JOBS, Service
from shared.clock import utc_now
from shared.errors import Forbidden, NoAnswer, NotFound, Unavailable, WherryError
from shared.events import CancelRequested
from shared.model import Empty, Message
from shared.requests.accounts import Principal, TokenQuery
from shared.settings import ServiceSettings
from shared.wire import entry

ACCOUNTS = """
authorization {
  users = [
    { user: all, password: secret }
    { user: some, password: secret, permissions: {
        publish: ["wherry.storage.ping", "wherry.request.o1.>", "$JS.API.STREAM.INFO.WHERRY_JOBS", "_INBOX.>"]
        subscribe: ["_INBOX.some.>", "wherry.storage.>"] } }
    { user: deaf, password: secret, permissions: { publish: [">"], subscribe: ["wherry.>"] } }
  ]
}
"""


def settings(server, user: str = "", password: str = "secret", **more) -> ServiceSettings:
    return ServiceSettings(nats_url=server.url, nats_user=user, nats_password=password if user else "", **more)


@pytest.fixture
async def bus(nats_server) -> AsyncIterator[Bus]:
    async with Bus.connect(settings(nats_server), Service.STORAGE) as connected:
        yield connected


@pytest.fixture
async def walled(start_nats):
    """A server with permissions, its streams set up."""
    server = start_nats(accounts=ACCOUNTS)
    async with Bus.connect(settings(server, "all"), Service.STORAGE) as operator:
        await bootstrap(operator)
    return server


def request(bus: Bus, owner: str) -> Record:
    event = bus.event(channels.CANCEL_REQUESTED, CancelRequested(by="u1", at=utc_now()), subject="j1")
    return Record(channels.CANCEL_REQUESTED, {"owner": owner, "job_id": "j1"}, event)


async def test_a_request_is_answered_with_its_model(bus):
    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        return Principal(user_id=query.token, name="Ada")

    await bus.serve(channels.VERIFY, verify, queue="storage")
    assert await bus.ask(channels.VERIFY, TokenQuery(token="t1")) == Principal(user_id="t1", name="Ada")


async def test_a_refusal_arrives_with_its_code_and_class(bus):
    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        if query.token == "late":
            raise WherryError("throttled", "Slowly.", retryable=True)
        raise NotFound("No such token.")

    await bus.serve(channels.VERIFY, verify, queue=None)
    with pytest.raises(NotFound, match="No such token"):
        await bus.ask(channels.VERIFY, TokenQuery(token="x"))
    with pytest.raises(WherryError) as refused:
        await bus.ask(channels.VERIFY, TokenQuery(token="late"))
    assert (refused.value.code, refused.value.retryable) == ("throttled", True)


async def test_a_handler_that_breaks_answers_internal_logs_why_and_serves_the_next(bus, caplog):
    caplog.set_level(logging.ERROR)

    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        if query.token == "bad":
            raise RuntimeError("the reason, for the log only")
        return Principal(user_id="u", name="n")

    await bus.serve(channels.VERIFY, verify, queue=None)
    with pytest.raises(WherryError) as broken:
        await bus.ask(channels.VERIFY, TokenQuery(token="bad"))
    assert broken.value.code == "internal"
    assert "the reason" not in broken.value.message
    assert "the reason, for the log only" in caplog.text
    assert (await bus.ask(channels.VERIFY, TokenQuery(token="ok"))).name == "n"


async def test_an_answer_above_the_servers_limit_is_told_as_a_fault_and_not_waited_for(bus, caplog):
    caplog.set_level(logging.ERROR)

    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        return Principal(user_id="u", name="n" * (2 * 1024 * 1024))

    await bus.serve(channels.VERIFY, verify, queue=None)
    with pytest.raises(WherryError) as broken:
        await bus.ask(channels.VERIFY, TokenQuery(token="t1"), timeout_s=30)
    assert broken.value.code == "internal"
    assert "2097" in caplog.text


async def test_a_body_that_is_not_the_message_is_refused_with_its_fields(bus):
    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        raise AssertionError("never called")

    await bus.serve(channels.VERIFY, verify, queue=None)
    with pytest.raises(WherryError) as refused:
        await bus.ask_raw(channels.VERIFY, b'{"tok": 1}', None)
    assert refused.value.code == "invalid"
    assert [problem.field for problem in refused.value.fields] == ["token"]


async def test_raw_bodies_and_raw_answers_travel_with_their_headers(bus):
    async def chunk(params: dict[str, str], raw: Raw) -> Raw:
        return Raw(raw.body[::-1], {"Wherry-Size": raw.headers["Wherry-Chunk"] + params["peer"]})

    await bus.serve(channels.BLOB_CHUNK, chunk, queue="storage")
    answer = await bus.ask_raw(channels.BLOB_CHUNK, b"\x00\x01\xff", {"Wherry-Chunk": "7"}, kind="gateway", peer="g1")
    assert answer.body == b"\xff\x01\x00"
    assert answer.headers["Wherry-Size"] == "7g1"


async def test_what_waits_for_its_turn_is_not_begun_once_the_bus_is_left(bus, nats_server):
    begun: list[str] = []
    some = asyncio.Event()

    async def verify(params: dict[str, str], query: TokenQuery) -> Principal:
        begun.append(query.token)
        some.set()
        return await asyncio.Future()

    async with Bus.connect(settings(nats_server), Service.STORAGE) as leaving:
        await leaving.serve(channels.VERIFY, verify, queue=None, concurrency=1)
        asking = [asyncio.create_task(bus.ask(channels.VERIFY, TokenQuery(token=one), timeout_s=1)) for one in "ab"]
        async with asyncio.timeout(60):
            await some.wait()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(one) for one in results] == [NoAnswer, NoAnswer]
    assert begun == ["a"]


async def test_nobody_there_is_unavailable_after_the_time_to_retry(bus):
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(Unavailable):
        await bus.ask(channels.PING, Empty(), retry_s=0.4)
    assert loop.time() - started < 20


async def test_a_service_that_comes_up_a_little_later_is_still_reached(bus):
    asking = asyncio.create_task(bus.ask(channels.PING, Empty(), retry_s=60))
    await asyncio.sleep(0.3)

    async def ping(params: dict[str, str], message: Message) -> None:
        return None

    await bus.serve(channels.PING, ping, queue="storage")
    assert await asking == Empty()


async def test_silence_is_unavailable_after_the_timeout(bus):
    async def ping(params: dict[str, str], message: Message) -> None:
        await asyncio.sleep(30)

    await bus.serve(channels.PING, ping, queue="storage")
    with pytest.raises(Unavailable):
        await bus.ask(channels.PING, Empty(), timeout_s=0.3)


async def test_no_more_handlers_run_at_a_time_than_are_allowed(bus):
    running = most = 0
    full = asyncio.Event()

    async def ping(params: dict[str, str], message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0.01)
        running -= 1

    await bus.serve(channels.PING, ping, queue="storage", concurrency=3)
    await asyncio.gather(*(bus.ask(channels.PING, Empty()) for _ in range(30)))
    assert most == 3


async def test_a_stopped_service_is_not_asked_any_more(bus):
    async def ping(params: dict[str, str], message: Message) -> None:
        return None

    handle = await bus.serve(channels.PING, ping, queue="storage")
    await bus.ask(channels.PING, Empty())
    await handle.stop()
    with pytest.raises(Unavailable):
        await bus.ask(channels.PING, Empty(), retry_s=0.2)


async def test_requests_go_on_after_a_restart_of_the_server(bus, nats_server):
    async def ping(params: dict[str, str], message: Message) -> None:
        return None

    await bus.serve(channels.PING, ping, queue="storage")
    await asyncio.to_thread(nats_server.kill)
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(60):
        while not bus.reconnects:  # what is asked on the lost connection, before that is noticed, may have been heard
            await asyncio.sleep(0.05)
    assert await bus.ask(channels.PING, Empty(), retry_s=60) == Empty()


async def test_a_flush_that_was_given_up_costs_no_connection(bus, nats_server):
    nats_server.pause()
    with pytest.raises(FlushTimeoutError):
        await bus._nc.flush(1)
    nats_server.resume()
    with pytest.raises(Unavailable):  # nobody serves it; what answers came before are heard by then
        await bus.ask(channels.PING, Empty(), retry_s=0)
    assert bus.is_connected
    assert bus.reconnects == 0


async def test_an_event_names_its_writer_and_its_type(nats_server):
    async with Bus.connect(settings(nats_server), Service.NODE_AGENT, peer="n1") as agent:
        data = CancelRequested(by="u1", at=utc_now())
        event = agent.event(channels.CANCEL_REQUESTED, data, subject="j1", causedby="e0", owner="o")
        assert (event.source, event.type, event.subject, event.causedby) == (
            "/wherry/node_agent/n1",
            "io.wherry.request.cancel.v1",
            "j1",
            "e0",
        )


# --- refusals of the broker ----------------------------------------------------------------------------------------


async def test_a_forbidden_record_is_refused_at_once(walled):
    async with Bus.connect(settings(walled, "some"), Service.GATEWAY) as bus:
        await bus.record(request(bus, "o1"))
        async with asyncio.timeout(60):
            with pytest.raises(Forbidden):
                await bus.record(request(bus, "O2"))
        assert await bus.stream_last_seq("WHERRY_JOBS") == 1


async def test_one_forbidden_entry_fails_its_batch_at_once(walled):
    async with Bus.connect(settings(walled, "some"), Service.GATEWAY) as bus:
        async with asyncio.timeout(60):
            with pytest.raises(Forbidden):
                await bus.write([entry(request(bus, owner)) for owner in ("o1", "o2", "o1")], JOBS)
        assert await bus.stream_last_seq("WHERRY_JOBS") == 0


async def test_a_forbidden_question_and_a_forbidden_ear_are_refused_at_once(walled):
    async with Bus.connect(settings(walled, "some"), Service.GATEWAY) as bus:
        async with asyncio.timeout(60):
            with pytest.raises(Forbidden):
                await bus.ask(channels.VERIFY, TokenQuery(token="t"))
            with pytest.raises(Forbidden):
                await bus.listen(channels.JOB_FEED, print)
            with pytest.raises(Forbidden):
                await anext(bus.follow("WHERRY_JOBS", ["wherry.job.>"], start_seq=1))
            with pytest.raises(Forbidden):
                await anext(bus.consume("WHERRY_JOBS", "storage"))


async def test_a_credential_without_its_own_inbox_cannot_connect(walled):
    with pytest.raises(Forbidden):
        async with asyncio.timeout(30), Bus.connect(settings(walled, "deaf"), Service.GATEWAY):
            pass


async def test_a_wrong_password_is_refused_at_once(walled):
    with pytest.raises(Forbidden):
        async with asyncio.timeout(30), Bus.connect(settings(walled, "some", "wrong"), Service.GATEWAY):
            pass


async def test_a_credential_that_is_taken_away_closes_the_bus_for_good(walled):
    async with Bus.connect(settings(walled, "some"), Service.GATEWAY) as bus:
        assert not bus.closed.is_set()
        await asyncio.to_thread(walled.stop)
        walled.process.accounts = ACCOUNTS.replace("user: some, password: secret", "user: some, password: other")
        await asyncio.to_thread(walled.start)
        async with asyncio.timeout(60):
            await bus.closed.wait()
        with pytest.raises(Unavailable):
            await bus.record(request(bus, "o1"))


async def test_leaving_a_bus_does_not_look_like_losing_it(nats_server):
    async with Bus.connect(settings(nats_server), Service.GATEWAY) as bus:
        assert bus.is_connected
    assert not bus.closed.is_set()
    assert not bus.is_connected
    with pytest.raises(Unavailable):
        await bus.ask(channels.PING, Empty(), retry_s=0.2)


async def test_connecting_waits_for_the_server(nats_server):
    nats_server.stop()

    async def connect() -> bool:
        async with Bus.connect(settings(nats_server), Service.GATEWAY) as bus:
            return bus.is_connected

    connecting = asyncio.create_task(connect())
    await asyncio.sleep(0.3)
    assert not connecting.done()
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(60):
        assert await connecting
