"""The output of all members of a job as one: of a gang, of a map job's workers, of a service's replicas.

Every line says whose it is. Of a gang it is its last round's members; workers and replicas come and go, and the lines
of those that have ended are given too.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from typing import Any

from services.gateway.core import members as m
from services.gateway.core import problems, sse, translate, views
from services.gateway.shell import logs
from services.gateway.shell.gateway import Gateway
from shared.bus import Received
from shared.channels import JOB_FEED, JOB_GET, JOB_LIST, JOB_LOGS
from shared.errors import FieldProblem, Unavailable
from shared.events import JobChanged
from shared.job import Job
from shared.requests.jobs import JobListQuery, JobQuery, LogQuery

#: Events of all members that wait to be sent; a member whose are not taken stands still.
_WAITING_MOST = 256
#: The newest workers or replicas are read, so many: the logs of older ones are at their own ids.
MEMBERS_MOST = 2000
_PAGE = 500
#: Members that have ended and are read at the same time.
_ENDED_AT_ONCE = 8
#: A member that its parent names and that is not recorded yet is looked for again so soon.
_LOOK_AGAIN_S = 1.0


async def text(gateway: Gateway, parent: Job, wish: logs.Wanted) -> AsyncGenerator[bytes, None]:
    """Give the stored lines of one member after the other as text, its name in front of each."""
    for member in await _members(gateway, parent):
        attempt = wish.attempt or (await _job(gateway, member.job_id)).attempt or 1
        mark = f"{member.name} | ".encode()
        async with aclosing(logs.text(gateway, _of(member, wish), attempt)) as pieces:
            async for piece in pieces:
                yield b"".join(mark + line for line in piece.splitlines(keepends=True))


async def document(
    gateway: Gateway, parent: Job, wish: logs.Wanted, limit: int, cursor: str | None
) -> views.LogDocument:
    """Return up to *limit* lines, of one member after the other, from *cursor* on; `tail` of a member is never cut.

    Raises:
        WherryError: ``invalid``: *cursor* is not one that a list gave, or its member is no more.
    """
    there = await _members(gateway, parent)
    begin, after = _start(there, cursor)
    lines: list[views.LineView] = []
    for member in there[begin:]:
        if len(lines) >= limit:
            return _document(wish, lines, m.cursor(member.job_id, 0))
        query = LogQuery(
            job_id=member.job_id, attempt=wish.attempt, stream=wish.stream, after=max(after, wish.first - 1),
            tail=wish.tail, since=wish.since, limit=limit - len(lines) if wish.tail is None else wish.tail or 1,
        )  # fmt: skip
        page = await gateway.ask(JOB_LOGS, query)
        whose = {"member": member.name, "member_id": member.job_id, "node": member.node}
        lines += [translate.line(one).model_copy(update=whose) for one in page.lines]
        if page.more and page.lines and wish.tail is None:
            return _document(wish, lines, m.cursor(member.job_id, max(one.n for one in page.lines)))
        after = 0
    return _document(wish, lines, None)


def follow(gateway: Gateway, parent: Job, wish: logs.Wanted, places: m.Places) -> AsyncGenerator[bytes, None]:
    """Give the server-sent events of all members until their job has ended.

    Args:
        gateway: to ask.
        parent: the job.
        wish: what is wanted of each member.
        places: how far a reader that comes back had come.
    """
    return _Followers(gateway, parent, wish, places).run()


class _Followers:
    def __init__(self, gateway: Gateway, parent: Job, wish: logs.Wanted, places: m.Places) -> None:
        self._gateway, self._parent, self._wish = gateway, parent, wish
        self._places = places
        self._before = m.Places(places.horizon_us, dict(places.places))  # when the reader came
        self._said: asyncio.Queue[tuple[m.Member, logs.Said] | None] = asyncio.Queue(_WAITING_MOST)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, m.Member] = {}
        self._ended_turn = asyncio.Semaphore(_ENDED_AT_ONCE)

    async def run(self) -> AsyncGenerator[bytes, None]:
        watching = asyncio.create_task(self._watch())
        watching.add_done_callback(self._wake)
        try:
            while not (watching.done() and self._said.empty()):
                try:
                    async with asyncio.timeout(self._gateway.settings.heartbeat_s):
                        said = await self._said.get()
                except TimeoutError:
                    yield sse.HEARTBEAT
                    continue
                if said is not None and (frame := self._frame(*said)):
                    yield frame
            if (ended := await watching) is not None:
                yield sse.frame(b'{"state":"%s"}' % ended.encode(), event="end")
        finally:
            for task in (watching, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(watching, *self._tasks.values(), return_exceptions=True)

    def _wake(self, _: object) -> None:
        with suppress(asyncio.QueueFull):  # then the reader has something to do, and looks behind it
            self._said.put_nowait(None)

    async def _watch(self) -> str | None:
        """Follow each member there is until their job has ended; return its last state, or None: that is unknown."""
        gateway, parent = self._gateway, self._parent
        async with gateway.live((JOB_FEED, {"job_id": parent.id})) as inbox:
            parent = await _job(gateway, parent.id)
            missing = await self._follow_all(parent, is_news=False)
            while not gateway.stopping.is_set():
                if parent.is_terminal and not missing:
                    await asyncio.gather(*self._tasks.values())
                    return parent.state.value
                self._check()
                heard = await inbox.get(_LOOK_AGAIN_S if missing else gateway.settings.heartbeat_s)
                try:
                    parent = _job_in(heard) or await _job(gateway, parent.id)
                    missing = await self._follow_all(parent, is_news=heard is not None)
                except Unavailable:  # storage is away: those that are followed go on, and others are looked for again
                    missing = True
        return None

    async def _follow_all(self, parent: Job, *, is_news: bool) -> bool:
        """Follow who is not followed yet; return whether *parent* names some that are not recorded yet.

        Without *is_news*, members may have come and gone of which nothing was heard.
        """
        if not m.come_and_go(parent):
            for member in m.of_gang(parent):
                self._follow(member)
            return False
        if not is_news or parent.is_terminal or not self._knows_all(parent):
            for member in await _recorded(self._gateway, parent.id, self._known):
                self._known[member.job_id] = member
                if not self._before.is_given(member):
                    self._follow(member)
        if not self._knows_all(parent):
            return not parent.is_terminal
        self._places.see(max((one.since_us for one in self._known.values()), default=0))
        return False

    def _knows_all(self, parent: Job) -> bool:
        return all(one.job_id in self._known for one in parent.members)

    def _follow(self, member: m.Member) -> None:
        if member.job_id not in self._tasks:
            resume = self._places.begin(member)
            self._tasks[member.job_id] = asyncio.create_task(self._pass_on(member, resume))

    def _check(self) -> None:
        """Raise what a follower has ended with: the reader then comes back and goes on where it was."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def _pass_on(self, member: m.Member, resume: m.Place | None) -> None:
        async with self._ended_turn if member.is_over else nullcontext():
            wish = replace(_of(member, self._wish), resume=resume)
            async with aclosing(logs.told(self._gateway, wish)) as events:
                async for said in events:
                    if said is not None:
                        await self._said.put((member, said))

    def _frame(self, member: m.Member, said: logs.Said) -> bytes | None:
        if said.name == "end":  # in its turn: only now all that it had is given
            self._places.end(member)
            return None
        if said.place:
            self._places.come(member, said.place)
        whose = b'{"member":"%s","member_id":"%s","node":"%s",'
        body = whose % (member.name.encode(), member.job_id.encode(), said.node.encode()) + said.body[1:]
        return sse.frame(body, event=said.name, event_id=self._places.event_id() if said.place else None)


