"""Requests to services: replicas are known from the log's feed, one is asked, and another where it does not answer."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from services.gateway.adapters import replica as replicas
from services.gateway.adapters.replica import Answer, Room, Wish
from services.gateway.core import serving
from services.gateway.core.serving import Board, Lack, Replica
from shared import observe
from shared.bus import Bus, Handle, Received, Record
from shared.channels import JOB_FEED, JOB_GET, JOB_LIST, SERVICE_ASKED
from shared.clock import monotonic, utc_now
from shared.errors import WherryError
from shared.events import JobChanged, ServiceAsked
from shared.job import Job
from shared.requests.jobs import JobListQuery, JobQuery, JobView
from shared.spec import Service
from shared.states import JobState

#: Services that are followed at a time.
_FOLLOWED_MAX = 1000
#: Seconds between two looks at a service that has no replica: the feed may lose an event.
_LOOK_S = 3.0
#: Seconds after which a service without replicas is asked for again.
_ASK_AGAIN_S = 5.0
_FAILED = (JobState.FAILED.value, JobState.TIMED_OUT.value)
_log = observe.logger("serving")


@dataclass(slots=True, eq=False)
class _Followed:
    """A service whose events are heard. `seq` is that of `job` in the log."""

    job: Job
    seq: int
    reconnects: int
    handle: Handle
    board: Board = field(default_factory=Board)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asked_at: float = float("-inf")
    users: int = 0

    def take(self, job: Job, seq: int) -> None:
        """Take in a newer state of the service."""
        if seq > self.seq:
            self.job, self.seq = job, seq
            self.board.update(serving.replicas_of(job))
            self.changed.set()

    async def news(self, wait_s: float) -> bool:
        """Return whether something has changed, as soon as it has, or after *wait_s* seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                return await self.changed.wait()
        return False


