"""Items of map jobs: listed, found by id, and what they need kept."""

from collections import OrderedDict

from services.storage.adapters.item_store import ItemStore
from services.storage.core import queries as q
from services.storage.core.access import parent_of_worker
from services.storage.shell.jobs import Jobs
from shared.clock import monotonic
from shared.errors import NotFound, Unavailable
from shared.requests.artifacts import Artifact
from shared.requests.blobs import BlobRead
from shared.requests.jobs import ItemList, ItemListQuery, ItemQuery, ItemView

#: How long a node's right to the items of a worker, once seen, is not looked up again.
TRUST_S = 2.0
_TRUSTED_MOST = 256


class Items:
    """Answers about items. Whether the asker may see them is the gateway's to check."""

    def __init__(self, jobs: Jobs, store: ItemStore) -> None:
        self._jobs = jobs
        self._store = store
        self._trusted: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    async def list(self, query: ItemListQuery) -> ItemList:
        """Return a page of a job's items, in the order in which they came.

        Raises:
            WherryError: ``invalid``: an unknown state or cursor.
        """
        wanted, limit = q.items_filter(query), q.bounded(query.limit, q.ITEMS_MOST)
        await self._jobs.settled(query.job_id)
        await self._jobs.catch_up(query.job_id)
        found = await self._store.items(wanted, limit + 1)
        page = found[: min(limit, q.fitting(len(one.to_bytes()) for one in found))]
        cursor = q.cursor_text(page[-1].index) if len(found) > len(page) else None
        return ItemList(items=tuple(await self._store.held(page)), cursor=cursor)

    async def get(self, query: ItemQuery) -> ItemView:
        """Return an item with its job.

        Raises:
            NotFound: there is none, of that job or of that owner.
        """
        job_id = query.job_id or await self._job_of(query.item_id, query.owner_id)
        if job_id:
            job = (await self._jobs.settled(job_id)).job
            if query.owner_id is None or job.owner.id == query.owner_id:
                await self._jobs.catch_up(job_id)
                item = await self._store.item(job_id, query.item_id)
                if item is not None:
                    return ItemView(item=(await self._store.held([item]))[0], job=job)
        raise NotFound(f"There is no item {query.item_id!r}.")

    async def digest(self, node_id: str, wanted: BlobRead) -> str:
        """Return the digest of an item's artifact, for the node that runs a worker of its job.

        Raises:
            NotFound: the node does not, or the item is given with another artifact.
            Unavailable: the item is not known here yet.
        """
        worker_id, item_id = wanted.job_id or "", wanted.item or ""
        key = (node_id, worker_id)
        until, parent = self._trusted.get(key, (0.0, ""))
        if monotonic() >= until:
            parent = parent_of_worker((await self._jobs.get(worker_id, wanted.min_seq)).job, node_id, item_id)
            self._trusted[key] = (monotonic() + TRUST_S, parent)
            while len(self._trusted) > _TRUSTED_MOST:
                self._trusted.popitem(last=False)
        item = await self._store.item(parent, item_id)
        if item is None:
            raise Unavailable(f"The item {item_id!r} is not known here yet.")
        if item.spec.artifact != wanted.artifact_id or item.spec.sha256 is None:
            raise NotFound(f"There is no artifact {wanted.artifact_id!r} for the item {item_id!r}.")
        return item.spec.sha256

    async def _job_of(self, item_id: str, owner_id: str | None) -> str | None:
        """Return the job that has the item. One that was added a moment ago counts."""
        found = await self._store.job_of(item_id, owner_id)
        if found is None and (last := await self._jobs.last_given(owner_id)):
            await self._jobs.settled(last)
            await self._jobs.catch_up(last)
            found = await self._store.job_of(item_id, owner_id)
        return found

    async def with_artifact(self, artifact: Artifact) -> str | None:
        """Return the job that has not ended and has *artifact* as an item, or None."""
        job_id = await self._store.open_job_with(artifact.id)
        return f"Job {job_id}" if job_id else None
