"""Events and logs as server-sent events, on real NATS, MongoDB and storage: nothing twice, nothing lost, and an end."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bus import Bus, Record, job_filter
from shared.channels import JOB_CHANGED, OUTPUT, Service
from shared.clock import utc_now
from shared.events import JobChanged, LogLine, MetricPoint, OutputBatch, Progress
from shared.ids import new_id
from shared.job import Attempt, GangMember, GangPlace, Job
from shared.spec import JobSpec
from shared.states import AttemptState, JobState
from tests.integration.gateway_stack import ADMIN, NODE, OTHER_NODE, SPEC, GatewayStack, Scheduler, eventually


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    env = {"WHERRY_HEARTBEAT_S": "0.5", "WHERRY_STREAM_BACKLOG_BYTES": "200000"}
    with GatewayStack(folder, mongo_url=mongo_server, **env) as running:
        yield running


@pytest.fixture
async def http(stack: GatewayStack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {stack.login(*ADMIN)}"}
    async with httpx.AsyncClient(base_url=f"{stack.url}/v1", headers=headers, timeout=60) as client:
        yield client


class Node:
    """Sends what an attempt prints."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def say(self, job_id: str, *numbers: int, attempt: int = 1, **more: Any) -> None:
        lines = tuple(LogLine(n=n, t=utc_now(), s="e" if n % 5 == 0 else "o", x=f"line {n}") for n in numbers)
        batch = OutputBatch(lines=lines, **more)
        subject = OUTPUT.subject(node_id=NODE, job_id=job_id, attempt=str(attempt))
        await self.bus.put(subject, batch.to_bytes(), deadline_s=60)


@pytest.fixture
async def node(stack: GatewayStack) -> AsyncIterator[Node]:
    async with stack.bus(Service.NODE_AGENT, f"node-{NODE}", NODE) as bus:
        yield Node(bus)


async def new_job(http: httpx.AsyncClient) -> str:
    answer = await http.post("/jobs", json=SPEC)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