class Serving:
    """All services that this gateway is asked for.

    Args:
        bus: the connection that questions and events go over.
        serve_bus: the one that requests to replicas go over.
        wait_s: seconds to wait for a replica where none runs.
        bytes_max: of one answer.
    """

    def __init__(self, bus: Bus, serve_bus: Bus, wait_s: float, bytes_max: int) -> None:
        self._bus, self._serve_bus, self._wait_s, self._bytes_max = bus, serve_bus, wait_s, bytes_max
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        self._beginning: dict[str, asyncio.Task[_Followed]] = {}

    async def job(self, job_id: str) -> Job:
        """Return a service as it was a moment ago.

        Raises:
            WherryError: ``not_found``, ``unavailable``.
        """
        async with self._following(job_id) as followed:
            return followed.job

    async def ask(self, job_id: str, wish: Wish, *, by: str, room: Room | None = None) -> Answer:
        """Return a replica's answer. Where it is lost, another is asked if the request may be repeated.

        Args:
            job_id: the service.
            wish: what is asked.
            by: the id of who asks.
            room: waits until there is room for a large answer, of so many bytes.

        Raises:
            WherryError: ``not_running``: it has ended, or nobody wants replicas of it; ``unavailable``: none runs yet;
                ``replicas_fail``: nor will one soon, they end before they are ready; ``busy``: all have as many
                requests as they take; ``replica_lost``, ``replica_timeout``, ``too_large``, ``answer_too_large``.
        """
        async with self._following(job_id) as followed:
            service = followed.job.spec.service
            if service is None:
                raise WherryError("not_running", "That job is no service.")
            await self._until_there(followed, by)
            return await self._asked(followed, service, wish, by, room)

    async def last_failed(self, job_id: str) -> Job | None:
        """Return the replica of a service that was made last among those that have failed; None: none has.

        Raises:
            WherryError: storage does not answer.
        """
        page = await self._bus.ask(JOB_LIST, JobListQuery(gang_id=job_id, states=_FAILED, limit=1))
        return page.jobs[0].job if page.jobs else None

    async def close(self) -> None:
        """Follow nothing any more."""
        for beginning in self._beginning.values():
            beginning.cancel()
        while self._followed:
            _, followed = self._followed.popitem()
            await followed.handle.stop()

    # --- one request ---

    async def _asked(self, followed: _Followed, service: Service, wish: Wish, by: str, room: Room | None) -> Answer:
        board, give_up_at = followed.board, monotonic() + service.request_timeout
        is_repeatable, losses = serving.is_repeatable(wish.method, wish.path), 0
        problem: WherryError | None = None
        while True:
            followed.changed.clear()
            now = monotonic()
            if now >= give_up_at:
                raise _given_up(problem, service)
            one = board.choose(now)
            if one is None:
                await self._until_free(followed, by, give_up_at)
                continue
            try:
                return await self._ask_one(board, one, wish, give_up_at - now, room, repeatable=is_repeatable)
            except WherryError as error:
                if not serving.is_elsewhere(error.code, is_repeatable=is_repeatable, losses=losses):
                    raise _lost(error) if error.code == serving.LOST else error from None
                losses += error.code == serving.LOST
                _log.info("replica_refused", job_id=one.job_id, node=one.node, code=error.code)
                problem = error
                board.avoid(one, error.code, monotonic())

    async def _ask_one(
        self, board: Board, one: Replica, wish: Wish, timeout_s: float, room: Room | None, *, repeatable: bool
    ) -> Answer:
        board.begin(one)
        try:
            return await replicas.ask(
                self._serve_bus,
                one.node,
                one.job_id,
                wish,
                timeout_s,
                self._bytes_max,
                repeatable=repeatable,
                room=room,
            )
        finally:
            board.end(one)

    async def _until_free(self, followed: _Followed, by: str, give_up_at: float) -> None:
        """Return when a replica may be asked again, or another has come."""
        if (free_at := followed.board.free_at()) is None:
            await self._until_there(followed, by)
        else:
            await followed.news(max(0.0, min(free_at, give_up_at) - monotonic()))

    # --- services without replicas ---

    async def _until_there(self, followed: _Followed, by: str) -> None:
        """Return when a replica runs. A service that is asleep is woken."""
        give_up_at = monotonic() + self._wait_s
        while not followed.board.replicas:
            followed.changed.clear()
            lack = serving.lack_of(followed.job)
            if lack in (Lack.ENDED, Lack.STOPPED):
                words = "It has ended." if lack is Lack.ENDED else "It has no replicas, and is to have none."
                raise WherryError("not_running", words)
            if lack is Lack.ASLEEP:
                await self._wake(followed, by)
            left_s = give_up_at - monotonic()
            if await self._is_broken(followed.job):
                raise WherryError("replicas_fail", serving.why_waiting(followed.job))
            if left_s <= 0:
                raise WherryError("unavailable", serving.why_waiting(followed.job), retryable=True)
            if not await followed.news(min(_LOOK_S, left_s)):
                await self._look(followed)

    async def _is_broken(self, job: Job) -> bool:
        """Return whether to wait is in vain: a service's replicas fail before they are ready."""
        if not serving.is_failing(job, utc_now()):
            return False
        last = await self.last_failed(job.id)
        return last is not None and not serving.was_ready(last)

    async def _wake(self, followed: _Followed, by: str) -> None:
        if monotonic() - followed.asked_at < _ASK_AGAIN_S:
            return
        followed.asked_at = monotonic()
        job = followed.job
        event = self._bus.event(SERVICE_ASKED, ServiceAsked(by=by, at=utc_now()), subject=job.id)
        await self._bus.record(Record(SERVICE_ASKED, {"owner": job.owner.id, "job_id": job.id}, event))

    # --- what is followed ---

    @asynccontextmanager
    async def _following(self, job_id: str) -> AsyncGenerator[_Followed, None]:
        followed = self._followed.get(job_id)
        if followed is None:
            followed = await self._begun(job_id)
        else:
            self._followed.move_to_end(job_id)
        followed.users += 1
        try:
            if (reconnects := self._bus.reconnects) != followed.reconnects:
                await self._look(followed)
                followed.reconnects = reconnects
            yield followed
        finally:
            followed.users -= 1

    async def _begun(self, job_id: str) -> _Followed:
        """Return a service that was not followed yet. All who ask for it meanwhile share what comes of it."""
        task = self._beginning.get(job_id)
        if task is None:
            task = self._beginning[job_id] = asyncio.create_task(self._follow(job_id))
            task.add_done_callback(lambda _: self._beginning.pop(job_id))
        return await asyncio.shield(task)

    async def _follow(self, job_id: str) -> _Followed:
        """Hear of a service from now on. First the ears, then the question: what happens in between is heard."""
        early: list[Received[Any]] = []
        followed: _Followed | None = None

        def hear(received: Received[Any]) -> None:
            if followed is None:
                early.append(received)
            elif isinstance(received.data, JobChanged):
                followed.take(received.data.job, received.seq)

        handle = await self._bus.listen(JOB_FEED, hear, job_id=job_id)
        reconnects = self._bus.reconnects
        try:
            view = await self._ask_for(job_id)
        except BaseException:
            await handle.stop()
            raise
        followed = _Followed(view.job, 0, reconnects, handle)
        followed.take(view.job, view.seq)
        for received in early:
            hear(received)
        self._followed[job_id] = followed
        await self._forget_oldest()
        return followed

    async def _forget_oldest(self) -> None:
        """Stop hearing of those that are too many: of the ones asked for longest ago, whom nobody asks now."""
        for job_id in list(islice(self._followed, max(0, len(self._followed) - _FOLLOWED_MAX))):
            oldest = self._followed.get(job_id)
            if oldest is not None and not oldest.users:
                del self._followed[job_id]
                await oldest.handle.stop()

    async def _look(self, followed: _Followed) -> None:
        view = await self._ask_for(followed.job.id)
        followed.take(view.job, view.seq)

    async def _ask_for(self, job_id: str) -> JobView:
        return await self._bus.ask(JOB_GET, JobQuery(job_id=job_id))


def _lost(error: WherryError) -> WherryError:
    words = "The program may have worked on the request, so it was not put to another replica (any more)."
    return WherryError(error.code, f"{error.message} {words}")


def _given_up(problem: WherryError | None, service: Service) -> WherryError:
    if problem is not None and problem.code == "replica_busy":
        return WherryError("busy", "All replicas have as many requests as they take; try again.", retryable=True)
    told = f": {problem.message}" if problem else "."
    return WherryError("replica_timeout", f"No answer within {service.request_timeout:g} s{told}")
