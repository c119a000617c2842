"""The newest state of a job, and how far the projection is."""

import asyncio
from collections import OrderedDict

from services.storage.adapters.job_store import JobStore, StoredJob
from services.storage.core.projections import microseconds
from shared.bus import Bus, job_filter
from shared.channels import ITEMS_ADDED, JOBS
from shared.clock import monotonic
from shared.errors import NotFound, Unavailable
from shared.events import JobChanged
from shared.ids import TOKEN

#: How long a question waits for what the log already has.
WAIT_S = 5.0
_LOOK_AGAIN_S = 0.05
#: How long a question waits for the scheduler to take in the items that were given before it; and jobs of which is
#: remembered that this was in vain.
SETTLE_S = 2.0
GIVEN_UP_KEPT = 1024

#: All events of all jobs.
ALL_JOBS = "wherry.job.>"


class ProjectionMark:
    """Up to which sequence of a stream is projected, as far as this process knows, for those who wait for it."""

    def __init__(self) -> None:
        self.seq = 0
        self._moved = asyncio.Event()

    def move(self, seq: int) -> None:
        """Note that everything that was delivered up to *seq* is written."""
        self.seq = max(self.seq, seq)
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next move, or after *timeout_s*."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
        except TimeoutError:
            return


class Jobs:
    """Reads jobs so that nobody sees less than the log has.

    Every event carries the whole job, so the last event on the stream is the job: no projection has to catch up for it.
    MongoDB answers for jobs whose events the stream no longer has.
    """

    def __init__(self, bus: Bus, store: JobStore, mark: ProjectionMark) -> None:
        self._bus = bus
        self._store = store
        self._mark = mark
        self._given_up: OrderedDict[str, int] = OrderedDict()

    async def get(self, job_id: str, min_seq: int = 0) -> StoredJob:
        """Return a job, as of *min_seq* or later.

        Raises:
            NotFound: there is no such job.
            Unavailable: that sequence did not come into sight in time, or NATS or MongoDB do not answer.
        """
        if not TOKEN.match(job_id):  # it becomes part of a subject filter: no user's wildcard may get there
            raise NotFound(f"There is no job {job_id!r}.")
        give_up_at = monotonic() + WAIT_S
        while True:
            found = await self._latest(job_id)
            if found and found.seq >= min_seq:
                return found
            if not min_seq:
                raise NotFound(f"There is no job {job_id}.")
            if monotonic() > give_up_at:
                raise Unavailable(f"Job {job_id} is not in sight as of sequence {min_seq} yet: ask again.")
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def settled(self, job_id: str) -> StoredJob:
        """Return a job; a map job once the scheduler has taken in the items that it was given, or soon after.

        The scheduler is waited for once: what it has not taken in by then it may have refused.

        Raises:
            NotFound, Unavailable: as `get`.
        """
        found = await self.get(job_id)
        if found.job.items is None or found.job.is_terminal:
            return found
        given = await self._bus.last(JOBS, ITEMS_ADDED.wildcard(job_id=job_id))
        if given is None or self._given_up.get(job_id, 0) >= given.seq:
            return found
        give_up_at = monotonic() + SETTLE_S
        while found.job.input_seq < given.seq and not found.job.is_terminal:
            if monotonic() > give_up_at:
                self._given_up[job_id] = given.seq
                while len(self._given_up) > GIVEN_UP_KEPT:
                    self._given_up.popitem(last=False)
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
            found = await self.get(job_id)
        return found

    async def last_given(self, owner_id: str | None) -> str | None:
        """Return the job that was the last to be given items, of one owner or (None) of all."""
        subjects = ITEMS_ADDED.wildcard(**({"owner": owner_id} if owner_id else {}))
        last = await self._bus.last(JOBS, subjects)
        return last.params["job_id"] if last else None

    async def _latest(self, job_id: str) -> StoredJob | None:
        last = await self._bus.last(JOBS, job_filter(job_id))
        if last and isinstance(last.data, JobChanged):
            return StoredJob(last.data.job, last.seq, microseconds(last.data.job.created_at), len(last.body))
        return await self._store.job(job_id)

    async def catch_up(self, job_id: str | None = None) -> None:
        """Wait until what the log has now (of one job, or all) is projected, at most WAIT_S seconds."""
        if job_id is not None and not TOKEN.match(job_id):
            return
        subjects = ALL_JOBS if job_id is None else job_filter(job_id)
        last = await self._bus.last(JOBS, subjects)
        give_up_at = monotonic() + WAIT_S
        while last and self._mark.seq < last.seq and monotonic() < give_up_at:
            # Another storage may have taken this event: then only MongoDB can tell.
            if await self._store.has_event(last.seq):
                return
            await self._mark.wait(_LOOK_AGAIN_S)
