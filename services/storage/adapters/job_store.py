"""Projections of the streams: jobs, their events, output while they run, notifications."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pymongo import UpdateOne

from services.storage.adapters.mongo import Mongo, insert_new, upsert_newer
from services.storage.core.projections import Document, Upsert, delivery_view, newest
from services.storage.core.queries import POINTS_MOST, Filter
from shared.errors import NotFound
from shared.events import LogLine, MetricPoint, OutputBatch, Progress
from shared.job import Job
from shared.requests.jobs import DeliveryView, StoredEvent
from shared.states import JOB_TERMINAL


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as of stream sequence `seq`; `bytes` is about how much it takes as JSON."""

    job: Job
    seq: int
    created_us: int
    bytes: int


class JobStore:
    """Collections ``jobs``, ``events``, ``progress``, ``logs``, ``metrics`` and ``deliveries``."""

    def __init__(self, mongo: Mongo) -> None:
        self._jobs = mongo["jobs"]
        self._events = mongo["events"]
        self._progress = mongo["progress"]
        self._logs = mongo["logs"]
        self._metrics = mongo["metrics"]
        self._deliveries = mongo["deliveries"]

    # --- jobs and events ---------------------------------------------------------------------------------------

    async def write_jobs(self, upserts: list[Upsert], events: Sequence[Document]) -> None:
        """Write a batch of the log: jobs first, so that an event that is there tells that its job is (`has_event`)."""
        await upsert_newer(self._jobs, newest(upserts))
        await insert_new(self._events, events)

    async def job(self, job_id: str) -> StoredJob | None:
        """Return a job as the projection knows it; one that retention has hidden is not there."""
        document = await self._jobs.find_one({"_id": job_id, "retired_us": None})
        return _job(document) if document else None

    async def jobs(self, wanted: Filter, limit: int) -> list[StoredJob]:
        """Return jobs, newest first."""
        shown = wanted | {"retired_us": None}
        found = self._jobs.find(shown).sort([("created_us", -1), ("_id", -1)]).limit(limit)
        return [_job(document) async for document in found]

    async def open_jobs_with(self, text: str) -> list[Job]:
        """Return the jobs that have not ended in whose documents *text* stands somewhere."""
        wanted = {"state": {"$nin": [state.value for state in JOB_TERMINAL]}, "job": {"$regex": re.escape(text)}}
        return [_job(document).job async for document in self._jobs.find(wanted)]

    async def node_of(self, job_id: str, attempt: int) -> str | None:
        """Return where an attempt was placed, also one that events no longer name."""
        document = await self._jobs.find_one({"_id": job_id}, {f"nodes.{attempt}": 1})
        return document.get("nodes", {}).get(str(attempt)) if document else None

    async def counts(self, wanted: Filter | None = None) -> dict[str, int]:
        """Return the number of jobs by state."""
        found = self._jobs.aggregate([{"$match": wanted or {}}, {"$group": {"_id": "$state", "count": {"$sum": 1}}}])
        return {document["_id"]: document["count"] async for document in found}

    async def events(self, wanted: Filter, limit: int) -> list[StoredEvent]:
        """Return events in order of their sequence."""
        found = self._events.find(wanted, {"event": 1}).sort("_id", 1).limit(limit)
        return [StoredEvent(seq=document["_id"], event=document["event"]) async for document in found]

    async def has_event(self, seq: int) -> bool:
        """Return whether the event with this sequence has been projected."""
        return await self._events.find_one({"_id": seq}, {"_id": 1}) is not None

    # --- output ------------------------------------------------------------------------------------------------

    async def write_output(self, logs: Sequence[Document], metrics: Sequence[Document], progress: list[Upsert]) -> None:
        """Write what attempts printed."""
        await insert_new(self._logs, logs)
        await insert_new(self._metrics, metrics)
        for key in {document["key"] for document in metrics if document.get("parts") == document.get("part", -2) + 1}:
            if await self._final(key):
                await self._metrics.delete_many({"key": key, "parts": None})
        await upsert_newer(self._progress, newest(progress))

    async def progress(self, keys: Sequence[str]) -> dict[str, Progress]:
        """Return the progress of attempts, by key."""
        found = self._progress.find({"_id": {"$in": list(keys)}})
        return {document["_id"]: Progress.from_bytes(document["progress"].encode()) async for document in found}

    async def lines(self, wanted: Filter) -> AsyncGenerator[LogLine, None]:
        """Give lines by number, each number once."""
        last = 0
        async for document in self._logs.find(wanted, batch_size=20).sort([("first", 1), ("last", 1)]):
            for line in _lines(document):
                if line.n > last:
                    last = line.n
                    yield line

    async def lines_backwards(self, wanted: Filter) -> AsyncGenerator[LogLine, None]:
        """Give lines from the last one back, each number once."""
        before: int | None = None
        async for document in self._logs.find(wanted, batch_size=20).sort([("last", -1), ("first", -1)]):
            for line in reversed(_lines(document)):
                if before is None or line.n < before:
                    before = line.n
                    yield line

    async def points(self, key: str) -> list[MetricPoint]:
        """Return what an attempt measured: all of it as it came at its end, else what came live, up to POINTS_MOST."""
        if final := await self._final(key):
            return [point for document in final for point in _points(document)]
        points: list[MetricPoint] = []
        async for document in self._metrics.find({"key": key, "parts": None}).sort([("at_us", 1), ("_id", 1)]):
            points += _points(document)
            if len(points) >= POINTS_MOST:
                break
        return points[:POINTS_MOST]

    async def _final(self, key: str) -> list[Document]:
        """Return all parts of what an attempt measured, or nothing while one is missing."""
        found = self._metrics.find({"key": key, "parts": {"$gt": 0}}).sort("part", 1)
        parts = [document async for document in found]
        return parts if parts and len(parts) == parts[0]["parts"] else []

    # --- notifications -----------------------------------------------------------------------------------------

    async def write_deliveries(self, requested: dict[str, Document], tried: list[Upsert]) -> None:
        """Write notifications and their tries."""
        if requested:
            await self._deliveries.bulk_write(
                [
                    UpdateOne({"_id": key}, {"$set": fields, "$setOnInsert": {"seq": 0}}, upsert=True)
                    for key, fields in requested.items()
                ],
                ordered=False,
            )
        await upsert_newer(self._deliveries, newest(tried))

    async def deliveries(self, job_id: str) -> list[DeliveryView]:
        """Return a job's notifications, oldest first."""
        views: list[DeliveryView] = []
        async for document in self._deliveries.find({"job_id": job_id}):
            with suppress(NotFound):
                views.append(delivery_view(document))
        return sorted(views, key=lambda view: (view.requested_at, view.id))


def _job(document: Document) -> StoredJob:
    text: bytes = document["job"].encode()
    return StoredJob(Job.from_bytes(text), document["seq"], document["created_us"], len(text))


def _points(document: Document) -> tuple[MetricPoint, ...]:
    return OutputBatch.from_bytes(document["points"].encode()).metrics


def _lines(document: Document) -> list[LogLine]:
    return sorted(OutputBatch.from_bytes(document["lines"].encode()).lines, key=lambda line: line.n)
