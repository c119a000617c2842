"""Uploads under way, what their bytes became (artifacts), and who holds which bytes (references)."""

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from services.storage.adapters.mongo import DuplicateKeyError, Mongo, ObjectId, insert_new
from services.storage.core.access import artifact_ref
from services.storage.core.projections import Document, microseconds, moment_of
from services.storage.core.queries import Filter
from shared.job import BlobRef
from shared.requests.artifacts import Artifact
from shared.requests.blobs import BlobScope, Committed

UploadState = Literal["open", "sealed", "committed", "dropped"]

#: Documents that are looked at together.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it is kept.

    Its chunks carry `file_id`. While it is open chunks are taken; sealed, it is being checked; committed and
    dropped are remembered for a while, so that a repeated call gets the same answer.
    """

    id: str
    kind: str
    peer: str
    scope: BlobScope
    file_id: ObjectId
    state: UploadState
    artifact_id: str | None = None
    committed: Committed | None = None


class UploadStore:
    """Collections ``uploads``, ``artifacts`` and ``blob_refs``, and which files of GridFS are to be collected."""

    def __init__(self, mongo: Mongo) -> None:
        self._uploads = mongo["uploads"]
        self._resumables = mongo["resumables"]
        self._files = mongo["fs.files"]
        self._artifacts = mongo["artifacts"]
        self._refs = mongo["blob_refs"]
        self._meta = mongo["meta"]

    async def open(self, upload: Upload, now: datetime) -> Upload:
        """Write down a new upload and return it; one of this id that is there already is returned as it is."""
        document: Document = {
            "_id": upload.id,
            "kind": upload.kind,
            "peer": upload.peer,
            "scope": upload.scope.to_bytes().decode(),
            "file_id": upload.file_id,
            "state": upload.state,
            "artifact_id": upload.artifact_id,
            "created_at": now,
            "active_at": now,
        }
        try:
            await self._uploads.insert_one(document)
        except DuplicateKeyError:
            return await self.get(upload.id) or upload
        return upload

    async def get(self, upload_id: str) -> Upload | None:
        """Return an upload, or None if there is none, or no more."""
        document = await self._uploads.find_one({"_id": upload_id})
        return _upload(document) if document else None

    async def touch(self, upload_ids: Sequence[str], now: datetime) -> None:
        """Note that these are being worked on."""
        await self._uploads.update_many({"_id": {"$in": list(upload_ids)}}, {"$set": {"active_at": now}})

    async def move(
        self, upload_id: str, old: Sequence[UploadState], new: UploadState, now: datetime,
        idle_since: datetime | None = None, **fields: Any,
    ) -> bool:  # fmt: skip
        """Change the state if it is one of *old* and nobody has gone on since *idle_since*; tell whether it was so."""
        change: Document = {"state": new, "active_at": now, **fields}
        seen: Document = {"_id": upload_id, "state": {"$in": list(old)}}
        if idle_since is not None:
            seen["active_at"] = {"$lt": idle_since}
        done = await self._uploads.update_one(seen, {"$set": change})
        return done.matched_count == 1

    async def commit(self, upload_id: str, committed: Committed, now: datetime) -> None:
        """Remember what became of an upload."""
        await self.move(upload_id, ("sealed",), "committed", now, committed=committed.to_bytes().decode())

    async def stale(self, before: datetime) -> list[Upload]:
        """Return the uploads that nobody has gone on with since *before*."""
        return [_upload(document) async for document in self._uploads.find({"active_at": {"$lt": before}})]

    async def under_way(self, file_ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Return those of *file_ids* that belong to uploads that may still be committed."""
        wanted = {"file_id": {"$in": list(file_ids)}, "state": {"$in": ["open", "sealed"]}}
        return {
            document["file_id"]
            for uploads in (self._uploads, self._resumables)
            async for document in uploads.find(wanted, {"file_id": 1})
        }

    async def forget(self, upload_id: str) -> None:
        """Delete the record of an upload, not its bytes."""
        await self._uploads.delete_one({"_id": upload_id})

    async def swept_until(self) -> datetime | None:
        """Return up to which time orphaned chunks were looked for."""
        document = await self._meta.find_one({"_id": "sweep"})
        return moment_of(document["until_us"]) if document else None

    async def set_swept_until(self, until: datetime) -> None:
        """Note up to which time orphaned chunks were looked for."""
        await self._meta.update_one({"_id": "sweep"}, {"$max": {"until_us": microseconds(until)}}, upsert=True)

    async def add_refs(self, refs: Sequence[tuple[str, str, ObjectId]], now: datetime) -> None:
        """Keep references (scope, SHA-256, file id). One that is there already stays."""
        documents: list[Document] = [
            {"scope": scope, "sha256": sha256, "file_id": file_id, "at": now} for scope, sha256, file_id in refs
        ]
        await insert_new(self._refs, documents)

    async def drop_refs(self, scope: str) -> None:
        """Delete the references of *scope*, not the bytes."""
        await self._refs.delete_many({"scope": scope})

    async def holds(self, scope: str, sha256: str) -> bool:
        """Return whether *scope* has stored these bytes."""
        return await self._refs.find_one({"scope": scope, "sha256": sha256}, {"_id": 1}) is not None

    async def held(self, scope: str) -> set[str]:
        """Return the digests of all that *scope* has stored."""
        found = self._refs.find({"scope": scope}, {"_id": 0, "sha256": 1}, batch_size=10_000)
        return {document["sha256"] async for document in found}

    async def add_artifacts(self, artifacts: Sequence[Artifact]) -> None:
        """Keep artifacts. One whose id is there already stays."""
        documents: list[Document] = [
            {
                "_id": one.id,
                "owner_id": one.owner_id,
                "sha256": one.blob.sha256,
                "size": one.blob.size,
                "name": one.name,
                "media_type": one.media_type,
                "created_us": microseconds(one.created_at),
            }
            for one in artifacts
        ]
        await insert_new(self._artifacts, documents)

    async def artifact(self, artifact_id: str) -> Artifact | None:
        """Return an artifact; one that retention has hidden is not there."""
        document = await self._artifacts.find_one({"_id": artifact_id, "retired_us": None})
        return _artifact(document) if document else None

    async def artifacts(self, wanted: Filter, limit: int) -> list[Artifact]:
        """Return artifacts, newest first."""
        found = self._artifacts.find(wanted | {"retired_us": None}).sort([("created_us", -1), ("_id", -1)]).limit(limit)
        return [_artifact(document) async for document in found]

    async def remove_artifact(self, artifact_id: str) -> bool:
        """Delete an artifact and its reference; tell whether it was there. A reference left behind is a void one."""
        done = await self._artifacts.delete_one({"_id": artifact_id})
        await self._refs.delete_many({"scope": artifact_ref(artifact_id)})
        return done.deleted_count == 1

    # --- files that nothing refers to: condemned, looked at again, then gone. A pardon may come in between -----------

    async def pardon(self, file_ids: AbstractSet[ObjectId]) -> bool:
        """Let files stay that have a reference again, and tell whether all of them are there."""
        wanted = {"_id": {"$in": list(file_ids)}}
        await self._files.update_many(
            wanted | {"metadata.condemned": {"$ne": None}}, {"$unset": {"metadata.condemned": ""}}
        )
        return await self._files.count_documents(wanted | {"metadata.doomed": None}) == len(file_ids)

    async def drop_void_refs(self, before: datetime) -> None:
        """Delete references, older than *before*, of artifacts that are not there."""
        wanted = {"scope": {"$regex": f"^{artifact_ref('')}"}, "at": {"$lt": before}}
        found = self._refs.find(wanted, {"scope": 1}, batch_size=_BATCH)
        async for batch in _batches(found):
            ids = {document["scope"].removeprefix(artifact_ref("")): document["_id"] for document in batch}
            there = {one["_id"] async for one in self._artifacts.find({"_id": {"$in": list(ids)}}, {"_id": 1})}
            void = [ref_id for artifact_id, ref_id in ids.items() if artifact_id not in there]
            await self._refs.delete_many({"_id": {"$in": void}})

    async def unreferenced(self, before: datetime) -> list[ObjectId]:
        """Return the files, older than *before*, that nothing refers to."""
        found = self._files.find({"uploadDate": {"$lt": before}}, {"metadata.sha256": 1}, batch_size=_BATCH)
        loose: list[ObjectId] = []
        async for batch in _batches(found):
            ids = {document["metadata"]["sha256"]: document["_id"] for document in batch}
            held = await self._refs.distinct("sha256", {"sha256": {"$in": list(ids)}})
            loose += [file_id for sha256, file_id in ids.items() if sha256 not in held]
        return loose

    async def doom(self, file_id: ObjectId) -> bool:
        """Give a file up for good unless something refers to it; tell whether its chunks may go.

        A new file of the same digest may be stored from then on: this one is found by nobody.
        """
        seen, mine = {"_id": file_id, "metadata.doomed": None}, ObjectId()
        # One's own mark: after a pardon, what another collector condemns is not this one's to doom.
        found = await self._files.find_one_and_update(seen, {"$set": {"metadata.condemned": mine}})
        if not found:
            return bool(await self._files.count_documents({"_id": file_id}, limit=1))
        sha256 = found["metadata"]["sha256"]
        if await self._refs.find_one({"sha256": sha256}, {"_id": 1}) is not None:
            await self._files.update_one(seen | {"metadata.condemned": mine}, {"$unset": {"metadata.condemned": ""}})
            return False
        gone = {"filename": f"deleted:{file_id}", "metadata.sha256": f"deleted:{file_id}", "metadata.doomed": True}
        done = await self._files.update_one(seen | {"metadata.condemned": mine}, {"$set": gone})
        return done.matched_count == 1

    async def remove_file(self, file_id: ObjectId) -> None:
        """Delete the last trace of a doomed file, whose chunks are gone."""
        await self._files.delete_one({"_id": file_id, "metadata.doomed": True})


async def _batches(found: AsyncIterable[Document]) -> AsyncGenerator[list[Document], None]:
    batch: list[Document] = []
    async for document in found:
        batch.append(document)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _artifact(document: Document) -> Artifact:
    return Artifact(
        id=document["_id"],
        owner_id=document["owner_id"],
        blob=BlobRef(sha256=document["sha256"], size=document["size"]),
        name=document["name"],
        media_type=document["media_type"],
        created_at=moment_of(document["created_us"]),
    )


def _upload(document: Document) -> Upload:
    committed = document.get("committed")
    return Upload(
        id=document["_id"],
        kind=document["kind"],
        peer=document["peer"],
        scope=BlobScope.from_bytes(document["scope"].encode()),
        file_id=document["file_id"],
        state=document["state"],
        artifact_id=document["artifact_id"],
        committed=Committed.from_bytes(committed.encode()) if committed else None,
    )