async def _members(gateway: Gateway, parent: Job) -> list[m.Member]:
    if m.come_and_go(parent):
        return await _recorded(gateway, parent.id, {})
    return m.of_gang(parent)


async def _recorded(gateway: Gateway, parent_id: str, known: Mapping[str, m.Member]) -> list[m.Member]:
    """Return the newest members that are recorded, oldest first; without those behind the newest page of *known*."""
    found: list[Job] = []
    cursor: str | None = None
    while len(found) < MEMBERS_MOST:
        page = await gateway.ask(JOB_LIST, JobListQuery(gang_id=parent_id, limit=_PAGE, cursor=cursor))
        found += [one.job for one in page.jobs]
        if (cursor := page.cursor) is None or all(one.job.id in known for one in page.jobs):
            break
    return m.of_jobs(found[:MEMBERS_MOST])


def _start(there: list[m.Member], cursor: str | None) -> tuple[int, int]:
    """Return the member at which a list of lines begins, by its place, and the line of it behind which it does."""
    if cursor is None:
        return 0, 0
    job_id, number = m.parse_cursor(cursor) or ("", 0)
    place = next((at for at, one in enumerate(there) if one.job_id == job_id), None)
    if place is None:
        raise problems.invalid([FieldProblem(field="cursor", message="Take it from the page before, as it is")])
    return place, number


def _document(wish: logs.Wanted, lines: list[views.LineView], cursor: str | None) -> views.LogDocument:
    return views.LogDocument(attempt=wish.attempt or 1, lines=lines, more=cursor is not None, cursor=cursor)


def _of(member: m.Member, wish: logs.Wanted) -> logs.Wanted:
    return replace(wish, job_id=member.job_id)


def _job_in(heard: Received[Any] | None) -> Job | None:
    return heard.data.job if heard is not None and isinstance(heard.data, JobChanged) else None


async def _job(gateway: Gateway, job_id: str) -> Job:
    return (await gateway.ask(JOB_GET, JobQuery(job_id=job_id))).job
