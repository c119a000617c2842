"""Datasets: one document each, with its versions, so that every change of it is one conditional write."""

from collections.abc import Mapping
from typing import Any

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.projections import Document
from services.storage.core.queries import Filter


class DatasetStore:
    """Collection ``datasets``; its ``_id`` is the name."""

    def __init__(self, mongo: Mongo) -> None:
        self._datasets = mongo["datasets"]
        self._jobs = mongo["jobs"]

    async def get(self, name: str) -> Document | None:
        """Return a dataset's document."""
        return await self._datasets.find_one({"_id": name})

    async def with_artifact(self, artifact_id: str) -> str | None:
        """Return the name of a dataset that has an artifact as a version."""
        found = await self._datasets.find_one({"versions.artifact_id": artifact_id}, {"_id": 1})
        return found["_id"] if found else None

    async def page(self, wanted: Filter, limit: int) -> list[Document]:
        """Return documents by name, each with its newest version alone and the number of all as `count`."""
        newest = {"$slice": [{"$sortArray": {"input": "$versions", "sortBy": {"version": -1}}}, 1]}
        pipeline: list[Document] = [
            {"$match": wanted},
            {"$sort": {"_id": 1}},
            {"$limit": limit},
            {"$set": {"count": {"$size": "$versions"}, "versions": newest}},
        ]
        return [document async for document in self._datasets.aggregate(pipeline)]

    async def add(self, document: Document) -> bool:
        """Write a new dataset; return whether its name was free."""
        try:
            await self._datasets.insert_one(document)
        except DuplicateKeyError:
            return False
        return True

    async def set(self, name: str, fields: Mapping[str, Any]) -> Document | None:
        """Set fields of a dataset and return it."""
        return await self._datasets.find_one_and_update({"_id": name}, {"$set": dict(fields)}, return_document=True)

    async def push(self, name: str, last: int, version: Document, fields: Mapping[str, Any]) -> Document | None:
        """Add a version if *last* still is the last number, and return the dataset; else None."""
        change = {"$push": {"versions": version}, "$set": {**fields, "last": version["version"]}}
        return await self._datasets.find_one_and_update({"_id": name, "last": last}, change, return_document=True)

    async def pull(self, name: str, version: int) -> None:
        """Remove a version."""
        await self._datasets.update_one({"_id": name}, {"$pull": {"versions": {"version": version}}})

    async def delete(self, name: str, last: int) -> bool:
        """Remove a dataset whose last number is *last*; return whether it was that."""
        return (await self._datasets.delete_one({"_id": name, "last": last})).deleted_count == 1

    async def jobs(self, wanted: Filter, limit: int) -> list[str]:
        """Return ids of jobs that have not ended."""
        states = {"state": {"$nin": ["succeeded", "failed", "cancelled", "timed_out"]}}
        found = self._jobs.find(wanted | states, {"_id": 1}).sort("_id", 1).limit(limit)
        return [document["_id"] async for document in found]
