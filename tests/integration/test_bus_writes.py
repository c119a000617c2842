"""Durable writes on a real server: nothing lost, nothing twice, nobody wins who should not."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from infra.bootstrap import bootstrap
from shared import channels, wire
from shared.bus import Bus, Record, Stored, job_filter
from shared.bus.answers import Unanswered
from shared.channels import JOBS, LEADER, SNAPSHOT, Service
from shared.clock import utc_now
from shared.errors import Conflict, Unavailable, WherryError
from shared.events import CancelRequested
from shared.settings import ServiceSettings


@pytest.fixture
async def bus(nats_server) -> AsyncIterator[Bus]:
    async with Bus.connect(ServiceSettings(nats_url=nats_server.url), Service.GATEWAY) as connected:
        await bootstrap(connected)
        yield connected


def request(bus: Bus, job: str, expect: int | None = None) -> Record:
    """A record that any stream test can use; `expect` is about the requests of the job."""
    data = CancelRequested(by="u1", at=utc_now())
    event = bus.event(channels.CANCEL_REQUESTED, data, subject=job)
    mark = None if expect is None else (f"wherry.request.*.{job}.>", expect)
    return Record(channels.CANCEL_REQUESTED, {"owner": "o1", "job_id": job}, event, mark)


async def together(bus: Bus, records: list[Record]) -> list[Stored]:
    """Keep all of *records* or none, as what waits at the same moment is kept."""
    return await bus.write([wire.entry(one) for one in records], JOBS)


async def ids_on(bus: Bus, stream: str = JOBS) -> list[str]:
    """The message ids on the stream, in order."""
    found: list[str] = []
    async for messages in bus.follow(stream, [">"], start_seq=1):
        if not messages:
            break
        found += [(message.headers or {})["Nats-Msg-Id"] for message in messages]
    return found


class LostAnswers:
    """Between the bus and its connection: drops the answers to the next writes, as a cut line does."""

    def __init__(self, bus: Bus, times: int = 1) -> None:
        self.dropped = 0
        whole = bus._on_answer

        async def lossy(message) -> None:
            if self.dropped < times:
                self.dropped += 1
                call = bus._calls[message.subject.rpartition(".")[2]]
                call.answer.set_exception(Unanswered("dropped by the test", sent=True))
            else:
                await whole(message)

        bus._nc._subs[1]._cb = lossy


async def test_a_record_is_stored_with_its_id_and_read_back_as_its_event(bus):
    record = request(bus, "j1")
    stored = await bus.record(record)
    found = await bus.last(JOBS, "wherry.request.*.j1.>")
    assert found is not None
    assert (found.seq, found.event, found.params) == (stored.seq, record.event, {"owner": "o1", "job_id": "j1"})
    assert found.channel is channels.CANCEL_REQUESTED
    assert found.data == record.event.data
    assert await bus.stream_last_seq(JOBS) == stored.seq


async def test_the_same_record_twice_is_stored_once(bus):
    record = request(bus, "j1")
    first, second = await bus.record(record), await bus.record(record)
    assert (second.seq, second.duplicate) == (first.seq, True)
    assert await bus.stream_last_seq(JOBS) == first.seq


async def test_of_two_writers_that_expect_the_same_one_gets_a_conflict(bus):
    await bus.record(request(bus, "j1", expect=0))
    with pytest.raises(Conflict):
        await bus.record(request(bus, "j1", expect=0))
    assert len(await ids_on(bus)) == 1


async def test_a_conditional_write_whose_answer_was_lost_is_known_as_ones_own(bus, monkeypatch):
    lost = LostAnswers(bus)
    record = request(bus, "j1", expect=0)
    stored = await bus.record(record)
    assert lost.dropped == 1
    assert stored.duplicate
    assert await ids_on(bus) == [record.event.id]
    assert await bus.stream_last_seq(JOBS) == stored.seq


async def test_ones_own_lost_write_is_found_even_when_somebody_wrote_after_it(bus, monkeypatch):
    LostAnswers(bus)
    record, later = request(bus, "j1", expect=0), request(bus, "j1", expect=1)
    whole = bus._try_write

    async def slow_second_try(entries, *args, suspect):
        if suspect and entries[0].headers["Nats-Msg-Id"] == record.event.id:
            await whole([wire.entry(later)], *args, suspect=False)
            monkeypatch.setattr(bus, "_try_write", whole)
        return await whole(entries, *args, suspect=suspect)

    monkeypatch.setattr(bus, "_try_write", slow_second_try)
    stored = await bus.record(record)
    assert (stored.seq, stored.duplicate) == (1, True)
    assert await ids_on(bus) == [record.event.id, later.event.id]


async def test_a_lost_answer_does_not_hide_that_somebody_else_had_written_first(bus, monkeypatch):
    await bus.record(request(bus, "j1"))
    LostAnswers(bus)
    with pytest.raises(Conflict):
        await bus.record(request(bus, "j1", expect=0))
    assert len(await ids_on(bus)) == 1


async def test_a_batch_is_stored_as_a_whole_and_says_where(bus):
    await bus.record(request(bus, "j0"))
    records = [request(bus, f"j{i}", expect=0) for i in range(1, 6)]
    stored = await together(bus, records)
    assert [place.seq for place in stored] == [2, 3, 4, 5, 6]
    assert (await ids_on(bus))[1:] == [record.event.id for record in records]


async def test_one_stale_entry_keeps_the_whole_batch_out(bus):
    await bus.record(request(bus, "j3"))
    with pytest.raises(Conflict):
        await together(bus, [request(bus, f"j{i}", expect=0) for i in range(5)])
    assert len(await ids_on(bus)) == 1


async def test_a_batch_whose_answer_was_lost_is_stored_once_and_found(bus, monkeypatch):
    await bus.record(request(bus, "j0"))
    lost = LostAnswers(bus)
    records = [request(bus, f"j{i}", expect=0) for i in range(1, 4)] + [request(bus, "j9")]
    stored = await together(bus, records)
    assert lost.dropped == 1
    assert [(place.seq, place.duplicate) for place in stored] == [(2, True), (3, True), (4, True), (5, True)]
    assert (await ids_on(bus))[1:] == [record.event.id for record in records]


async def test_a_batch_that_never_arrived_whole_is_sent_again(bus, monkeypatch):
    whole, sent = bus.send, 0

    async def loses_the_second(subject, body, headers=None, reply=""):
        nonlocal sent
        sent += 1
        if sent != 2:
            await whole(subject, body, headers, reply)

    monkeypatch.setattr(bus, "send", loses_the_second)
    records = [request(bus, f"j{i}", expect=0) for i in range(3)]
    stored = await together(bus, records)
    assert [place.seq for place in stored] == [1, 2, 3]
    assert await ids_on(bus) == [record.event.id for record in records]


async def test_grouped_records_share_batches_and_all_are_stored(bus):
    records = [request(bus, f"j{i}", expect=0) for i in range(1200)]
    stored = await asyncio.gather(*(bus.record_grouped(record) for record in records))
    assert sorted(place.seq for place in stored) == list(range(1, 1201))
    info = await bus.last(JOBS, ">")
    assert info is not None
    assert "Nats-Batch-Id" in (info.headers or {})


async def test_of_grouped_records_only_the_stale_one_is_refused(bus):
    await bus.record(request(bus, "j7"))
    records = [request(bus, f"j{i}", expect=0) for i in range(20)]
    results = await asyncio.gather(*(bus.record_grouped(one) for one in records), return_exceptions=True)
    assert [i for i, result in enumerate(results) if isinstance(result, Conflict)] == [7]
    assert len(await ids_on(bus)) == 20
    assert all(not isinstance(result, BaseException) for i, result in enumerate(results) if i != 7)


async def test_two_grouped_writers_of_one_job_cannot_both_win(bus):
    rivals = [request(bus, "j1", expect=0) for _ in range(8)]
    results = await asyncio.gather(*(bus.record_grouped(one) for one in rivals), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert len(await ids_on(bus)) == 1


async def test_a_grouped_record_sent_again_after_its_answer_was_lost_is_stored_once(bus, monkeypatch):
    LostAnswers(bus)
    records = [request(bus, f"j{i}", expect=0) for i in range(10)]
    await asyncio.gather(*(bus.record_grouped(one) for one in records))
    again = await asyncio.gather(
        *(bus.record_grouped(one) for one in [*records, request(bus, "new")]), return_exceptions=True
    )
    assert len(await ids_on(bus)) == 11
    assert not [result for result in again if isinstance(result, BaseException) and not isinstance(result, Conflict)]


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restart_amid_publishes_loses_nothing_and_doubles_nothing(bus, nats_server, end):
    records = [request(bus, f"j{i}", expect=0 if i % 2 else None) for i in range(600)]
    half = asyncio.Event()
    done = 0

    async def write(record):
        nonlocal done
        await bus.record(record, deadline_s=60)
        done += 1
        if done == 200:
            half.set()

    writers = [asyncio.create_task(write(record)) for record in records]
    await half.wait()
    await asyncio.to_thread(getattr(nats_server, end))
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(60):
        await asyncio.gather(*writers)
    ids = await ids_on(bus)
    assert sorted(ids) == sorted(record.event.id for record in records)


async def test_whoever_waits_for_a_grouped_record_hears_that_the_bus_was_closed(nats_server):
    async with Bus.connect(ServiceSettings(nats_url=nats_server.url), Service.GATEWAY) as bus:
        await bootstrap(bus)
        LostAnswers(bus, times=10**6)
        under_way = asyncio.create_task(bus.record_grouped(request(bus, "first")))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(bus.record_grouped(request(bus, "second")))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(60):
        for one in (under_way, waiting, asyncio.create_task(bus.record_grouped(request(bus, "third")))):
            with pytest.raises(Unavailable):
                await one


async def test_grouped_records_outlive_a_crash_of_the_server(bus, nats_server, monkeypatch):
    monkeypatch.setattr(bus, "write", partial(bus.write, deadline_s=120))  # the server may need a while to come back
    records = [request(bus, f"j{i}", expect=0) for i in range(2000)]
    writers = [asyncio.create_task(bus.record_grouped(record)) for record in records]
    await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(nats_server.kill)
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(120):
        await asyncio.gather(*writers)
    assert sorted(await ids_on(bus)) == sorted(record.event.id for record in records)


@pytest.mark.slow
async def test_a_server_that_falls_silent_is_noticed_and_the_write_still_happens_once(bus, nats_server):
    record = request(bus, "j1", expect=0)
    nats_server.pause()
    writing = asyncio.create_task(bus.record(record, deadline_s=60))
    async with asyncio.timeout(60):
        while bus.is_connected:
            await asyncio.sleep(0.2)
    nats_server.resume()
    async with asyncio.timeout(60):
        await writing
    assert await ids_on(bus) == [record.event.id]


async def test_without_a_server_a_write_is_unavailable_after_its_deadline_and_no_later(bus, nats_server):
    nats_server.stop()
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(Unavailable):
        await bus.record(request(bus, "j1"), deadline_s=0.5)
    assert loop.time() - started < 20


async def test_who_is_cancelled_while_there_is_no_room_to_send_ends(bus, nats_server):
    async def send_on() -> None:
        while True:
            await bus.send("wherry.tail.n1.j1.1", bytes(512 * 1024))

    nats_server.pause()
    sending = asyncio.create_task(send_on())
    try:
        await asyncio.wait([sending], timeout=0.5)  # by then what the socket takes is in it, and the buffer full
        sending.cancel()
        await asyncio.wait([sending], timeout=10)
        assert sending.cancelled()
    finally:
        nats_server.resume()
        sending.cancel()


async def test_a_connection_that_comes_back_late_leaves_the_write_only_what_is_left_of_its_time(bus, monkeypatch):
    given: list[float] = []

    async def comes_late(_timeout_s: float | None = None) -> None:
        await asyncio.sleep(0.4)

    async def try_write(_entries, _stream, timeout_s, *, suspect):
        given.append(timeout_s)
        return [Stored(1)]

    monkeypatch.setattr(bus, "until_online", comes_late)
    monkeypatch.setattr(bus, "_try_write", try_write)
    await bus.record(request(bus, "j1"), deadline_s=1)
    assert given[0] < 0.65


async def test_a_full_stream_refuses_in_words_and_takes_more_once_there_is_room(bus, monkeypatch):
    whole = bus._try_write

    async def patient(entries, stream, timeout_s, *, suspect):  # each try is answered, however late
        return await whole(entries, stream, 60, suspect=suspect)

    monkeypatch.setattr(bus, "_try_write", patient)
    config = (await bus.api(f"STREAM.INFO.{SNAPSHOT}", {}))["config"]
    await bus.api(f"STREAM.UPDATE.{SNAPSHOT}", {**config, "max_bytes": 2000})
    with pytest.raises(Unavailable, match="maximum bytes exceeded"):
        for i in range(10):
            await bus.put(f"wherry.snapshot.s{i}", b"x" * 500, deadline_s=0.3)
    await bus.api(f"STREAM.UPDATE.{SNAPSHOT}", config)
    assert await bus.put("wherry.snapshot.more", b"x" * 500) > 0


async def test_a_body_above_the_servers_limit_is_refused_before_it_is_sent(bus):
    with pytest.raises(WherryError) as refused:
        await bus.put("wherry.snapshot.big", b"x" * (2 * 1024 * 1024))
    assert refused.value.code == "too_large"


async def test_a_lease_is_won_once_renewed_by_its_holder_and_gone_after_its_time(bus, monkeypatch):
    mine = await bus.put("wherry.leader.scheduler", b"a", expect_seq=0, ttl_s=60)
    with pytest.raises(Conflict):
        await bus.put("wherry.leader.scheduler", b"b", expect_seq=0, ttl_s=60)
    LostAnswers(bus)
    renewed = await bus.put("wherry.leader.scheduler", b"a", expect_seq=mine, ttl_s=60)
    assert await bus.get_last(LEADER, "wherry.leader.scheduler") == (renewed, b"a")
    renewed = await bus.put("wherry.leader.scheduler", b"a", expect_seq=renewed, ttl_s=1)
    async with asyncio.timeout(60):
        while await bus.get_last(LEADER, "wherry.leader.scheduler"):
            await asyncio.sleep(0.1)
    assert await bus.put("wherry.leader.scheduler", b"b", expect_seq=0, ttl_s=1) > renewed


def test_a_jobs_filter_has_its_owner_free_and_all_its_events():
    assert job_filter("j1") == "wherry.job.*.j1.>"
