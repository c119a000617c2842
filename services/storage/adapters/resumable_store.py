"""Uploads that resume: their records, and their chunks in GridFS as long as nobody can see them.

A chunk carries the epoch of its writer beside what GridFS wants of it, so that a chunk which a writer from before
sends late never replaces one that counts. GridFS clients pass over the field.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pymongo import ReturnDocument

from services.storage.adapters.mongo import DuplicateKeyError, Mongo, ObjectId, insert_new
from services.storage.core.projections import Document
from services.storage.core.resumable import StoredChunk

State = Literal["open", "sealed", "committed", "dropped"]


@dataclass(frozen=True, slots=True)
class Record:
    """An upload as it is kept. While it is open it is written; sealed, it is being checked."""

    id: str
    owner_id: str
    name: str
    media_type: str
    metadata: str
    length: int | None
    file_id: ObjectId
    artifact_id: str
    state: State
    offset: int
    epoch: int
    checked: bool
    created_at: datetime
    active_at: datetime
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a writer's, numbered from 0."""

    file_id: ObjectId
    epoch: int
    number: int
    data: bytes


class ResumableStore:
    """Collection ``resumables``, and chunks of files that are not visible yet."""

    def __init__(self, mongo: Mongo) -> None:
        self._records = mongo["resumables"]
        self._chunks = mongo["fs.chunks"]

    async def create(self, record: Record) -> Record:
        """Write down a new upload and return it; one of this id that is there already is returned as it is."""
        document = {name: getattr(record, name) for name in Record.__slots__ if name != "id"}
        try:
            await self._records.insert_one({"_id": record.id, **document})
        except DuplicateKeyError:
            return await self.get(record.id) or record
        return record

    async def get(self, upload_id: str) -> Record | None:
        """Return an upload, or None if there is none, or no more."""
        document = await self._records.find_one({"_id": upload_id})
        return _record(document) if document else None

    async def open_count(self, owner_id: str) -> int:
        """Return how many uploads of an owner are not ended."""
        return await self._records.count_documents({"owner_id": owner_id, "state": {"$in": ["open", "sealed"]}})

    async def change(self, upload_id: str, seen: Document, **fields: Any) -> Record | None:
        """Set *fields* if the record is as *seen* says; return the record after it, or None if it is not."""
        document = await self._records.find_one_and_update(
            {"_id": upload_id, **seen}, {"$set": fields}, return_document=ReturnDocument.AFTER
        )
        return _record(document) if document else None

    async def stale(self, before: datetime) -> list[Record]:
        """Return the uploads that nobody has gone on with since *before*."""
        return [_record(document) async for document in self._records.find({"active_at": {"$lt": before}})]

    async def forget(self, upload_id: str) -> None:
        """Delete the record of an upload, not its bytes."""
        await self._records.delete_one({"_id": upload_id})

    # --- chunks ----------------------------------------------------------------------------------------------------

    async def write(self, pieces: Sequence[Piece]) -> list[bool]:
        """Store *pieces* and tell for each whether it stands: one of a later writer stays."""
        documents: list[Document] = [
            {"files_id": one.file_id, "n": one.number, "data": one.data, "epoch": one.epoch} for one in pieces
        ]
        taken = await insert_new(self._chunks, documents)
        stands = [True] * len(pieces)
        for place in taken:
            one = pieces[place]
            older = {"files_id": one.file_id, "n": one.number, "epoch": {"$lte": one.epoch}}
            done = await self._chunks.update_one(older, {"$set": {"data": one.data, "epoch": one.epoch}})
            stands[place] = done.matched_count == 1
        return stands

    async def stored(self, file_id: ObjectId, first: int) -> list[StoredChunk]:
        """Return what is known of a file's chunks from number *first* on, in order."""
        shown: Document = {"_id": 0, "n": 1, "epoch": 1, "size": {"$binarySize": "$data"}}
        found = self._chunks.find({"files_id": file_id, "n": {"$gte": first}}, shown).sort("n", 1)
        return [StoredChunk(one["n"], one["size"], one.get("epoch", 0)) async for one in found]

    async def chunks(self, file_id: ObjectId, first: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Give a file's chunks in order from number *first* on, a few at a time."""
        wanted = {"files_id": file_id, "n": {"$gte": first}}
        found = self._chunks.find(wanted, {"_id": 0, "n": 1, "data": 1}, batch_size=4).sort("n", 1)
        async for document in found:
            yield document["n"], document["data"]

    async def chunk(self, file_id: ObjectId, number: int) -> bytes:
        """Return a chunk's bytes; none if it is not there."""
        found = await self._chunks.find_one({"files_id": file_id, "n": number}, {"_id": 0, "data": 1})
        return found["data"] if found else b""

    async def cut(self, file_id: ObjectId, count: int) -> None:
        """Delete the chunks from number *count* on."""
        await self._chunks.delete_many({"files_id": file_id, "n": {"$gte": count}})


def _record(document: Document) -> Record:
    fields = {name: document.get(name) for name in Record.__slots__ if name != "id"}
    fields |= {name: document[name].replace(tzinfo=UTC) for name in ("created_at", "active_at")}  # BSON has no zones
    return Record(id=document["_id"], **fields)  # pyright: ignore[reportArgumentType] - as `create` wrote it
