"""A job's output as text, and as it grows: live batches and stored lines put together by their numbers."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel

from services.gateway.adapters.inbox import Inbox
from services.gateway.core import sse, translate, views
from services.gateway.core.tail import Gap, Piece, Tail, event_id, wanted
from services.gateway.shell.gateway import Gateway
from shared.bus import Received
from shared.channels import JOB_FEED, JOB_GET, JOB_LOGS, OUTPUT_FEED
from shared.clock import monotonic, utc_now
from shared.errors import Unavailable
from shared.events import JobChanged, LogLine, OutputBatch
from shared.job import Job
from shared.requests.jobs import JobQuery, JobView, LogPage, LogQuery
from shared.states import ATTEMPT_TERMINAL

_PAGE = 1000
#: How often a hole is looked for in the store before it counts as one, and seconds between.
_HOLE_TRIES, _HOLE_PAUSE_S = 6, 0.3
#: After the end: the store is read until it has had nothing new twice, this many seconds apart.
_QUIET_S = 0.3
#: Storage has everything of a job that ended longer ago.
_SETTLED = timedelta(seconds=15)
_POLL_FIRST_S = 1.0
#: Seconds for an answer when nothing was heard for a while: where storage is away, what is heard must not wait long.
_LOOK_S = 3.0
_NUMBER_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines. `attempt` None: the current one, and when following also the next ones."""

    job_id: str
    attempt: int | None = None
    stream: Literal["o", "e"] | None = None
    tail: int | None = None
    since: datetime | None = None
    first: int = 1  # the number of the first line
    resume: tuple[int, int] | None = None  # attempt and line that the reader saw last


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a followed log: its name, a JSON object, and where (attempt, line) a reader goes on behind it.

    `node`: of the attempt that it is of, as far as that is known.
    """

    name: str
    body: bytes
    place: tuple[int, int] | None = None
    node: str = ""


async def text(gateway: Gateway, wish: Wanted, attempt: int) -> AsyncGenerator[bytes, None]:
    """Give the stored lines as text, a line that stands for missing ones included."""
    in_the_middle = wish.tail is not None or wish.since is not None or wish.stream is not None
    tail = Tail(attempt, None if in_the_middle else wish.first - 1)
    async with aclosing(_pages(gateway, wish, attempt, wish.first - 1)) as pages:
        async for page in pages:
            pieces = tail.take(page.lines)
            parts = [_text(piece) for piece in pieces if wish.stream is None or isinstance(piece, LogLine)]
            yield "".join(parts).encode()


async def document(gateway: Gateway, wish: Wanted, attempt: int, after: int, limit: int) -> LogPage:
    """Return a page of stored lines."""
    return await gateway.ask(JOB_LOGS, _query(wish, attempt, max(after, wish.first - 1), limit))


async def follow(gateway: Gateway, wish: Wanted) -> AsyncGenerator[bytes, None]:
    """Give the server-sent events of a job's output until it has ended and all its stored lines were given."""
    async with aclosing(told(gateway, wish)) as events:
        async for said in events:
            yield sse.HEARTBEAT if said is None else frame(said)


def frame(said: Said) -> bytes:
    """Return an event as it is sent."""
    return sse.frame(said.body, event=said.name, event_id=event_id(*said.place) if said.place else None)


def told(gateway: Gateway, wish: Wanted) -> AsyncGenerator[Said | None, None]:
    """Give what `follow` does as values; None is a sign of life in a silence."""
    return _Follower(gateway, wish).run()


