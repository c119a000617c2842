"""The projection of map jobs' items."""

from collections.abc import Sequence

from services.storage.adapters.mongo import Mongo, upsert_newer
from services.storage.core.access import attempt_ref
from services.storage.core.projections import Document, Upsert, item_key, newest
from services.storage.core.queries import Filter
from shared.job import Item
from shared.manifest import stays_below
from shared.states import JOB_TERMINAL

_TERMINAL = [state.value for state in sorted(JOB_TERMINAL)]


class ItemStore:
    """Collection ``items``. An item is kept as long as its job; so is what its worker has stored for it."""

    def __init__(self, mongo: Mongo) -> None:
        self._items = mongo["items"]
        self._jobs = mongo["jobs"]
        self._refs = mongo["blob_refs"]

    async def write(self, upserts: list[Upsert]) -> None:
        """Write items as events have them."""
        await upsert_newer(self._items, newest(upserts))

    async def item(self, job_id: str, item_id: str) -> Item | None:
        """Return an item of a job, with all files that its worker says it left."""
        document = await self._items.find_one({"_id": item_key(job_id, item_id)})
        return _item(document) if document else None

    async def job_of(self, item_id: str, owner_id: str | None) -> str | None:
        """Return the job that has an item of this id, of one owner or (None) of anybody: the first, by its id."""
        wanted = {"item_id": {"$eq": item_id}} | ({} if owner_id is None else {"owner_id": {"$eq": owner_id}})
        document = await self._items.find_one(wanted, {"job_id": 1}, sort=[("job_id", 1)])
        return document["job_id"] if document else None

    async def items(self, wanted: Filter, limit: int) -> list[Item]:
        """Return items in the order in which they came, with all files that their workers say they left."""
        found = self._items.find(wanted, {"item": 1}).sort("index", 1).limit(limit)
        return [_item(document) async for document in found]

    async def held(self, items: Sequence[Item]) -> list[Item]:
        """Return *items* with only those files whose bytes their own worker's attempt has stored.

        A path that leads elsewhere is none. A result that was given is the item's own artifact, which the gateway has
        looked up.
        """
        made = [one for one in items if one.files and not one.spec.given]
        scopes = {one.id: attempt_ref(one.worker, one.attempt) for one in made}
        digests = {file.blob.sha256 for one in made for file in one.files}
        wanted = {"scope": {"$in": sorted(set(scopes.values()))}, "sha256": {"$in": sorted(digests)}}
        found = self._refs.find(wanted, {"_id": 0, "scope": 1, "sha256": 1}) if digests else None
        held = {(ref["scope"], ref["sha256"]) async for ref in found} if found else set[tuple[str, str]]()
        return [
            one.model_copy(
                update={
                    "files": tuple(
                        file
                        for file in one.files
                        if (scopes[one.id], file.blob.sha256) in held and stays_below(file.path)
                    )
                }
            )
            if one.id in scopes
            else one
            for one in items
        ]

    async def open_job_with(self, artifact_id: str) -> str | None:
        """Return a job that has not ended and has an artifact as an item, or None."""
        async for document in self._items.find({"artifact": {"$eq": artifact_id}}, {"job_id": 1}):
            wanted = {"_id": document["job_id"], "state": {"$nin": _TERMINAL}}
            if await self._jobs.find_one(wanted, {"_id": 1}):
                return document["job_id"]
        return None


def _item(document: Document) -> Item:
    return Item.from_bytes(document["item"].encode())
