"""The catalogue: models, their versions, evaluations, requests to experts, and runs that read registries."""

from collections.abc import Collection, Mapping
from typing import Any

from pymongo import DESCENDING

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.projections import Document
from services.storage.core.queries import Filter


class ModelStore:
    """Collections ``models`` (``_id``: the name), ``model_versions`` (name@version), and what is about them."""

    def __init__(self, mongo: Mongo) -> None:
        self._models = mongo["models"]
        self._versions = mongo["model_versions"]
        self._evaluations = mongo["evaluations"]
        self._fine_tunes = mongo["fine_tunes"]
        self._syncs = mongo["model_syncs"]

    # --- models and versions -------------------------------------------------------------------------------------

    async def get(self, name: str) -> Document | None:
        """Return a model without its versions."""
        return await self._models.find_one({"_id": name})

    async def page(self, wanted: Filter, limit: int) -> list[Document]:
        """Return models by name."""
        return [one async for one in self._models.find(wanted).sort("_id", 1).limit(limit)]

    async def add(self, document: Document) -> bool:
        """Write a new model; return whether its name was free."""
        return await _added(self._models, document)

    async def set(self, name: str, fields: Mapping[str, Any]) -> Document | None:
        """Set fields of a model and return it."""
        return await self._models.find_one_and_update({"_id": name}, {"$set": dict(fields)}, return_document=True)

    async def count_up(self, name: str, last: int, fields: Mapping[str, Any]) -> Document | None:
        """Make the number after *last* the last one if *last* still is, and return the model; else None."""
        change = {"$set": {**fields, "last": last + 1}}
        return await self._models.find_one_and_update({"_id": name, "last": last}, change, return_document=True)

    async def delete(self, name: str, last: int) -> bool:
        """Remove a model whose last number is *last*; return whether it was that."""
        return (await self._models.delete_one({"_id": name, "last": last})).deleted_count == 1

    async def add_version(self, document: Document) -> bool:
        """Write a version; return whether its number was free."""
        return await _added(self._versions, document)

    async def versions(self, name: str, limit: int) -> list[Document]:
        """Return a model's versions, the newest first."""
        found = self._versions.find({"model": name}).sort("version", DESCENDING).limit(limit)
        return [one async for one in found]

    async def version(self, name: str, version: int | None) -> Document | None:
        """Return a version; the newest, if that is None."""
        wanted: Filter = {"model": name} if version is None else {"_id": f"{name}@{version}"}
        return await self._versions.find_one(wanted, sort=[("version", DESCENDING)])

    async def newest(self, names: Collection[str]) -> dict[str, tuple[Document, int]]:
        """Return the newest version of each, and how many it has."""
        pipeline: list[Document] = [
            {"$match": {"model": {"$in": list(names)}}},
            {"$sort": {"version": -1}},
            {"$group": {"_id": "$model", "newest": {"$first": "$$ROOT"}, "count": {"$sum": 1}}},
        ]
        return {one["_id"]: (one["newest"], one["count"]) async for one in self._versions.aggregate(pipeline)}

    async def count(self, name: str) -> int:
        """Return how many versions a model has."""
        return await self._versions.count_documents({"model": name})

    async def same(self, name: str, what: Mapping[str, Any]) -> int | None:
        """Return the number of the newest version that is made of *what*."""
        found = await self._versions.find_one({"model": name, **what}, {"version": 1}, sort=[("version", DESCENDING)])
        return found["version"] if found else None

    async def remove_version(self, name: str, version: int) -> None:
        """Remove a version."""
        await self._versions.delete_one({"_id": f"{name}@{version}"})

    async def remove_all(self, name: str) -> None:
        """Remove a model's versions, evaluations and requests."""
        for collection in (self._versions, self._evaluations, self._fine_tunes):
            await collection.delete_many({"model": name})

    async def with_artifact(self, artifact_id: str) -> str | None:
        """Return name@version of a version that is made of an artifact."""
        found = await self._versions.find_one({"artifact_id": artifact_id}, {"_id": 1})
        return found["_id"] if found else None

    # --- quality -------------------------------------------------------------------------------------------------

    async def add_evaluation(self, document: Document) -> bool:
        """Write an evaluation; return whether its id was free."""
        return await _added(self._evaluations, document)

    async def evaluation(self, evaluation_id: str) -> Document | None:
        """Return an evaluation."""
        return await self._evaluations.find_one({"_id": evaluation_id})

    async def evaluations(self, wanted: Filter, limit: int) -> list[Document]:
        """Return evaluations, the newest first."""
        found = self._evaluations.find(wanted).sort([("at_us", DESCENDING), ("_id", DESCENDING)]).limit(limit)
        return [one async for one in found]

    # --- requests to experts -------------------------------------------------------------------------------------

    async def add_fine_tune(self, document: Document) -> bool:
        """Write a request; return whether its id was free."""
        return await _added(self._fine_tunes, document)

    async def fine_tune(self, request_id: str) -> Document | None:
        """Return a request."""
        return await self._fine_tunes.find_one({"_id": request_id})

    async def fine_tunes(self, wanted: Filter, limit: int) -> list[Document]:
        """Return requests, the newest first."""
        found = self._fine_tunes.find(wanted).sort([("at_us", DESCENDING), ("_id", DESCENDING)]).limit(limit)
        return [one async for one in found]

    async def untold(self, limit: int) -> list[Document]:
        """Return requests of which somebody is still to be told."""
        return [one async for one in self._fine_tunes.find({"untold.0": {"$exists": True}}).limit(limit)]

    async def told(self, request_id: str) -> None:
        """Note that everybody is sure to be told of a request."""
        await self._fine_tunes.update_one({"_id": request_id}, {"$set": {"untold": []}})

    async def close_fine_tune(self, request_id: str, fields: Mapping[str, Any]) -> Document | None:
        """Close an open request and return it; None if it is not open."""
        wanted = {"_id": request_id, "state": "open"}
        return await self._fine_tunes.find_one_and_update(wanted, {"$set": dict(fields)}, return_document=True)

    # --- runs that read registries -------------------------------------------------------------------------------

    async def keep_sync(self, run_id: str, body: str, started_us: int) -> None:
        """Write down how far a run is."""
        await self._syncs.update_one({"_id": run_id}, {"$set": {"run": body, "started_us": started_us}}, upsert=True)

    async def sync(self, run_id: str) -> str | None:
        """Return a run as it was written down."""
        found = await self._syncs.find_one({"_id": run_id})
        return found["run"] if found else None

    async def forget_syncs(self, before_us: int) -> None:
        """Delete records of old runs."""
        await self._syncs.delete_many({"started_us": {"$lt": before_us}})


async def _added(collection: Any, document: Document) -> bool:
    try:
        await collection.insert_one(document)
    except DuplicateKeyError:
        return False
    return True
