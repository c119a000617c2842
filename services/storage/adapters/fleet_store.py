"""Projections of what is said of the fleet: nodes, owners' quotas, dead letters."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from services.storage.adapters.mongo import Mongo, insert_new, upsert_newer
from services.storage.core import fleet as f
from services.storage.core.projections import Document, Upsert, microseconds, newest
from services.storage.core.queries import Filter, fitting
from shared.events import MetricPoint
from shared.fleet import NodeRecord, Quota
from shared.requests.administration import DeadLetterView
from shared.requests.nodes import NodeView


class FleetStore:
    """Collections ``nodes``, ``node_samples``, ``quotas`` and ``dead_letters``."""

    def __init__(self, mongo: Mongo) -> None:
        self._nodes = mongo["nodes"]
        self._quotas = mongo["quotas"]
        self._letters = mongo["dead_letters"]
        self._samples = mongo["node_samples"]

    # --- nodes -------------------------------------------------------------------------------------------------

    async def write_nodes(self, upserts: list[Upsert]) -> None:
        """Write what nodes last said."""
        await upsert_newer(self._nodes, upserts)

    async def write_records(self, upserts: list[Upsert]) -> None:
        """Write what the scheduler has recorded of nodes."""
        await upsert_newer(self._nodes, newest(upserts), f.RECORD_VERSION)

    async def nodes(self, wanted: Filter, limit: int, now: datetime) -> list[NodeView]:
        """Return nodes, by name."""
        total = await self._nodes.estimated_document_count()
        found = self._nodes.find(wanted).sort([("name", 1), ("_id", 1)]).limit(limit)
        return [f.node_view(document, now, total) async for document in found]

    async def node(self, id_or_name: str, now: datetime) -> NodeView | None:
        """Return a node by its id or, if none has it, by its name."""
        total = await self._nodes.estimated_document_count()
        document = await self._nodes.find_one({"_id": id_or_name} | f.SHOWN)
        document = document or await self._nodes.find_one({"name": id_or_name} | f.SHOWN, sort=[("seq", -1)])
        return f.node_view(document, now, total) if document else None

    async def write_samples(self, samples: Sequence[Document]) -> None:
        """Write what nodes used at a moment; of each node and period the first stays."""
        await insert_new(self._samples, samples)

    async def samples(self, node_id: str, since: datetime | None) -> list[MetricPoint]:
        """Return what a node has used, in order of time."""
        wanted: Filter = {"node_id": {"$eq": node_id}} | ({"at": {"$gte": since}} if since else {})
        found = self._samples.find(wanted).sort("at", 1)
        return [point async for document in found for point in f.points(document)]

    async def record(self, node_id: str) -> NodeRecord | None:
        """Return what the scheduler has recorded of a node."""
        document = await self._nodes.find_one({"_id": node_id}, {"record": 1})
        return NodeRecord.from_bytes(document["record"].encode()) if document and "record" in document else None

    async def nodes_total(self) -> int:
        """Return how many nodes there are."""
        return await self._nodes.count_documents(f.SHOWN)

    async def nodes_since(self, since: datetime) -> int:
        """Return how many nodes were heard of since then."""
        return await self._nodes.count_documents({"seq": {"$gte": microseconds(since)}} | f.SHOWN)

    async def node_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of nodes by condition and by duty, as the scheduler has recorded them."""
        conditions, duties = Counter[str](), Counter[str]()
        pipeline: list[dict[str, Any]] = [
            {"$match": {"record": {"$exists": True}} | f.SHOWN},
            {"$group": {"_id": {"condition": "$condition", "duty": "$duty"}, "count": {"$sum": 1}}},
        ]
        async for document in self._nodes.aggregate(pipeline):
            conditions[document["_id"]["condition"]] += document["count"]
            duties[document["_id"]["duty"]] += document["count"]
        return dict(conditions), dict(duties)

    # --- quotas ------------------------------------------------------------------------------------------------

    async def write_quotas(self, upserts: list[Upsert]) -> None:
        """Write owners' quotas."""
        await upsert_newer(self._quotas, newest(upserts))

    async def quota(self, owner_id: str) -> Quota | None:
        """Return an owner's quota."""
        return f.quota_of(await self._quotas.find_one({"_id": owner_id}))

    async def queued_max(self, owner_id: str) -> int | None:
        """Return how many jobs of an owner may wait; None: any number."""
        document = await self._quotas.find_one({"_id": owner_id}, {"queued": 1})
        return document["queued"] if document else None

    # --- dead letters ------------------------------------------------------------------------------------------

    async def write_letters(self, upserts: list[Upsert]) -> None:
        """Write dead letters."""
        await upsert_newer(self._letters, newest(upserts))

    async def letters(self, wanted: Filter, limit: int) -> tuple[list[DeadLetterView], bool]:
        """Return as many dead letters as an answer holds, newest first, and whether there are more."""
        found: list[DeadLetterView] = []
        sizes: list[int] = []
        cursor = self._letters.find(wanted, batch_size=20).sort([("at_us", -1), ("_id", -1)]).limit(limit + 1)
        async for document in cursor:
            sizes.append(len(document["letter"]))
            if len(found) == limit or fitting(sizes) < len(sizes):
                return found, True
            found.append(f.letter_view(document))
        return found, False

    async def take_letter(self, letter_id: str, now: datetime) -> DeadLetterView | None:
        """Note that a dead letter is replayed now, and return it."""
        document = await self._letters.find_one_and_update(
            {"_id": letter_id}, {"$set": {"replayed_us": microseconds(now)}}, return_document=True
        )
        return f.letter_view(document) if document else None

    async def put_back_letter(self, letter_id: str) -> None:
        """Note that a dead letter was not replayed after all."""
        await self._letters.update_one({"_id": letter_id}, {"$set": {"replayed_us": None}})
