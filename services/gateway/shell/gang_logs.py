"""The output of all members of a gang as one: every line says whose it is."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from services.gateway.core import sse, translate, views
from services.gateway.core.tail import member_name, members_event_id
from services.gateway.shell import logs
from services.gateway.shell.gateway import Gateway
from shared.bus import Received
from shared.channels import JOB_FEED, JOB_GET, JOB_LOGS
from shared.events import JobChanged
from shared.job import GangMember, Job
from shared.requests.jobs import JobQuery, LogQuery

#: Events of all members that wait to be sent; a member whose are not taken stands still.
_WAITING_MOST = 256


async def text(gateway: Gateway, gang: Job, wish: logs.Wanted) -> AsyncGenerator[bytes, None]:
    """Give the stored lines of one member after the other as text, its name in front of each."""
    for member in gang.members:
        job = await _job(gateway, member.job_id)
        mark = f"{member_name(member)} | ".encode()
        async with aclosing(logs.text(gateway, _of(member, wish), wish.attempt or job.attempt or 1)) as pieces:
            async for piece in pieces:
                yield b"".join(mark + line for line in piece.splitlines(keepends=True))


async def document(gateway: Gateway, gang: Job, wish: logs.Wanted, limit: int) -> views.LogDocument:
    """Return the first *limit* lines of each member."""
    lines: list[views.LineView] = []
    more = False
    for member in gang.members:
        query = LogQuery(
            job_id=member.job_id, attempt=wish.attempt, stream=wish.stream, after=wish.first - 1, tail=wish.tail,
            since=wish.since, limit=limit,
        )  # fmt: skip
        page = await gateway.ask(JOB_LOGS, query)
        name, more = member_name(member), more or page.more
        lines += [translate.line(one).model_copy(update={"member": name}) for one in page.lines]
    return views.LogDocument(attempt=wish.attempt or 1, lines=lines, more=more)


async def follow(
    gateway: Gateway, gang_id: str, wish: logs.Wanted, places: Mapping[str, tuple[int, int]]
) -> AsyncGenerator[bytes, None]:
    """Give the server-sent events of all members until the gang has ended.

    Args:
        gateway: to ask.
        gang_id: the gang.
        wish: what is wanted of each member.
        places: how far a reader that comes back had come, by the end of each member's id.
    """
    async with aclosing(_Followers(gateway, gang_id, wish, places).run()) as frames:
        async for frame in frames:
            yield frame


class _Followers:
    def __init__(
        self, gateway: Gateway, gang_id: str, wish: logs.Wanted, places: Mapping[str, tuple[int, int]]
    ) -> None:
        self._gateway, self._gang_id, self._wish = gateway, gang_id, wish
        self._places = dict(places)
        self._said: asyncio.Queue[tuple[GangMember, logs.Said] | None] = asyncio.Queue(_WAITING_MOST)
        self._tasks: dict[str, asyncio.Task[None]] = {}

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
                if said is not None:
                    yield self._frame(*said)
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
        """Follow each member there is until the gang has ended; return its last state, or None when that is unknown."""
        gateway = self._gateway
        async with gateway.live((JOB_FEED, {"job_id": self._gang_id})) as inbox:
            gang = await _job(gateway, self._gang_id)
            while not gateway.stopping.is_set():
                self._follow(gang)
                if gang.is_terminal:
                    await asyncio.gather(*self._tasks.values())
                    return gang.state.value
                self._check()
                heard = await inbox.get(gateway.settings.heartbeat_s)
                gang = _gang_in(heard) or await _job(gateway, self._gang_id)
        return None

    def _follow(self, gang: Job) -> None:
        for member in gang.members:
            if member.job_id not in self._tasks:
                self._tasks[member.job_id] = asyncio.create_task(self._pass_on(member))

    def _check(self) -> None:
        """Raise what a follower has ended with: the reader then comes back and goes on where it was."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def _pass_on(self, member: GangMember) -> None:
        wish = replace(_of(member, self._wish), resume=self._places.get(_key(member)))
        async with aclosing(logs.told(self._gateway, wish)) as events:
            async for said in events:
                if said is not None and said.name != "end":
                    await self._said.put((member, said))

    def _frame(self, member: GangMember, said: logs.Said) -> bytes:
        if said.place:
            self._places[_key(member)] = said.place
        body = b'{"member":"%s",%s' % (member_name(member).encode(), said.body[1:])
        return sse.frame(body, event=said.name, event_id=members_event_id(self._places) if said.place else None)


def _of(member: GangMember, wish: logs.Wanted) -> logs.Wanted:
    return replace(wish, job_id=member.job_id)


def _key(member: GangMember) -> str:
    return member.job_id[-8:]


def _gang_in(heard: Received[Any] | None) -> Job | None:
    return heard.data.job if heard is not None and isinstance(heard.data, JobChanged) else None


async def _job(gateway: Gateway, job_id: str) -> Job:
    return (await gateway.ask(JOB_GET, JobQuery(job_id=job_id))).job