class _Follower:
    def __init__(self, gateway: Gateway, wish: Wanted) -> None:
        self._gateway = gateway
        self._wish = wish
        self._tail = Tail(1)
        self._ended: Job | None = None
        self._nodes: dict[int, str] = {}  # of each attempt
        self._poll_s = _POLL_FIRST_S

    async def run(self) -> AsyncGenerator[Said | None, None]:
        wish = self._wish
        params = {"job_id": wish.job_id}
        async with self._gateway.live((OUTPUT_FEED, params), (JOB_FEED, params)) as inbox:
            view = await self._view()
            self._begin(view)
            if view.progress is not None:
                yield _said("progress", translate.progress(view.progress))
            are_all = self._tail.last is not None or wish.stream is None
            async for page in self._first_pages():
                for said in self._events(self._tail.take(page.lines, are_all=are_all)):
                    yield said
            if wish.tail == 0 and self._tail.last is None:
                await self._to_the_end()
            self._notice(view.job)
            settled = view.job.ended_at is not None and utc_now() - view.job.ended_at > _SETTLED
            async for said in self._live(inbox):
                yield said
            if self._ended is not None:
                if wish.attempt is None:
                    async for said in self._next_attempt(self._ended.attempt):
                        yield said
                async for said in self._rest(settled=settled):
                    yield said
                yield Said("end", b'{"state":"%s"}' % self._ended.state.value.encode())

    async def _view(self, *, timeout_s: float | None = None, retry_s: float = 10) -> JobView:
        query = JobQuery(job_id=self._wish.job_id)
        return await self._gateway.bus.ask(JOB_GET, query, timeout_s=timeout_s, retry_s=retry_s)

    def _begin(self, view: JobView) -> None:
        wish = self._wish
        self._nodes |= {item.number: item.node for item in view.job.attempts}
        if wish.resume is not None and wish.attempt in (None, wish.resume[0]):
            self._tail = Tail(*wish.resume)
        else:
            in_the_middle = wish.tail is not None or wish.since is not None
            self._tail = Tail(wish.attempt or view.job.attempt or 1, None if in_the_middle else wish.first - 1)

    async def _first_pages(self) -> AsyncGenerator[LogPage, None]:
        if self._tail.last is None:
            async for page in _pages(self._gateway, self._wish, self._tail.attempt, self._wish.first - 1):
                yield page
        else:
            async for page in self._stored():
                yield page

    async def _to_the_end(self) -> None:
        """Move behind all lines that are stored, of both streams."""
        last = Wanted(self._wish.job_id, tail=1)
        page = await document(self._gateway, last, self._tail.attempt, 0, 1)
        self._tail.last = page.lines[-1].n if page.lines else 0

    async def _live(self, inbox: Inbox) -> AsyncGenerator[Said | None, None]:
        gateway, silent_since = self._gateway, monotonic()
        while self._ended is None and not gateway.stopping.is_set():
            heard = await inbox.get(min(self._poll_s, gateway.settings.heartbeat_s))
            events = self._hear(heard) if heard is not None else self._look()
            async for said in events:
                silent_since = monotonic()
                yield said
            if monotonic() - silent_since >= gateway.settings.heartbeat_s:
                silent_since = monotonic()
                yield None

    async def _hear(self, heard: Received[Any]) -> AsyncGenerator[Said | None, None]:
        self._poll_s = _POLL_FIRST_S
        if isinstance(heard.data, JobChanged):
            self._notice(heard.data.job)
        elif isinstance(heard.data, OutputBatch) and (attempt := await self._own(heard.params)) is not None:
            if attempt > self._tail.attempt and self._wish.attempt is None:
                async for said in self._next_attempt(attempt):
                    yield said
            if attempt == self._tail.attempt:
                async for said in self._batch(heard.data):
                    yield said

    async def _own(self, params: Mapping[str, str]) -> int | None:
        """Return the attempt that output is of, if its own node says so: any node can talk about any job."""
        text = params["attempt"]
        attempt = int(text) if text.isdecimal() and len(text) < _NUMBER_LENGTH else 0
        if attempt > max(self._nodes, default=0):
            self._notice((await self._view()).job)
        return attempt if self._nodes.get(attempt) == params["node_id"] else None

    async def _look(self) -> AsyncGenerator[Said | None, None]:
        """Nothing was heard for a while: see whether something was missed. Where storage is away, see again later."""
        self._poll_s = min(2 * self._poll_s, self._gateway.settings.heartbeat_s)
        with suppress(Unavailable):
            job = (await self._view(timeout_s=_LOOK_S, retry_s=0)).job
            async for page in self._stored():
                for said in self._events(self._tail.take(page.lines)):
                    yield said
            if self._wish.attempt is None and job.attempt > self._tail.attempt:
                async for said in self._next_attempt(job.attempt):
                    yield said
            self._notice(job)

    async def _batch(self, batch: OutputBatch) -> AsyncGenerator[Said | None, None]:
        for _ in range(_HOLE_TRIES):
            if not self._tail.missing_before(batch.lines, batch.lost):
                break
            async for page in self._stored():
                for said in self._events(self._tail.take_joined(page.lines)):
                    yield said
            if self._tail.missing_before(batch.lines, batch.lost):
                await asyncio.sleep(_HOLE_PAUSE_S)
        for said in self._events(self._tail.take(batch.lines)):
            yield said
        if batch.progress is not None:
            yield _said("progress", translate.progress(batch.progress))
        for point in batch.metrics if batch.final is None else ():
            yield _said("metric", translate.point(point))

    async def _next_attempt(self, attempt: int) -> AsyncGenerator[Said | None, None]:
        while self._tail.attempt < attempt:
            async for said in self._rest(settled=True):
                yield said
            self._tail = Tail(self._tail.attempt + 1)

    async def _rest(self, *, settled: bool) -> AsyncGenerator[Said | None, None]:
        """Give what the store still has of this attempt; unless it is *settled*, wait until nothing more comes."""
        quiet = 1 if settled else 2
        while quiet:
            before = self._tail.last
            async for page in self._stored():
                for said in self._events(self._tail.take(page.lines)):
                    yield said
            quiet = quiet - 1 if self._tail.last == before else quiet
            if quiet:
                await asyncio.sleep(_QUIET_S)

    async def _stored(self) -> AsyncGenerator[LogPage, None]:
        """Give the pages after the last line given, of both streams: only so is a hole seen."""
        everything = Wanted(self._wish.job_id)
        async for page in _pages(self._gateway, everything, self._tail.attempt, self._tail.last or 0):
            yield page

    def _notice(self, job: Job) -> None:
        self._nodes |= {item.number: item.node for item in job.attempts}
        one = next((item for item in job.attempts if item.number == self._wish.attempt), None)
        if job.is_terminal or (one is not None and one.state in ATTEMPT_TERMINAL):
            self._ended = job

    def _events(self, pieces: Sequence[Piece]) -> list[Said]:
        attempt, wish = self._tail.attempt, self._wish
        node = self._nodes.get(attempt, "")
        events: list[Said] = []
        for piece in pieces:
            if isinstance(piece, Gap):
                gap = b'{"first":%d,"last":%d,"count":%d}' % (piece.first, piece.last, piece.count)
                events.append(Said("gap", gap, (attempt, piece.last), node))
            elif wanted(piece, wish.stream) and (wish.since is None or piece.t >= wish.since):
                events.append(_said("log", translate.line(piece), (attempt, piece.n), node))
        return events


async def _pages(gateway: Gateway, wish: Wanted, attempt: int, after: int) -> AsyncGenerator[LogPage, None]:
    while True:
        page = await gateway.ask(JOB_LOGS, _query(wish, attempt, after, _PAGE))
        if page.lines:
            yield page
        if not page.more or not page.lines or wish.tail is not None:
            return
        after = max(line.n for line in page.lines)


def _query(wish: Wanted, attempt: int, after: int, limit: int) -> LogQuery:
    return LogQuery(
        job_id=wish.job_id, attempt=attempt, stream=wish.stream, after=after, tail=wish.tail, since=wish.since,
        limit=limit,
    )  # fmt: skip


def _text(piece: Piece) -> str:
    return f"{piece.x}\n" if isinstance(piece, LogLine) else translate.lost_text(piece.first, piece.last)


def _said(name: str, view: BaseModel, place: tuple[int, int] | None = None, node: str = "") -> Said:
    unknown = {"member", "member_id", "node"}  # whoever follows many adds whose it is
    if isinstance(view, views.LineView) and view.item is None:
        unknown.add("item")
    body = view.model_dump_json(exclude=unknown)
    return Said(name, body.encode(), place, node)
