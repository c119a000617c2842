"""What a running job has left so far: the node is asked to store it, and what it has stored is shown."""

import asyncio
from datetime import timedelta

from services.storage.adapters.snapshot_store import Snapshot, SnapshotStore
from services.storage.core import outputs as o
from services.storage.core.access import live_ref
from services.storage.shell.jobs import Jobs
from services.storage.shell.outputs import Outputs
from shared.bus import Bus
from shared.channels import SNAPSHOT_WANTED
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, WherryError
from shared.requests.outputs import OutputPage, SnapshotAsk, SnapshotPage, SnapshotQuery, SnapshotTaken, SnapshotWanted
from shared.states import AttemptState

#: Looks at one job that may be under way at once, and how long an unanswered one counts.
OPEN_MOST, OPEN_FOR = 4, timedelta(minutes=5)
_WAIT_S, _LOOK_AGAIN_S = 1.5, 0.05
_VISIBLE = frozenset({AttemptState.RUNNING, AttemptState.FINISHING})


class Snapshots:
    """Asks nodes, and keeps their answers for a while. Whether the asker may see the job is the gateway's to check."""

    def __init__(self, bus: Bus, store: SnapshotStore, jobs: Jobs, outputs: Outputs) -> None:
        self._bus = bus
        self._store = store
        self._jobs = jobs
        self._outputs = outputs

    async def ask(self, ask: SnapshotAsk) -> None:
        """Ask the node that runs a job. Asking again with the same id asks nothing new.

        Raises:
            NotFound: there is no such job.
            WherryError: ``not_running``; ``busy``: it is being looked at too often.
        """
        current = (await self._jobs.get(ask.job_id)).job.current
        if current is None or current.state not in _VISIBLE:
            raise WherryError("not_running", f"Job {ask.job_id} runs nowhere at the moment.")
        if await self._store.open(ask.job_id, utc_now() - OPEN_FOR) >= OPEN_MOST:
            raise WherryError("busy", f"Job {ask.job_id} is being looked at {OPEN_MOST} times already.", retryable=True)
        wanted = SnapshotWanted(
            snapshot_id=ask.snapshot_id, job_id=ask.job_id, attempt=current.number, path=ask.path,
            bytes_max=ask.bytes_max,
        )  # fmt: skip
        await self._store.add(current.node, wanted, utc_now())
        await self._bus.publish(SNAPSHOT_WANTED, wanted, node_id=current.node)

    async def get(self, query: SnapshotQuery) -> SnapshotPage:
        """Return what was there, after a moment if the node has not answered yet.

        Raises:
            NotFound: there is no such look at the job, or no more; or nothing was at `path`.
            WherryError: what the node answered.
        """
        give_up_at = monotonic() + _WAIT_S
        while True:
            found = await self._store.get(query.snapshot_id)
            if found is None or found.wanted.job_id != query.job_id:
                raise NotFound("There is no such look at the job, or no more.")
            if found.taken is not None:
                return await self._page(found, found.taken, query)
            if monotonic() > give_up_at:
                # The node may have been without a connection: it knows by the id what it is at already.
                await self._bus.publish(SNAPSHOT_WANTED, found.wanted, node_id=found.node_id)
                return SnapshotPage()
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def taken(self, who: dict[str, str], taken: SnapshotTaken) -> None:
        """Take in a node's answer.

        Raises:
            NotFound: it was not asked.
        """
        if who["kind"] != "node" or not await self._store.answer(who["peer"], taken, utc_now()):
            raise NotFound("Nobody has asked this node for it.")

    async def _page(self, found: Snapshot, taken: SnapshotTaken, query: SnapshotQuery) -> SnapshotPage:
        if taken.manifest is None or found.taken_at is None:
            raise WherryError(taken.error or "unavailable", taken.message)
        wanted = found.wanted
        scope = live_ref(wanted.job_id, wanted.snapshot_id)
        listed = await self._outputs.listed(scope, taken.manifest, found.taken_at)
        page: OutputPage = (
            o.page(listed, query.cursor, query.limit) if query.path is None else o.one(listed, query.path)
        )
        return SnapshotPage(taken_at=found.taken_at, attempt=wanted.attempt, page=page)
