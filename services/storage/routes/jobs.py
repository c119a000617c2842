"""Questions about jobs: state, events, logs, metrics, outputs, notifications."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from services.storage.adapters.job_store import JobStore, StoredJob
from services.storage.core import metrics
from services.storage.core import outputs as o
from services.storage.core import queries as q
from services.storage.core.projections import attempt_key, microseconds
from services.storage.routes.table import Route, route
from services.storage.shell.arrivals import Arrivals
from services.storage.shell.jobs import Jobs
from services.storage.shell.outputs import Outputs
from shared import channels as c
from shared.events import LogLine, Progress
from shared.job import Job
from shared.requests.jobs import (
    DeliveryList,
    EventPage,
    EventQuery,
    JobList,
    JobListQuery,
    JobQuery,
    JobView,
    LogPage,
    LogQuery,
    MetricPage,
    MetricQuery,
)
from shared.requests.outputs import OutputPage, OutputQuery


class JobRoutes:
    """Answers about jobs. Whether the asker may see them is the gateway's to check."""

    def __init__(self, jobs: Jobs, store: JobStore, outputs: Outputs, arrivals: Arrivals) -> None:
        self._jobs = jobs
        self._arrivals = arrivals
        self._store = store
        self._outputs = outputs

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route(c.JOB_GET, self.get),
            route(c.JOB_LIST, self.list),
            route(c.JOB_EVENTS, self.events),
            route(c.JOB_LOGS, self.logs),
            route(c.JOB_METRICS, self.metrics),
            route(c.JOB_OUTPUTS, self.outputs),
            route(c.JOB_DELIVERIES, self.deliveries),
        ]

    async def get(self, query: JobQuery) -> JobView:
        """Return one job, not older than the log; of one that has just ended with what it said last of its progress."""
        found = await self._jobs.get(query.job_id, query.min_seq)
        if query.settled:
            found = await self._jobs.settled(query.job_id)
        await self._arrivals.catch_up_fresh(found.job)
        return (await self._views([found]))[0]

    async def list(self, query: JobListQuery) -> JobList:
        """Return a page of jobs, newest first."""
        wanted, limit = q.jobs_filter(query), q.bounded(query.limit, q.JOBS_MOST)
        await self._jobs.catch_up()
        found = await self._store.jobs(wanted, limit + 1)
        page = found[: min(limit, q.fitting(one.bytes for one in found))]
        more = len(found) > len(page)
        cursor = q.cursor_text(page[-1].created_us, page[-1].job.id) if more else None
        return JobList(jobs=tuple(await self._views(page)), cursor=cursor)

    async def events(self, query: EventQuery) -> EventPage:
        """Return events after a sequence."""
        limit = q.bounded(query.limit, q.EVENTS_MOST)
        await self._jobs.catch_up(query.job_id)
        found = await self._store.events(q.events_filter(query), limit)
        return EventPage(events=tuple(found[: q.fitting(len(one.to_bytes()) for one in found)]))

    async def logs(self, query: LogQuery) -> LogPage:
        """Return lines of an attempt, as far as they have come in; of one that is over all that the stream has."""
        job = (await self._jobs.get(query.job_id)).job
        attempt = job.attempt if query.attempt is None else query.attempt
        key = await self._key(job, attempt)
        if key is None:
            return LogPage(attempt=attempt)
        await self._arrivals.catch_up(job, attempt)
        since_us = microseconds(query.since) if query.since else None
        wanted = q.logs_filter(key, query, since_us)
        limit = q.bounded(query.limit, q.LINES_MOST)
        if query.tail is not None:
            limit = min(max(0, query.tail), limit)
            lines, _ = await _take(self._store.lines_backwards(wanted), query, limit)
            return LogPage(attempt=attempt, lines=tuple(reversed(lines)))
        lines, more = await _take(self._store.lines(wanted), query, limit)
        return LogPage(attempt=attempt, lines=tuple(lines), more=more)

    async def metrics(self, query: MetricQuery) -> MetricPage:
        """Return what an attempt measured; of one that is over all that the stream has."""
        job = (await self._jobs.get(query.job_id, query.min_seq)).job
        attempt = job.attempt if query.attempt is None else query.attempt
        key = await self._key(job, attempt)
        await self._arrivals.catch_up(job, attempt)
        points = await self._store.points(key) if key else []
        return await asyncio.to_thread(metrics.page, attempt, points, query.names, query.most)

    async def outputs(self, query: OutputQuery) -> OutputPage:
        """Return what the job left."""
        listed = await self._outputs.of((await self._jobs.get(query.job_id)).job)
        if query.path is not None:
            return o.one(listed, query.path)
        return o.page(listed, query.cursor, query.limit)

    async def deliveries(self, query: JobQuery) -> DeliveryList:
        """Return the job's notifications."""
        found = await self._store.deliveries(query.job_id)
        return DeliveryList(deliveries=tuple(found[: q.fitting(len(one.to_bytes()) for one in found)]))

    async def _views(self, found: Iterable[StoredJob]) -> "list[JobView]":
        pairs = [(one, _current_key(one.job)) for one in found]
        progress = await self._store.progress([key for _, key in pairs if key])
        nothing: Progress | None = None
        return [JobView(job=one.job, seq=one.seq, progress=progress.get(key or "", nothing)) for one, key in pairs]

    async def _key(self, job: Job, attempt: int) -> str | None:
        """Return where the output of an attempt is, as its own node reported it."""
        node = next((one.node for one in job.attempts if one.number == attempt), None)
        node = node or await self._store.node_of(job.id, attempt)
        return attempt_key(job.id, attempt, node) if node else None


def _current_key(job: Job) -> str | None:
    last = job.attempts[-1] if job.attempts else None
    return attempt_key(job.id, last.number, last.node) if last else None


async def _take(lines: AsyncGenerator[LogLine, None], query: LogQuery, limit: int) -> tuple[list[LogLine], bool]:
    """Return the first *limit* wanted lines, fewer if an answer cannot hold them, and whether there are more."""
    found: list[LogLine] = []
    room = q.ANSWER_BYTES_MOST
    async with aclosing(lines) as source:
        async for line in source:
            if not q.is_wanted(line, query):
                continue
            room -= len(line.to_bytes()) + 1
            if len(found) >= limit or (found and room < 0):
                return found, True
            found.append(line)
    return found, False
