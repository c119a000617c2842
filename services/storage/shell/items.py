"""Items of map jobs: listed, found by id, and what they need kept."""

from services.storage.adapters.item_store import ItemStore
from services.storage.core import queries as q
from services.storage.shell.jobs import Jobs
from shared.errors import NotFound
from shared.requests import Artifact, ItemList, ItemListQuery, ItemQuery, ItemView


class Items:
    """Answers about items. Whether the asker may see them is the gateway's to check."""

    def __init__(self, jobs: Jobs, store: ItemStore) -> None:
        self._jobs = jobs
        self._store = store

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
