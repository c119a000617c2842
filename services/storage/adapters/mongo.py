"""The one door to MongoDB. Motor gets critical fixes only: the move to PyMongo's own async API is this file."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from bson import ObjectId
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, CollectionInvalid, DuplicateKeyError, PyMongoError

from services.storage.core.projections import Document, Upsert

Collection: TypeAlias = "AsyncIOMotorCollection[Document]"

#: What a document raises that MongoDB can never take, however often it is tried.
UNWRITABLE = (BSONError, ValueError, OverflowError)

_DUPLICATE = 11000
SELECT_TIMEOUT_MS, SOCKET_TIMEOUT_MS = 3_000, 30_000

__all__ = [
    "UNWRITABLE",
    "Collection",
    "DuplicateKeyError",
    "Mongo",
    "ObjectId",
    "PyMongoError",
    "insert_new",
    "upsert_newer",
]


class Mongo:
    """One database. Writes are answered when a majority has them in its journal.

    Nothing is compressed on the way: what is stored is mostly compressed already.

    Args:
        url: a MongoDB connection string.
        database: its name.
    """

    def __init__(self, url: str, database: str) -> None:
        self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
            url,
            appname="wherry-storage",
            w="majority",
            journal=True,
            retryWrites=True,
            retryReads=True,
            serverSelectionTimeoutMS=SELECT_TIMEOUT_MS,
            connectTimeoutMS=SELECT_TIMEOUT_MS,
            socketTimeoutMS=SOCKET_TIMEOUT_MS,
            maxPoolSize=32,
        )
        self._database: AsyncIOMotorDatabase[Document] = self._client[database]

    def __getitem__(self, name: str) -> Collection:
        """Return a collection."""
        return self._database[name]

    async def ping(self) -> None:
        """Return if MongoDB answers.

        Raises:
            PyMongoError: it does not.
        """
        await self._client.admin.command("ping")

    async def create(self, name: str, **options: Any) -> None:
        """Make a collection with options of its own, unless it is there."""
        with suppress(CollectionInvalid):
            await self._database.create_collection(name, **options)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


async def insert_new(collection: Collection, documents: Sequence[Document]) -> set[int]:
    """Insert *documents* and return the places of those that were there already.

    Raises:
        PyMongoError: something else kept one of them out.
    """
    if not documents:
        return set()
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        return _duplicates(error)
    return set()


async def upsert_newer(collection: Collection, upserts: Iterable[Upsert], version: str = "seq") -> None:
    """Write each upsert unless its document is as new already, by its field *version*.

    An upsert onto a newer document finds nothing to update, tries to insert, and is refused as a duplicate: done.

    Raises:
        PyMongoError: something else went wrong.
    """
    operations = [
        UpdateOne(
            # Not "less than": a document that has no version yet, because another source wrote it first, is older.
            {"_id": one.id, version: {"$not": {"$gte": one.version}}},
            {"$set": one.fields | {version: one.version}},
            upsert=True,
        )
        for one in upserts
    ]
    if not operations:
        return
    try:
        await collection.bulk_write(operations, ordered=False)
    except BulkWriteError as error:
        _duplicates(error)


def _duplicates(error: BulkWriteError) -> set[int]:
    details: Any = error.details or {}
    errors: list[Document] = details.get("writeErrors", [])
    if details.get("writeConcernErrors") or any(one.get("code") != _DUPLICATE for one in errors):
        raise error
    return {int(one["index"]) for one in errors}