class Listener:
    """Reads server-sent events beside the test."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, str, Any]] = []
        self.comments = 0
        self.ended = False
        self._changed = asyncio.Event()

    async def read(self, answer: httpx.Response) -> None:
        event_id, name, data = None, "message", ""
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                self.comments += 1
            elif line:
                field, _, value = line.partition(": ")
                event_id, name, data = (
                    (value, name, data) if field == "id" else (event_id, value, data) if field == "event"
                    else (event_id, name, value)
                )  # fmt: skip
            elif data:
                self.events.append((event_id, name, json.loads(data)))
                event_id, name, data = None, "message", ""
            self._changed.set()
        self.ended = True
        self._changed.set()

    async def until(self, condition: Any, timeout_s: float = 90) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def names(self) -> list[str]:
        return [name for _, name, _ in self.events]

    def lines(self) -> list[int]:
        return [data["n"] for _, name, data in self.events if name == "log"]


@asynccontextmanager
async def following(http: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[Listener]:
    async with http.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        listener = Listener()
        reading = asyncio.create_task(listener.read(answer))
        await listener.until(lambda: listener.comments)
        try:
            yield listener
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, httpx.TransportError):
                await reading


def kinds(listener: Listener) -> list[str]:
    return [data["type"].split(".")[-2] for _, _, data in listener.events]


# --- events ----------------------------------------------------------------------------------------------------------


async def test_a_jobs_events_are_told_stored_and_live_and_end_with_its_last(
    http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/events") as listener:
        await listener.until(lambda: len(listener.events) == 3)
        await scheduler.move(job_id, "finishing")
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert kinds(listener) == ["created", "placed", "running", "finishing", "succeeded"]
    sequences = [int(event_id) for event_id, _, _ in listener.events if event_id]
    assert sequences == sorted(set(sequences))
    assert len(sequences) == 5
    assert all(name == data["type"] and data["specversion"] == "1.0" for _, name, data in listener.events)
    stored = (await http.get(f"/jobs/{job_id}/events")).json()
    assert [event["id"] for event in stored["events"]] == [data["id"] for _, _, data in listener.events]
    assert stored["cursor"] == sequences[-1]
    page = (await http.get(f"/jobs/{job_id}/events", params={"after": sequences[1], "limit": 2})).json()
    assert page["cursor"] == sequences[3]


async def test_a_broken_stream_goes_on_behind_the_last_event_seen(
    http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/events") as listener:
        await listener.until(lambda: len(listener.events) == 3)
    last = listener.events[1][0]
    assert last is not None
    await scheduler.end(job_id)
    async with following(http, f"/jobs/{job_id}/events", **{"Last-Event-ID": last}) as again:
        await again.until(lambda: again.ended)
    assert kinds(again) == ["running", "succeeded"]
    end = again.events[-1][0]
    assert end is not None
    async with following(http, f"/jobs/{job_id}/events", **{"Last-Event-ID": end}) as nothing:
        await nothing.until(lambda: nothing.ended)
    assert nothing.events == []


async def test_under_steady_change_no_reader_misses_or_repeats_an_event(
    http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    job_id = await new_job(http)

    async def change() -> None:
        for number in range(60):
            await scheduler.move(job_id, "pending", remarks=(str(number),))
        await scheduler.end(job_id)

    async def read() -> Listener:
        async with following(http, f"/jobs/{job_id}/events") as listener:
            await listener.until(lambda: listener.ended)
            return listener

    changing = asyncio.create_task(change())
    readers = []
    for _ in range(8):
        readers.append(asyncio.create_task(read()))
        await asyncio.sleep(0.02)  # they come at different moments of the change
    listeners = await asyncio.gather(*readers)
    await changing
    expected = ["created", *["pending"] * 60, "succeeded"]
    for listener in listeners:
        assert kinds(listener) == expected
        assert [data["data"]["job"].get("remarks", []) for _, _, data in listener.events][1:-1] == [
            [str(number)] for number in range(60)
        ]


async def test_everybodys_events_are_for_administrators_and_ones_own_for_oneself(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    await http.post("/users", json={"name": "anna", "password": "correct horse battery 9"})
    headers = {"Authorization": f"Bearer {stack.login('anna', 'correct horse battery 9')}"}
    async with httpx.AsyncClient(base_url=f"{stack.url}/v1", headers=headers, timeout=60) as anna:
        async with following(anna, "/events") as hers, following(http, "/events?follow=true") as all_of_them:
            theirs, own = await new_job(http), await new_job(anna)
            await scheduler.move(theirs, "pending")
            await scheduler.move(own, "pending")

            def about(listener: Listener, job_id: str) -> int:
                return [data["subject"] for _, _, data in listener.events].count(job_id)

            await hers.until(lambda: about(hers, own) == 2)
            await all_of_them.until(lambda: about(all_of_them, own) == 2 and about(all_of_them, theirs) == 2)
            assert about(hers, theirs) == 0
        page = (await anna.get("/events", params={"limit": 1000})).json()
        assert {event["subject"] for event in page["events"]} == {own}


async def test_a_quiet_stream_is_kept_alive_by_comments(http: httpx.AsyncClient) -> None:
    job_id = await new_job(http)
    async with following(http, f"/jobs/{job_id}/events") as listener:
        await listener.until(lambda: listener.comments >= 3)
        assert len(listener.events) == 1


async def test_a_broker_that_restarts_costs_no_event(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    job_id = await new_job(http)
    async with following(http, f"/jobs/{job_id}/events") as listener:
        await listener.until(lambda: len(listener.events) == 1)
        stack.nats.kill()
        stack.nats.start()
        for _ in range(5):
            await scheduler.move(job_id, "pending")
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert kinds(listener) == ["created", *["pending"] * 5, "succeeded"]


@asynccontextmanager
async def storage_away(stack: GatewayStack, listener: Listener, comments: int = 2) -> AsyncIterator[None]:
    """Let storage hear nothing while the block runs; before that, its stream has looked for news there in vain."""
    stack.processes["services.storage"].send_signal(signal.SIGSTOP)
    try:
        before = listener.comments
        await listener.until(lambda: listener.comments > before + comments)
        yield
    finally:
        stack.processes["services.storage"].send_signal(signal.SIGCONT)


async def test_while_storage_is_away_events_still_arrive(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler
) -> None:
    job_id = await new_job(http)
    async with following(http, f"/jobs/{job_id}/events") as listener:
        await listener.until(lambda: len(listener.events) == 1)
        async with storage_away(stack, listener):
            await scheduler.move(job_id, "pending")
            await listener.until(lambda: len(listener.events) == 2)
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert kinds(listener) == ["created", "pending", "succeeded"]


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_output_is_followed_with_progress_and_metrics_until_the_end(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    await node.say(job_id, 1, 2)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await listener.until(lambda: listener.lines() == [1, 2])
        half = Progress(fraction=0.5, message="half", at=utc_now())
        loss = MetricPoint(name="loss", value=0.1, step=3, at=utc_now())
        await node.say(job_id, 3, 4, 5, progress=half, metrics=(loss,))
        await listener.until(lambda: "metric" in listener.names())
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert listener.lines() == [1, 2, 3, 4, 5]
    events = {name: data for _, name, data in listener.events}
    assert events["progress"]["fraction"] == 0.5
    assert (events["metric"]["name"], events["metric"]["step"]) == ("loss", 3)
    assert listener.events[-1][1:] == ("end", {"state": "succeeded"})
    last = next(data for _, name, data in reversed(listener.events) if name == "log")
    assert (last["text"], last["stream"]) == ("line 5", "stderr")
    await eventually_stored(http, job_id, 5)
    assert (await http.get(f"/jobs/{job_id}")).json()["progress"]["message"] == "half"
    points = (await http.get(f"/jobs/{job_id}/metrics")).json()["points"]
    assert [(point["name"], point["value"], point["step"]) for point in points] == [("loss", 0.1, 3)]


async def eventually_stored(http: httpx.AsyncClient, job_id: str, count: int) -> None:
    async def stored() -> bool:
        return len((await http.get(f"/jobs/{job_id}/logs")).text.splitlines()) == count

    await eventually(stored, f"{count} lines are stored")


async def test_stored_output_is_text_or_json_and_can_be_narrowed(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    before = utc_now()
    await node.say(job_id, *range(1, 11))
    await eventually_stored(http, job_id, 10)
    answer = await http.get(f"/jobs/{job_id}/logs")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "".join(f"line {n}\n" for n in range(1, 11))
    assert (await http.get(f"/jobs/{job_id}/logs", params={"tail": 2})).text == "line 9\nline 10\n"
    assert (await http.get(f"/jobs/{job_id}/logs", params={"stream": "stderr"})).text == "line 5\nline 10\n"
    assert (await http.get(f"/jobs/{job_id}/logs", params={"since": before.isoformat()})).text.count("\n") == 10
    assert (await http.get(f"/jobs/{job_id}/logs", params={"since": utc_now().isoformat()})).text == ""
    assert (await http.get(f"/jobs/{job_id}/logs", params={"since": "2026-01-01T00:00:00"})).status_code == 422
    assert (await http.get(f"/jobs/{job_id}/logs", params={"attempt": 2})).status_code == 404
    page = await http.get(
        f"/jobs/{job_id}/logs", params={"after": 3, "limit": 2}, headers={"Accept": "application/json"}
    )
    assert [line["n"] for line in page.json()["lines"]] == [4, 5]
    assert page.json()["more"] is True


async def test_a_long_stored_log_comes_whole_and_in_order(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    for start in range(1, 5001, 500):
        await node.say(job_id, *range(start, start + 500))
    await eventually_stored(http, job_id, 5000)
    assert (await http.get(f"/jobs/{job_id}/logs")).text.splitlines() == [f"line {n}" for n in range(1, 5001)]
    await scheduler.end(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await listener.until(lambda: listener.ended)
    assert listener.lines() == list(range(1, 5001))
    assert listener.names()[-1] == "end"


async def test_lines_that_are_lost_are_shown_as_a_gap(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await node.say(job_id, 1, 2)
        await listener.until(lambda: listener.lines() == [1, 2])
        await node.say(job_id, 7, 8)
        await listener.until(lambda: listener.lines() == [1, 2, 7, 8])
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert [data for _, name, data in listener.events if name == "gap"] == [{"first": 3, "last": 6, "count": 4}]
    assert [name for name in listener.names() if name in ("log", "gap")] == ["log", "log", "gap", "log", "log"]
    assert "lines 3 to 6 are missing" in (await http.get(f"/jobs/{job_id}/logs")).text


async def test_a_reader_that_comes_back_gets_the_rest(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await node.say(job_id, 1, 2, 3)
        await listener.until(lambda: listener.lines() == [1, 2, 3])
    seen = listener.events[1][0]
    assert seen == "1.2"
    await node.say(job_id, 4, 5)
    await scheduler.end(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true", **{"Last-Event-ID": seen}) as again:
        await again.until(lambda: again.ended)
    assert again.lines() == [3, 4, 5]


async def test_what_another_node_says_about_an_attempt_is_not_shown(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    forged = OutputBatch(lines=(LogLine(n=1, t=utc_now(), x="forged"),), progress=Progress(fraction=0.99, at=utc_now()))
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await listener.until(lambda: listener.comments > 0)
        async with stack.bus(Service.NODE_AGENT, f"node-{OTHER_NODE}", OTHER_NODE) as other:
            for attempt in ("1", "2", "999999999", "9" * 40, "no-number"):
                await other.publish(OUTPUT, forged, node_id=OTHER_NODE, job_id=job_id, attempt=attempt)
        await node.say(job_id, 1, 2)
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert listener.lines() == [1, 2]
    assert "forged" not in str(listener.events)
    assert "progress" not in listener.names()


async def test_a_tail_begins_near_the_end_and_one_stream_is_only_that_one(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    await node.say(job_id, *range(1, 21))
    await eventually_stored(http, job_id, 20)
    async with (
        following(http, f"/jobs/{job_id}/logs?follow=true&tail=3") as tail,
        following(http, f"/jobs/{job_id}/logs?follow=true&stream=stderr") as errors,
    ):
        await tail.until(lambda: tail.lines() == [18, 19, 20])
        await node.say(job_id, *range(21, 31))
        await tail.until(lambda: tail.lines()[-1] == 30)
        await scheduler.end(job_id)
        await tail.until(lambda: tail.ended)
        await errors.until(lambda: errors.ended)
    assert tail.lines() == list(range(18, 31))
    assert errors.lines() == [5, 10, 15, 20, 25, 30]
    assert "gap" not in tail.names() + errors.names()


async def test_the_next_attempt_is_followed_and_an_old_one_can_be_read(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await node.say(job_id, 1, 2)
        await listener.until(lambda: listener.lines() == [1, 2])
        await scheduler.move(job_id, "requeued")
        await scheduler.run(job_id, attempt=2)
        await node.say(job_id, 1, 2, 3, attempt=2)
        await listener.until(lambda: listener.lines() == [1, 2, 1, 2, 3])
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert [event_id for event_id, name, _ in listener.events if name == "log"] == ["1.1", "1.2", "2.1", "2.2", "2.3"]
    assert (await http.get(f"/jobs/{job_id}/logs", params={"attempt": 1})).text == "line 1\nline 2\n"
    async with following(http, f"/jobs/{job_id}/logs?follow=true&attempt=1") as first:
        await first.until(lambda: first.ended)
    assert first.lines() == [1, 2]


async def new_map_job(http: httpx.AsyncClient) -> str:
    answer = await http.post("/jobs", json=SPEC | {"kind": "map", "map": {"open": True, "parallelism": 4}})
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


async def hire(scheduler: Scheduler, parent_id: str, *, index: int = 0, is_recorded: bool = True) -> str:
    """Let a parent have one more worker, which runs; return its id."""
    member_id, now = new_id("j"), utc_now()
    _, parent = await scheduler.last(parent_id)
    place = GangPlace(gang_id=parent_id, round=0, role="worker", index=index, rank=index, size=0)
    attempt = Attempt(number=1, node=NODE, state=AttemptState.RUNNING, placed_at=now)
    job = parent.model_copy(
        update={
            "id": member_id, "spec": JobSpec(image="busybox"), "created_at": now, "updated_at": now, "attempt": 1,
            "attempts": (attempt,), "state": JobState.RUNNING, "member_of": place, "members": (), "items": None,
        }
    )  # fmt: skip
    member = GangMember(job_id=member_id, role="worker", index=index, node=NODE, state=JobState.RUNNING, placed_at=now)
    await scheduler.move(parent_id, "running", members=(*parent.members, member), attempt=parent.attempt + 1)
    if is_recorded:
        await record_member(scheduler, job)
    return member_id


async def record_member(scheduler: Scheduler, job: Job) -> None:
    told = scheduler.bus.event(JOB_CHANGED, JobChanged(job=job, epoch=1), subject=job.id, event="running")
    params = {"owner": job.owner.id, "job_id": job.id, "event": "running"}
    await scheduler.bus.record(Record(JOB_CHANGED, params, told, (job_filter(job.id), 0)))


async def let_go(scheduler: Scheduler, parent_id: str, member_id: str) -> None:
    """Let a worker end, and its parent know it no longer."""
    await scheduler.end(member_id)
    _, parent = await scheduler.last(parent_id)
    others = tuple(one for one in parent.members if one.job_id != member_id)
    await scheduler.move(parent_id, "running", members=others)


def whose(listener: Listener) -> list[tuple[str, str, str, int]]:
    told = [data for _, name, data in listener.events if name == "log"]
    return [(data["member_id"], data["member"], data["node"], data["n"]) for data in told]


def of(member_id: str, name: str, *numbers: int) -> list[tuple[str, str, str, int]]:
    return [(member_id, name, NODE, n) for n in numbers]


async def test_the_output_of_workers_that_come_and_go_is_one_log(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_map_job(http)
    gone = await hire(scheduler, job_id)
    await node.say(gone, 1, 2)
    await eventually_stored(http, gone, 2)
    await let_go(scheduler, job_id, gone)
    first = await hire(scheduler, job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await listener.until(lambda: len(whose(listener)) == 2)
        await node.say(first, 1)
        await listener.until(lambda: len(whose(listener)) == 3)
        late = await hire(scheduler, job_id, index=1)
        about = LogLine(n=1, t=utc_now(), x="line 1", i="i" + "a" * 25)
        batch = OutputBatch(lines=(about, LogLine(n=2, t=utc_now(), x="line 2")))
        said = OUTPUT.subject(node_id=NODE, job_id=late, attempt="1")
        await node.bus.put(said, batch.to_bytes(), deadline_s=60)
        await listener.until(lambda: len(whose(listener)) == 5)
        await let_go(scheduler, job_id, late)
        await node.say(first, 2)
        await listener.until(lambda: len(whose(listener)) == 6)
        await scheduler.end(job_id)  # its workers end after it
        await node.say(first, 3)
        await scheduler.end(first)
        await listener.until(lambda: listener.ended)
    expected = of(gone, "worker-0", 1, 2) + of(first, "worker-0", 1, 2, 3) + of(late, "worker-1", 1, 2)
    assert sorted(whose(listener)) == sorted(expected)
    said = [(data["n"], data.get("item")) for _, name, data in listener.events if data.get("member_id") == late]
    assert said == [(1, about.i), (2, None)]
    assert listener.events[-1][1:] == ("end", {"state": "succeeded"})
    text = (await http.get(f"/jobs/{job_id}/logs")).text
    words = [(1, "worker-0"), (2, "worker-0"), (1, "worker-0"), (2, "worker-0"), (3, "worker-0")]
    assert text == "".join(f"{name} | line {n}\n" for n, name in [*words, (1, "worker-1"), (2, "worker-1")])
    assert (await http.get(f"/jobs/{job_id}/logs", params={"attempt": 2})).status_code == 404


async def test_a_reader_of_workers_that_comes_back_gets_the_rest_of_each(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_map_job(http)
    gone, first = await hire(scheduler, job_id), await hire(scheduler, job_id, index=1)
    await node.say(gone, 1, 2)
    await eventually_stored(http, gone, 2)
    await let_go(scheduler, job_id, gone)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await listener.until(lambda: len(whose(listener)) == 2)
        await node.say(first, 1)
        await listener.until(lambda: len(whose(listener)) == 3)
        late = await hire(scheduler, job_id, index=2)
        await node.say(late, 1)
        await listener.until(lambda: len(whose(listener)) == 4)
        seen = listener.events[-1][0]
        assert seen is not None
    await node.say(first, 2)
    await node.say(late, 2, 5)
    await let_go(scheduler, job_id, late)
    unseen = await hire(scheduler, job_id, index=3)
    await node.say(unseen, 1)
    await eventually_stored(http, unseen, 1)
    await let_go(scheduler, job_id, unseen)
    await let_go(scheduler, job_id, first)
    await scheduler.end(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true", **{"Last-Event-ID": seen}) as again:
        await again.until(lambda: again.ended)
    expected = of(first, "worker-1", 2) + of(late, "worker-2", 2, 5) + of(unseen, "worker-3", 1)
    assert sorted(whose(again)) == sorted(expected)
    gaps = [data for _, name, data in again.events if name == "gap"]
    assert [(one["member_id"], one["first"], one["last"]) for one in gaps] == [(late, 3, 4)]
    last = next(event_id for event_id, name, _ in reversed(again.events) if name == "log")
    assert last is not None
    async with following(http, f"/jobs/{job_id}/logs?follow=true", **{"Last-Event-ID": last}) as nothing:
        await nothing.until(lambda: nothing.ended)
    assert whose(nothing) == []


async def test_a_worker_that_is_named_before_it_is_recorded_is_waited_for(
    http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_map_job(http)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        model = (await scheduler.last(await hire(scheduler, job_id)))[1]
        late = await hire(scheduler, job_id, index=1, is_recorded=False)
        await listener.until(lambda: listener.comments > 2)
        place = GangPlace(gang_id=job_id, round=0, role="worker", index=1, rank=1, size=0)
        await record_member(scheduler, model.model_copy(update={"id": late, "member_of": place}))
        await node.say(late, 1)
        await listener.until(lambda: whose(listener) == of(late, "worker-1", 1))


async def test_while_storage_is_away_the_output_of_workers_still_arrives(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_map_job(http)
    worker = await hire(scheduler, job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await node.say(worker, 1)
        await listener.until(lambda: whose(listener) == of(worker, "worker-0", 1))
        async with storage_away(stack, listener, comments=25):  # longer than a question waits for its answer
            await node.say(worker, 2)
            await listener.until(lambda: whose(listener) == of(worker, "worker-0", 1, 2))
        await scheduler.end(worker)
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert listener.events[-1][1:] == ("end", {"state": "succeeded"})


async def test_lines_of_many_workers_come_in_pages(http: httpx.AsyncClient, scheduler: Scheduler, node: Node) -> None:
    job_id = await new_map_job(http)
    workers = [await hire(scheduler, job_id, index=index) for index in range(3)]
    for worker in workers:
        await node.say(worker, *range(1, 6))
        await eventually_stored(http, worker, 5)
    pages: list[list[tuple[str, int]]] = []
    params: dict[str, str | int] = {"limit": 4}
    while True:
        page = (await http.get(f"/jobs/{job_id}/logs", params=params, headers={"Accept": "application/json"})).json()
        pages.append([(line["member_id"], line["n"]) for line in page["lines"]])
        assert page["more"] is bool(page.get("cursor"))
        if not page["more"]:
            break
        params["cursor"] = page["cursor"]
    assert [one for page in pages for one in page] == [(worker, n) for worker in workers for n in range(1, 6)]
    assert [len(page) for page in pages] == [4, 4, 4, 3]
    for wrong in ("nonsense", f"{job_id}.1"):
        answer = await http.get(f"/jobs/{job_id}/logs?cursor={wrong}", headers={"Accept": "application/json"})
        assert answer.status_code == 422, answer.text
    tail = {"tail": 2, "limit": 100}
    last = (await http.get(f"/jobs/{job_id}/logs", params=tail, headers={"Accept": "application/json"})).json()
    assert [line["n"] for line in last["lines"]] == [4, 5] * 3


async def test_while_storage_is_away_live_output_still_arrives_and_the_end_waits_for_it(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    async with following(http, f"/jobs/{job_id}/logs?follow=true") as listener:
        await node.say(job_id, 1)
        await listener.until(lambda: listener.lines() == [1])
        async with storage_away(stack, listener):
            await node.say(job_id, 2, 3)
            await listener.until(lambda: listener.lines() == [1, 2, 3])
        await scheduler.end(job_id)
        await listener.until(lambda: listener.ended)
    assert listener.lines() == [1, 2, 3]
    assert listener.names()[-1] == "end"


async def test_a_reader_that_stands_still_is_dropped_and_costs_no_memory(
    stack: GatewayStack, http: httpx.AsyncClient, scheduler: Scheduler, node: Node
) -> None:
    job_id = await new_job(http)
    await scheduler.run(job_id)
    before = stack.peak_memory_mb("services.gateway")
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    head = [
        f"GET /v1/jobs/{job_id}/logs?follow=true HTTP/1.1", "Host: x", "Connection: close",
        f"Authorization: {http.headers['Authorization']}",
    ]  # fmt: skip
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
    await reader.readuntil(b": still here")  # from now on it does not read
    for start in range(1, 40_001, 200):
        lines = tuple(LogLine(n=n, t=utc_now(), x="x" * 500) for n in range(start, start + 200))
        await node.bus.publish(OUTPUT, OutputBatch(lines=lines), node_id=NODE, job_id=job_id, attempt="1")

    async def dropped() -> bool:
        metrics = (await http.get(f"{stack.url}/metrics")).text
        return 'route="/v1/jobs/{job_id}/logs",status="200"' in metrics

    async with asyncio.timeout(120):
        while len(await reader.read(1 << 16)):  # what was under way, then the end
            pass
    await eventually(dropped, "its answer is counted")
    writer.close()
    assert stack.peak_memory_mb("services.gateway") - before < 40


async def test_open_streams_end_when_the_gateway_stops(stack: GatewayStack, http: httpx.AsyncClient) -> None:
    job_id = await new_job(http)
    async with (
        following(http, f"/jobs/{job_id}/events") as events,
        following(http, f"/jobs/{job_id}/logs?follow=1") as log,
    ):
        await events.until(lambda: events.events)
        stopping = asyncio.create_task(asyncio.to_thread(stack.stop, "services.gateway"))
        await events.until(lambda: events.ended)
        await log.until(lambda: log.ended)
        assert await stopping == 0
    await asyncio.to_thread(stack.start_gateway)
