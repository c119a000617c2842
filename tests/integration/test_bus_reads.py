"""Reading streams on a real server: in order, without gaps, and settled by hand."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from infra.bootstrap import bootstrap
from shared import channels
from shared.bus import Bus, Received, Record, readers
from shared.bus.answers import Unanswered
from shared.bus.connection import Mailbox
from shared.channels import JOBS, Service
from shared.clock import utc_now
from shared.errors import NotFound
from shared.events import CancelRequested, OutputBatch
from shared.settings import ServiceSettings

DURABLE = "storage-delivery"  # of WHERRY_NOTIFY, which takes any body here


@pytest.fixture
async def bus(nats_server) -> AsyncIterator[Bus]:
    async with Bus.connect(ServiceSettings(nats_url=nats_server.url), Service.STORAGE) as connected:
        await bootstrap(connected)
        yield connected


def request(bus: Bus, job: str) -> Record:
    event = bus.event(channels.CANCEL_REQUESTED, CancelRequested(by="u1", at=utc_now()), subject=job)
    return Record(channels.CANCEL_REQUESTED, {"owner": "o1", "job_id": job}, event)


async def write(bus: Bus, first: int, last: int) -> None:
    for begin in range(first, last, 400):
        records = [request(bus, f"j{i}") for i in range(begin, min(last, begin + 400))]
        await asyncio.gather(*(bus.record_grouped(record) for record in records))


async def test_following_gives_what_was_there_then_an_empty_list_then_what_comes(bus):
    await write(bus, 0, 1000)
    seqs: list[int] = []
    lists = 0
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.request.>"], start_seq=1):
            assert len(messages) <= 500
            lists += not messages
            seqs += [message.seq for message in messages]
            if not messages:
                assert seqs == list(range(1, 1001))
                await write(bus, 1000, 1010)
            if len(seqs) == 1010:
                break
    assert seqs == list(range(1, 1011))
    assert lists == 1


async def test_following_begins_where_it_is_told_and_keeps_to_its_filters(bus):
    await write(bus, 0, 10)
    await bus.put("wherry.attempt.n1.j1.running", b"{}")
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.request.o1.j3.>", "wherry.attempt.>"], start_seq=5):
            assert [(message.seq, message.subject) for message in messages] == [(11, "wherry.attempt.n1.j1.running")]
            break


async def test_an_empty_stream_is_caught_up_at_once(bus):
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.job.>"], start_seq=77):
            assert messages == []
            break


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_following_goes_over_a_restart_without_gap_or_repetition(bus, nats_server, end):
    seqs: list[int] = []
    some = asyncio.Event()

    async def read() -> None:
        async for messages in bus.follow(JOBS, ["wherry.request.>"], start_seq=1):
            seqs.extend(message.seq for message in messages)
            if len(seqs) >= 500:
                some.set()
            if len(seqs) >= 3000:
                return

    await write(bus, 0, 1000)
    reader = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await some.wait()
    await asyncio.to_thread(getattr(nats_server, end))
    await asyncio.to_thread(nats_server.start)
    await write(bus, 1000, 3000)
    async with asyncio.timeout(60):
        await reader
    assert seqs == list(range(1, 3001))


async def test_who_asks_for_a_consumer_twice_is_not_caught_up_before_it_has_read_what_was_there(bus, monkeypatch):
    await write(bus, 0, 400)
    whole, asked = bus._call, 0

    async def loses_the_first_answer(subject, *args, **kwargs):
        nonlocal asked
        answer = await whole(subject, *args, **kwargs)
        if ".CONSUMER.CREATE." in subject and not asked:
            asked += 1
            async with asyncio.timeout(60):  # what is there has been sent, and waits
                while any(mailbox._arrived.qsize() < 400 for mailbox in bus._mailboxes):
                    await asyncio.sleep(0.02)
            raise Unanswered("dropped by the test", sent=True)
        return answer

    monkeypatch.setattr(bus, "_call", loses_the_first_answer)
    lists: list[int] = []
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.request.>"], start_seq=1):
            lists.append(len(messages))
            if not messages:
                break
    assert asked == 1
    assert sum(lists) == 400


async def test_following_makes_its_consumer_anew_when_somebody_removes_it(bus):
    seqs: list[int] = []
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.request.>"], start_seq=1):
            seqs += [message.seq for message in messages]
            if not messages:
                listed = (await bus.api(f"CONSUMER.LIST.{JOBS}", {}))["consumers"]
                [name] = [consumer["name"] for consumer in listed if "durable_name" not in consumer["config"]]
                await bus.api(f"CONSUMER.DELETE.{JOBS}.{name}", {})
                await write(bus, 0, 3)
            if len(seqs) == 3:
                break
    assert seqs == [1, 2, 3]


async def test_a_message_missed_on_the_way_is_read_again_in_its_place(bus, monkeypatch):
    await write(bus, 0, 50)
    take, seen = Mailbox.take, 0

    async def lossy(mailbox, message) -> None:
        nonlocal seen
        seen += 1
        if seen != 10:  # the tenth is lost between the socket and the reader
            await take(mailbox, message)

    monkeypatch.setattr(Mailbox, "take", lossy)
    seqs: list[int] = []
    async with asyncio.timeout(60):
        async for messages in bus.follow(JOBS, ["wherry.request.>"], start_seq=1):
            seqs += [message.seq for message in messages]
            if not messages:
                break
    assert seqs == list(range(1, 51))
    assert seen > 50


async def test_a_reader_that_stops_leaves_no_consumer_behind(bus):
    stream = bus.follow(JOBS, ["wherry.request.>"], start_seq=1)
    assert await anext(stream) == []
    await stream.aclose()
    names = (await bus.api(f"CONSUMER.NAMES.{JOBS}", {}))["consumers"]
    assert sorted(names) == ["notifier", "storage"]


async def taken(bus: Bus, count: int) -> list[Received]:
    """Take messages until there are *count* different ones: until it is settled, each may come again."""
    found: list[Received] = []
    async with asyncio.timeout(60):
        async for messages in bus.consume("WHERRY_NOTIFY", DURABLE, wait_s=1):
            assert messages
            found += messages
            if len({one.seq for one in found}) >= count:
                return found
    raise AssertionError("consume never ends")


async def test_what_is_acknowledged_does_not_come_again_and_what_is_not_does(bus):
    for i in range(4):
        await bus.put(f"wherry.delivery.o.j{i}.requested", b"%d" % i)
    ack, nak, later, last = await taken(bus, 4)
    assert [one.body for one in (ack, nak, later, last)] == [b"0", b"1", b"2", b"3"]
    assert (ack.num_delivered, ack.seq) == (1, 1)
    await ack.ack_sync()
    await nak.nak()
    await later.nak(0.5)
    await last.ack()
    again = await taken(bus, 2)
    assert [(one.body, one.num_delivered) for one in again] == [(b"1", 2), (b"2", 2)]
    for one in again:
        await one.ack_sync()
    info = await bus.api(f"CONSUMER.INFO.WHERRY_NOTIFY.{DURABLE}", {})
    assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)


async def test_an_unreadable_message_arrives_with_its_problem(bus):
    await bus.put("wherry.delivery.o.j1.requested", b"not json")
    [message] = await taken(bus, 1)
    assert message.channel is channels.DELIVERY_REQUESTED
    assert message.event is None
    assert "JSON" in (message.problem or "")


async def test_consuming_goes_over_a_crash_of_the_server(bus, nats_server):
    reader = asyncio.create_task(taken(bus, 30))
    for i in range(10):
        await bus.put(f"wherry.delivery.o.j{i}.tried", b"%d" % i)
    await asyncio.to_thread(nats_server.kill)
    await asyncio.to_thread(nats_server.start)
    for i in range(10, 30):
        await bus.put(f"wherry.delivery.o.j{i}.tried", b"%d" % i, deadline_s=60)
    assert {one.body for one in await reader} == {b"%d" % i for i in range(30)}


async def test_consuming_without_its_consumer_asks_rarely_and_goes_on_when_it_is_back(bus, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(readers, "_GONE_S", 60.0)  # it is back before that
    consumer = (await bus.api(f"CONSUMER.INFO.WHERRY_NOTIFY.{DURABLE}", {}))["config"]
    await bus.api(f"CONSUMER.DELETE.WHERRY_NOTIFY.{DURABLE}", {})
    reader = asyncio.create_task(taken(bus, 1))

    def failures() -> int:
        return sum("consume_failed" in str(record.msg) for record in caplog.records)

    async with asyncio.timeout(60):
        while not failures():
            await asyncio.sleep(0.05)
    began, before = time.monotonic(), failures()
    await asyncio.sleep(1.5)
    assert failures() - before <= 5 * (time.monotonic() - began)
    await bus.api(
        f"CONSUMER.DURABLE.CREATE.WHERRY_NOTIFY.{DURABLE}", {"stream_name": "WHERRY_NOTIFY", "config": consumer}
    )
    await bus.put("wherry.delivery.o.j1.requested", b"x")
    assert [one.body for one in await reader] == [b"x"]


async def test_a_consumer_that_was_away_for_a_moment_may_be_so_again_much_later(bus, monkeypatch):
    missing = readers.Missing()
    monkeypatch.setattr(readers, "Missing", lambda: missing)
    consumer = (await bus.api(f"CONSUMER.INFO.WHERRY_NOTIFY.{DURABLE}", {}))["config"]
    await bus.api(f"CONSUMER.DELETE.WHERRY_NOTIFY.{DURABLE}", {})
    reader = asyncio.create_task(taken(bus, 1))
    async with asyncio.timeout(60):
        while missing._since is None:
            await asyncio.sleep(0.05)
    await bus.api(
        f"CONSUMER.DURABLE.CREATE.WHERRY_NOTIFY.{DURABLE}", {"stream_name": "WHERRY_NOTIFY", "config": consumer}
    )
    async with asyncio.timeout(60):
        while missing._since is not None:  # also where nothing is to be read
            await asyncio.sleep(0.05)
    await bus.put("wherry.delivery.o.j1.requested", b"x")
    assert [one.body for one in await reader] == [b"x"]


async def test_reading_ends_when_the_stream_or_the_consumer_stays_away(bus, monkeypatch):
    monkeypatch.setattr(readers, "_GONE_S", 1.0)
    followed = bus.follow(JOBS, ["wherry.request.>"], start_seq=1)
    assert await anext(followed) == []
    consumed = asyncio.create_task(taken(bus, 1))
    await bus.api(f"STREAM.DELETE.{JOBS}", {})
    await bus.api(f"CONSUMER.DELETE.WHERRY_NOTIFY.{DURABLE}", {})
    async with asyncio.timeout(60):
        with pytest.raises(NotFound, match=r"CONSUMER\.CREATE\.WHERRY_JOBS"):
            await anext(followed)
        with pytest.raises(NotFound, match=rf"CONSUMER\.INFO\.WHERRY_NOTIFY\.{DURABLE}"):
            await consumed


async def test_the_feed_has_the_events_that_the_stream_took_with_their_sequence(bus):
    heard: asyncio.Queue[Received] = asyncio.Queue()
    handle = await bus.listen(channels.OUTPUT_FEED, heard.put, node_id="n1")
    await bus.publish(channels.OUTPUT, OutputBatch(), node_id="n2", job_id="j", attempt="1")
    await bus.publish(channels.OUTPUT, OutputBatch(), node_id="n1", job_id="j", attempt="1")
    async with asyncio.timeout(60):
        message = await heard.get()
    assert (message.params, message.seq, message.data) == (
        {"node_id": "n1", "job_id": "j", "attempt": "1"},
        2,
        OutputBatch(),
    )
    await handle.stop()
    assert heard.empty()


async def test_whoever_is_cancelled_while_it_begins_to_listen_leaves_no_subscription(bus, monkeypatch):
    before, begun = len(bus._nc._subs), asyncio.Event()

    async def no_answer() -> None:
        begun.set()
        await asyncio.Future()

    monkeypatch.setattr(bus, "_flush_surely", no_answer)
    listening = asyncio.create_task(bus.listen(channels.OUTPUT_FEED, print))
    async with asyncio.timeout(60):
        await begun.wait()
    listening.cancel()
    await asyncio.wait([listening])
    assert listening.cancelled()
    assert len(bus._nc._subs) == before


async def test_a_listener_that_fails_hears_the_next_message(bus, caplog):
    caplog.set_level(logging.ERROR)
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listener(message: Received) -> None:
        if message.params["attempt"] == "1":
            raise RuntimeError("boom")
        await heard.put(message.params["attempt"])

    await bus.listen(channels.OUTPUT_FEED, listener)
    for attempt in ("1", "2"):
        await bus.publish(channels.OUTPUT, OutputBatch(), node_id="n", job_id="j", attempt=attempt)
    async with asyncio.timeout(60):
        assert await heard.get() == "2"
    assert "listener_failed" in caplog.text


async def test_single_messages_are_read_by_sequence_and_missing_ones_are_none(bus):
    stored = await bus.record(request(bus, "j1"))
    found = await bus.read(JOBS, stored.seq)
    assert found is not None
    assert (found.seq, found.params["job_id"]) == (stored.seq, "j1")
    assert found.time is not None
    assert await bus.read(JOBS, 99) is None
    assert await bus.last(JOBS, "wherry.request.*.nobody.>") is None
    with pytest.raises(NotFound):
        await bus.stream_last_seq("WHERRY_NOTHING")


async def test_output_outlives_a_restart_of_a_lone_server(bus, nats_server):
    await bus.put("wherry.log.n.j.1", OutputBatch().to_bytes())
    await asyncio.to_thread(nats_server.stop)
    await asyncio.to_thread(nats_server.start)
    assert await bus.stream_last_seq("WHERRY_LOGS") == 1
    async for [message] in bus.consume("WHERRY_LOGS", "storage-log"):
        assert message.params["job_id"] == "j"
        break
