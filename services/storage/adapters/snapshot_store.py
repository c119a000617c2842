"""Looks at what running jobs have left so far: who was asked, and what was answered."""

from dataclasses import dataclass
from datetime import datetime

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.projections import Document, microseconds, moment_of
from shared.requests.outputs import SnapshotTaken, SnapshotWanted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. `taken` and `taken_at` are None until the node has answered."""

    node_id: str
    wanted: SnapshotWanted
    taken: SnapshotTaken | None
    taken_at: datetime | None


class SnapshotStore:
    """Collection ``snapshots``."""

    def __init__(self, mongo: Mongo) -> None:
        self._snapshots = mongo["snapshots"]

    async def add(self, node_id: str, wanted: SnapshotWanted, now: datetime) -> None:
        """Write down that *node_id* is asked; one of this id that is there already stays."""
        document: Document = {
            "_id": wanted.snapshot_id,
            "job_id": wanted.job_id,
            "node_id": node_id,
            "wanted": wanted.to_bytes().decode(),
            "asked_us": microseconds(now),
        }
        try:
            await self._snapshots.insert_one(document)
        except DuplicateKeyError:
            return

    async def open(self, job_id: str, since: datetime) -> int:
        """Return how many looks at a job were asked for since then and are not answered."""
        wanted = {"job_id": job_id, "asked_us": {"$gte": microseconds(since)}, "taken": None}
        return await self._snapshots.count_documents(wanted)

    async def get(self, snapshot_id: str) -> Snapshot | None:
        """Return a look."""
        document = await self._snapshots.find_one({"_id": snapshot_id})
        if document is None:
            return None
        taken = document.get("taken")
        return Snapshot(
            document["node_id"],
            SnapshotWanted.from_bytes(document["wanted"].encode()),
            SnapshotTaken.from_bytes(taken.encode()) if taken else None,
            moment_of(document["taken_us"]) if taken else None,
        )

    async def answer(self, node_id: str, taken: SnapshotTaken, now: datetime) -> bool:
        """Keep what *node_id* answers, and tell whether it was asked. The first answer counts."""
        asked = {"_id": taken.snapshot_id, "node_id": node_id}
        answer = {"$set": {"taken": taken.to_bytes().decode(), "taken_us": microseconds(now)}}
        await self._snapshots.update_one(asked | {"taken": None}, answer)
        return await self._snapshots.count_documents(asked) == 1
