"""What was fetched from the web for which job, and who is at it."""

from collections.abc import Mapping
from typing import Any

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.projections import Document
from shared.states import JOB_TERMINAL


class FetchStore:
    """Collection ``fetches``. One that is under way belongs to its holder until its lease ends."""

    def __init__(self, mongo: Mongo) -> None:
        self._fetches = mongo["fetches"]
        self._jobs = mongo["jobs"]

    async def get(self, key: str) -> Document | None:
        """Return a fetch's document."""
        return await self._fetches.find_one({"_id": key})

    async def unfinished_with(self, artifact_id: str) -> str | None:
        """Return a job that has not ended and for which this artifact was fetched."""
        job_ids = await self._fetches.distinct("job_id", {"artifact_id": artifact_id})
        wanted = {"_id": {"$in": job_ids}, "state": {"$nin": [state.value for state in JOB_TERMINAL]}}
        found = await self._jobs.find_one(wanted, {"_id": 1})
        return found["_id"] if found else None

    async def begin(self, document: Document) -> bool:
        """Write a new fetch; return whether this call did it."""
        try:
            await self._fetches.insert_one(document)
        except DuplicateKeyError:
            return False
        return True

    async def take_over(self, document: Document, fields: Mapping[str, Any]) -> bool:
        """Become the holder of a fetch if it still is as in *document*; return whether it was."""
        before = {field: document[field] for field in ("_id", "state", "holder", "lease_us")}
        return (await self._fetches.update_one(before, {"$set": dict(fields)})).matched_count == 1

    async def renew(self, key: str, holder: str, until_us: int, got: int) -> int | None:
        """Hold on to a fetch that has *got* bytes; return when it was last asked for, or None if it is another's."""
        wanted = {"_id": key, "holder": holder, "state": "fetching"}
        found = await self._fetches.find_one_and_update(wanted, {"$set": {"lease_us": until_us, "bytes": got}})
        return found["asked_us"] if found else None

    async def ask(self, key: str, now_us: int) -> None:
        """Note that somebody waits for it."""
        await self._fetches.update_one({"_id": key}, {"$set": {"asked_us": now_us}})

    async def end(self, key: str, holder: str, fields: Mapping[str, Any]) -> bool:
        """Write down how it ended, if it is the holder's; return whether it is."""
        wanted = {"_id": key, "holder": holder, "state": "fetching"}
        return (await self._fetches.update_one(wanted, {"$set": dict(fields)})).matched_count == 1

    async def release(self, key: str, holder: str) -> None:
        """Let somebody else take it over at once."""
        wanted = {"_id": key, "holder": holder, "state": "fetching"}
        await self._fetches.update_one(wanted, {"$set": {"lease_us": 0}})
