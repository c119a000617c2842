"""GridFS, written directly: one NATS chunk is one chunk document, and many go in one insert.

Any GridFS client can read it: bucket ``fs``, filename and ``metadata.sha256`` are the digest. A blob is visible once
its files document is there, and that is written last. One digest is stored once.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.storage.adapters.mongo import Mongo, ObjectId, insert_new
from services.storage.core.projections import Document
from shared.requests.blobs import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a file, numbered from 0."""

    file_id: ObjectId
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A whole, checked file."""

    id: ObjectId
    sha256: str
    size: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """*length* bytes of a file from *offset* on, fewer at its end."""

    file: StoredFile
    offset: int
    length: int

    @property
    def stop(self) -> int:
        """The byte after the last."""
        return min(self.offset + self.length, self.file.size)

    @property
    def chunks(self) -> range:
        """The numbers of the chunks that hold it."""
        if self.stop <= self.offset:
            return range(0)
        return range(self.offset // self.file.chunk_bytes, (self.stop - 1) // self.file.chunk_bytes + 1)

    def cut(self, parts: Sequence[bytes]) -> bytes:
        """Return the span out of what its chunks hold."""
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        start, size = self.offset % self.file.chunk_bytes, max(0, self.stop - self.offset)
        return body if start == 0 and len(body) == size else body[start : start + size]


class GridFs:
    """The bucket ``fs`` of a database."""

    def __init__(self, mongo: Mongo) -> None:
        self._files = mongo["fs.files"]
        self._chunks = mongo["fs.chunks"]

    async def add_chunks(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Store *chunks* and tell for each whether this call did it: a number that is taken keeps its first bytes."""
        documents: list[Document] = [{"files_id": one.file_id, "n": one.number, "data": one.data} for one in chunks]
        taken = await insert_new(self._chunks, documents)
        return [place not in taken for place in range(len(chunks))]

    async def publish(self, files: Sequence[tuple[ObjectId, str, int]], at: datetime) -> dict[str, ObjectId]:
        """Make files (id, SHA-256, length) visible and return the id that each digest has.

        Where a digest is stored already that is the older file's id; the new one's chunks are for the caller to drop.
        """
        documents: list[Document] = [
            {
                "_id": file_id,
                "filename": sha256,
                "length": size,
                "chunkSize": CHUNK_BYTES,
                "uploadDate": at,
                "metadata": {"sha256": sha256},
            }
            for file_id, sha256, size in files
        ]
        taken = await insert_new(self._files, documents)
        ids = {sha256: file_id for place, (file_id, sha256, _) in enumerate(files) if place not in taken}
        if taken:
            older = await self.find_many([files[place][1] for place in taken])
            ids |= {sha256: file.id for sha256, file in older.items()}
        return ids

    async def find(self, sha256: str) -> StoredFile | None:
        """Return the file with this digest."""
        return (await self.find_many([sha256])).get(sha256)

    async def find_many(self, digests: Sequence[str]) -> dict[str, StoredFile]:
        """Return those of *digests* that are stored."""
        found = self._files.find({"metadata.sha256": {"$in": list(digests)}})
        files = [_stored(document) async for document in found]
        return {file.sha256: file for file in files}

    async def has_file(self, file_id: ObjectId) -> bool:
        """Return whether the file is visible."""
        return await self._files.find_one({"_id": file_id}, {"_id": 1}) is not None

    async def read(self, file: StoredFile, offset: int, length: int) -> bytes:
        """Return *length* bytes from *offset* on, fewer at the end. Only the chunks that hold them are read."""
        return (await self.read_many([Span(file, offset, length)]))[0]

    async def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of each of *spans*, in order, with one question for all of them."""
        wanted: dict[ObjectId, set[int]] = {}
        for span in spans:
            wanted.setdefault(span.file.id, set()).update(span.chunks)
        asked: list[Document] = [{"files_id": one, "n": {"$in": sorted(n)}} for one, n in wanted.items() if n]
        if not asked:
            return [b"" for _ in spans]
        # Whole documents: to leave out so much as their ids, mongod would write each anew (measured: twice its time).
        found = self._chunks.find({"$or": asked} if len(asked) > 1 else asked[0])
        data = {(one["files_id"], one["n"]): one["data"] for one in await found.to_list(None)}
        return [span.cut([data.get((span.file.id, number), b"") for number in span.chunks]) for span in spans]

    async def chunks(self, file_id: ObjectId) -> AsyncGenerator[tuple[int, bytes], None]:
        """Give a file's chunks in order, a few at a time."""
        found = self._chunks.find({"files_id": file_id}, batch_size=4).sort("n", 1)
        async for document in found:
            yield document["n"], document["data"]

    async def drop(self, file_ids: Iterable[ObjectId]) -> None:
        """Delete chunks of files that are not visible."""
        for file_id in file_ids:
            await self._chunks.delete_many({"files_id": file_id})

    async def orphans(self, since: datetime, until: datetime) -> list[ObjectId]:
        """Return the ids, made between *since* and *until*, that have chunks and no files document."""
        between = {"$gte": ObjectId.from_datetime(since), "$lt": ObjectId.from_datetime(until)}
        pipeline: list[Document] = [
            {"$match": {"files_id": between}},
            {"$sort": {"files_id": 1, "n": 1}},
            {"$group": {"_id": "$files_id"}},
            {"$lookup": {"from": "fs.files", "localField": "_id", "foreignField": "_id", "as": "file"}},
            {"$match": {"file": []}},
        ]
        return [document["_id"] async for document in self._chunks.aggregate(pipeline)]


def _stored(document: Document) -> StoredFile:
    return StoredFile(document["_id"], document["metadata"]["sha256"], document["length"], document["chunkSize"])
