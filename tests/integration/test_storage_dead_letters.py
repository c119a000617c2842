"""What storage cannot take in becomes a dead letter, and is taken in when it is replayed."""

import asyncio
import base64
import time
from typing import Any

import pytest

from shared import channels
from shared.bus import Bus, Record
from shared.channels import Service
from shared.clock import utc_now
from shared.errors import Unavailable
from shared.events import DeadLetter
from shared.job import Job
from shared.model import Empty
from shared.permissions import OPERATOR
from shared.requests.administration import DeadLetterId
from shared.requests.jobs import JobListQuery
from shared.states import JobState
from tests.integration.conftest import StorageStack


async def letters(stack: StorageStack, count: int) -> list[dict[str, Any]]:
    """Return storage's dead letters, waiting until there are *count*."""
    async with asyncio.timeout(90):
        while len(found := list(stack.database["dead_letters"].find())) < count:
            await asyncio.sleep(0.1)
    return found


async def listed(bus: Bus, job_id: str) -> Job:
    async with asyncio.timeout(90):
        while True:
            page = await bus.ask(channels.JOB_LIST, JobListQuery(limit=500))
            for view in page.jobs:
                if view.job.id == job_id:
                    return view.job
            await asyncio.sleep(0.05)


async def test_a_thousand_broken_events_stop_nobody_and_are_kept(storage: StorageStack) -> None:
    async with (
        storage.bus(Service.GATEWAY, "g1") as bus,
        Bus.connect(storage.settings(OPERATOR), Service.STORAGE, purpose="test") as operator,
    ):
        for begin in (0, 500):
            numbers = range(begin, begin + 500)
            subject = "wherry.job.u1.jbroken{}.running"
            await asyncio.gather(*(operator.put(subject.format(n), b"broken %d" % n, deadline_s=15) for n in numbers))
        began = time.monotonic()
        await storage.record(storage.job("j1"), "running")
        assert (await listed(bus, "j1")).state is JobState.RUNNING
        assert time.monotonic() - began < 60
        kept = await letters(storage, 1000)
        assert {one["reader"] for one in kept} == {"storage"}
        letter = DeadLetter.from_bytes(kept[0]["letter"].encode())
        assert letter.id == f"WHERRY_JOBS.{letter.seq}.storage"
        assert base64.b64decode(letter.body).startswith(b"broken")
        async with asyncio.timeout(90):
            while (await operator.api("CONSUMER.INFO.WHERRY_JOBS.storage", {}))["num_ack_pending"]:
                await asyncio.sleep(0.05)


async def test_a_replayed_event_is_projected_at_its_place_and_a_broken_one_comes_back(storage: StorageStack) -> None:
    async with (
        storage.bus(Service.GATEWAY, "g1") as bus,
        Bus.connect(storage.settings(OPERATOR), Service.STORAGE, purpose="test") as operator,
    ):
        seq = await storage.record(storage.job("j1"), "running")
        later = storage.job("j1", state=JobState.FINISHING)
        made = operator.event(
            channels.JOB_CHANGED, channels.JOB_CHANGED.message(job=later), subject="j1",
            owner="u1", job_id="j1", event="finishing",
        )  # fmt: skip

        async def replay(at_seq: int, body: bytes) -> None:
            letter = DeadLetter(
                id=f"WHERRY_JOBS.{at_seq}.storage", stream="WHERRY_JOBS", seq=at_seq, reader="storage",
                target="wherry.job.u1.j1.finishing", reason="why", body=base64.b64encode(body).decode(),
                at=utc_now(),
            )  # fmt: skip
            await operator.ask(channels.REPLAY, letter, reader="storage")  # until it listens

        await replay(seq + 7, b"no event")
        [kept] = await letters(storage, 1)
        assert kept["_id"] == f"WHERRY_JOBS.{seq + 7}.storage"
        await replay(seq - 1, made.to_bytes())  # older than what is known: changes nothing
        await replay(seq + 7, made.to_bytes())
        async with asyncio.timeout(90):
            while (document := storage.database["jobs"].find_one({"_id": "j1"})) is None or document["seq"] <= seq:
                await asyncio.sleep(0.05)
        assert document["seq"] == seq + 7
        assert (await listed(bus, "j1")).id == "j1"


async def test_a_letter_whose_reader_is_away_stays_as_it_was_until_it_is_taken(storage: StorageStack) -> None:
    letter = DeadLetter(
        id="WHERRY_JOBS.7.scheduler", stream="WHERRY_JOBS", seq=7, reader="scheduler",
        target="wherry.job.u1.j1.finishing", reason="why", body="e30=", at=utc_now(),
    )  # fmt: skip
    async with (
        storage.bus(Service.GATEWAY, "g1") as bus,
        Bus.connect(storage.settings("scheduler"), Service.SCHEDULER) as scheduler,
    ):
        params = {"reader": "scheduler"}
        event = scheduler.event(channels.DEAD_LETTER, letter, subject=letter.id, **params)
        await scheduler.record(Record(channels.DEAD_LETTER, params, event))
        await letters(storage, 1)
        with pytest.raises(Unavailable):  # no scheduler leads
            await bus.ask(channels.DEAD_LETTER_REPLAY, DeadLetterId(id=letter.id))
        [kept] = await letters(storage, 1)
        assert kept["replayed_us"] is None

        handed: list[DeadLetter] = []

        async def take(_: dict[str, str], asked: DeadLetter) -> Empty:
            handed.append(asked)
            return Empty()

        await scheduler.serve(channels.REPLAY, take, queue=None, reader="scheduler")
        await bus.ask(channels.DEAD_LETTER_REPLAY, DeadLetterId(id=letter.id))
        [kept] = await letters(storage, 1)
        assert kept["replayed_us"] is not None
        assert handed == [letter]
