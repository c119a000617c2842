"""Uploads: chunks as they come, the check at the end, and the sweeping up after those that never end."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from prometheus_client import Counter

from services.storage.adapters.gridfs import Chunk, GridFs
from services.storage.adapters.mongo import ObjectId
from services.storage.adapters.upload_store import Upload, UploadState, UploadStore
from services.storage.core.access import AttemptScope, OwnerScope, ref_scope, scope_of
from services.storage.core.digest import RunningDigest
from services.storage.shell.grouping import Grouped
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import Unavailable, WherryError
from shared.ids import new_id
from shared.job import BlobRef
from shared.requests.artifacts import Artifact
from shared.requests.blobs import CHUNK_BYTES, BlobScope, Committed, UploadCommit

MIB = 1024 * 1024
RECEIVED = Counter("wherry_storage_blob_bytes_received_total", "Bytes of blobs that were stored.")
COMMITTED = Counter("wherry_storage_blobs_total", "Blobs that were committed.", ["way"])
DROPPED = Counter("wherry_storage_uploads_dropped_total", "Uploads that came to nothing.", ["why"])

#: Chunks of one insert, inserts under way, and bytes that may wait for them.
INSERT_BYTES, INSERTS_AT_ONCE, WAITING_BYTES = 4 * MIB, 4, 24 * MIB
PUTS_MOST, PUTS_BYTES = 256, 4 * MIB
#: Chunks of one blob: 512 GiB.
CHUNKS_MOST = 2**20
#: An upload's record is touched at most this often.
TOUCH_S = 60.0
#: Uploads whose running digest is held in memory; others are read again at the end.
TRACKED_MOST = 256

log = observe.logger("storage.uploads")


@dataclass(slots=True)
class _UnderWay:
    """An upload that this process works on."""

    upload: Upload
    touched: float
    dropped: bool = False
    digest: RunningDigest = field(default_factory=RunningDigest)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Put:
    """A whole small blob. *artifact_id*: what it is to become, if it becomes one; None: a new one."""

    body: bytes
    sha256: str
    scope: OwnerScope | AttemptScope
    artifact_id: str | None = None


class Uploads:
    """Takes bytes in. Who may is for the caller to check, but that an upload belongs to the asker is checked here."""

    def __init__(self, gridfs: GridFs, store: UploadStore) -> None:
        self._gridfs = gridfs
        self._store = store
        self._under_way: OrderedDict[str, _UnderWay] = OrderedDict()
        self._inserts = Grouped(
            gridfs.add_chunks,
            lambda chunk: len(chunk.data),
            at_once=INSERTS_AT_ONCE,
            group_most=PUTS_MOST,
            group_bytes=INSERT_BYTES,
            waiting_bytes=WAITING_BYTES,
        )
        self._puts = Grouped(
            self._put_group,
            lambda put: len(put.body),
            at_once=2,  # more would make smaller groups, and a group costs about the same whatever is in it
            group_most=PUTS_MOST,
            group_bytes=PUTS_BYTES,
            waiting_bytes=WAITING_BYTES,
        )

    # --- one call after the other --------------------------------------------------------------------------------

    async def open(self, kind: str, peer: str, upload_id: str, scope: BlobScope) -> None:
        """Begin an upload; beginning it again is harmless.

        Raises:
            WherryError: ``upload_gone``: the id was used for another one, or for this one before it was dropped.
        """
        artifact_id = new_id("a") if isinstance(scope_of(kind, scope), OwnerScope) else None
        wanted = Upload(upload_id, kind, peer, scope, ObjectId(), "open", artifact_id)
        upload = await self._store.open(wanted, utc_now())
        if (upload.kind, upload.peer, upload.scope) != (kind, peer, scope) or upload.state == "dropped":
            raise _gone(upload_id)
        self._track(upload)

    async def chunk(self, kind: str, peer: str, upload_id: str, number: int, data: bytes) -> None:
        """Store one chunk and return once it is stored; storing it again is harmless.

        Raises:
            WherryError: ``upload_gone``, ``invalid``, or ``unavailable`` when too much waits.
        """
        if not 0 <= number < CHUNKS_MOST or not 0 < len(data) <= CHUNK_BYTES:
            raise WherryError("invalid", f"Chunks have a number from 0 and 1 to {CHUNK_BYTES} bytes.")
        work = await self._find(kind, peer, upload_id)
        if work.upload.state != "open":
            raise _gone(upload_id)
        await self._touch(work)
        # Taken in only if this call stored it: of a number that was taken, the first bytes count, not these.
        if await self._inserts.do(Chunk(work.upload.file_id, number, data)):
            work.digest.take(number, data)
        if work.dropped:  # while this chunk was on its way: what was dropped did not yet hold it
            await self._gridfs.drop([work.upload.file_id])
            raise _gone(upload_id)
        RECEIVED.inc(len(data))

    async def commit(self, kind: str, peer: str, commit: UploadCommit) -> Committed:
        """Check an upload and make it a blob; again, the answer is the same.

        Raises:
            WherryError: ``upload_gone``; ``corrupt``: the bytes that came are not those that were meant.
        """
        work = await self._find(kind, peer, commit.upload_id)
        async with work.turn:
            work = await self._find(kind, peer, commit.upload_id)
            if work.upload.committed:
                return work.upload.committed
            if not await self._store.move(commit.upload_id, ("open", "sealed"), "sealed", utc_now()):
                self._under_way.pop(commit.upload_id, None)
                raise _gone(commit.upload_id)
            work.upload = replace(work.upload, state="sealed")
            return await self._commit(work, commit)

    async def abort(self, kind: str, peer: str, upload_id: str) -> None:
        """Drop an upload and its bytes; one that is unknown or committed stays as it is."""
        upload = await self._store.get(upload_id)
        if upload is None or (upload.kind, upload.peer) != (kind, peer):
            return
        await self._drop(upload, ("open",), "aborted")

    async def put(self, put: Put) -> Committed:
        """Store a whole small blob, together with others that come at the same time.

        Raises:
            Unavailable: too much waits.
        """
        return await self._puts.do(put)

    # --- the pieces ----------------------------------------------------------------------------------------------

    async def _find(self, kind: str, peer: str, upload_id: str) -> _UnderWay:
        work = self._under_way.get(upload_id)
        if work is None:
            upload = await self._store.get(upload_id)
            if upload is None or upload.state == "dropped":
                raise _gone(upload_id)
            work = self._track(upload)
        if (work.upload.kind, work.upload.peer) != (kind, peer):
            raise _gone(upload_id)
        return work

    def _track(self, upload: Upload) -> _UnderWay:
        if upload.id not in self._under_way:
            self._under_way[upload.id] = _UnderWay(upload, monotonic())
            while len(self._under_way) > TRACKED_MOST:
                self._under_way.popitem(last=False)
        self._under_way.move_to_end(upload.id)
        return self._under_way[upload.id]

    async def _touch(self, work: _UnderWay) -> None:
        if monotonic() - work.touched > TOUCH_S:
            work.touched = monotonic()
            await self._store.touch([work.upload.id], utc_now())

    async def _commit(self, work: _UnderWay, commit: UploadCommit) -> Committed:
        upload = work.upload
        sha256 = await self._digest(work, commit)
        if sha256 is None or sha256 != commit.sha256:
            await self._drop(upload, ("sealed",), "corrupt")
            raise WherryError("corrupt", "The bytes that arrived are not those that were sent.")
        published = await self._gridfs.publish([(upload.file_id, sha256, commit.size)], utc_now())
        if sha256 not in published:
            raise Unavailable("The same bytes are being removed at this moment: commit again.")
        committed = Committed(blob=BlobRef(sha256=sha256, size=commit.size), artifact_id=upload.artifact_id)
        kept = (scope_of(upload.kind, upload.scope), committed, published[sha256])
        await self.keep([kept], {published[sha256]})
        await self._store.commit(upload.id, committed, utc_now())
        # Only now: if storage ends before, a repeated commit still finds what it has to check.
        await self._gridfs.drop([upload.file_id] if published[sha256] != upload.file_id else [])
        self._under_way.pop(upload.id, None)
        COMMITTED.labels("chunks").inc()
        return committed

    async def _digest(self, work: _UnderWay, commit: UploadCommit) -> str | None:
        """Return the SHA-256 of what is stored, or None if it is not that many chunks and bytes."""
        digest = work.digest
        if not digest.is_whole(commit.chunks, commit.size):
            # Some chunks came to another process, or to this one before it was started again.
            log.info("upload_read_again", upload_id=work.upload.id, chunks=commit.chunks)
            digest = RunningDigest()
            async for number, data in self._gridfs.chunks(work.upload.file_id):
                digest.take(number, data)
        return digest.hexdigest() if digest.is_whole(commit.chunks, commit.size) else None

    async def _drop(
        self, upload: Upload, states: Sequence[UploadState], why: str, idle_since: datetime | None = None
    ) -> bool:
        if not await self._store.move(upload.id, states, "dropped", utc_now(), idle_since):
            return False
        if (work := self._under_way.pop(upload.id, None)) is not None:
            work.dropped = True
        await self._gridfs.drop([upload.file_id])
        DROPPED.labels(why).inc()
        return True

    async def _put_group(self, puts: Sequence[Put]) -> list[Committed]:
        known = await self._gridfs.find_many(list({put.sha256 for put in puts}))
        ids = {sha256: file.id for sha256, file in known.items()}
        new = {put.sha256: put for put in puts if put.sha256 not in ids}
        file_ids = {sha256: ObjectId() for sha256 in new}
        await self._gridfs.add_chunks([Chunk(file_ids[one.sha256], 0, one.body) for one in new.values() if one.body])
        files = [(file_ids[sha256], sha256, len(put.body)) for sha256, put in new.items()]
        ids |= await self._gridfs.publish(files, utc_now())
        if len(ids) < len({put.sha256 for put in puts}):
            await self._gridfs.drop(file_ids.values())
            raise Unavailable("The same bytes are being removed at this moment: send them again.")
        done = [_committed(put) for put in puts]
        kept = [(put.scope, one, ids[put.sha256]) for put, one in zip(puts, done, strict=True)]
        await self.keep(kept, set(ids.values()) - set(file_ids.values()))
        await self._gridfs.drop(file_id for sha256, file_id in file_ids.items() if ids[sha256] != file_id)
        RECEIVED.inc(sum(len(put.body) for put in puts))
        COMMITTED.labels("put").inc(len(puts))
        return done

    async def keep(
        self, kept: Sequence[tuple[OwnerScope | AttemptScope, Committed, ObjectId]], older: AbstractSet[ObjectId]
    ) -> None:
        """Make stored files somebody's: references first, so that no artifact is listed whose bytes may be collected.

        Args:
            kept: what it is for, what it became, and the file.
            older: those of the files that were there before: nothing may have referred to them until now.

        Raises:
            Unavailable: an older file that was to be shared has just been collected; the bytes have to come again.
        """
        now = utc_now()
        refs = {(ref_scope(scope, one.artifact_id), one.blob.sha256): file_id for scope, one, file_id in kept}
        await self._store.add_refs([(scope, sha256, file_id) for (scope, sha256), file_id in refs.items()], now)
        if older and not await self._store.pardon(older):
            raise Unavailable("The same bytes were removed at this moment: send them again.")
        await self._store.add_artifacts(
            [
                _artifact(scope, one, one.artifact_id, now)
                for scope, one, _ in kept
                if isinstance(scope, OwnerScope) and one.artifact_id
            ]
        )

    # --- sweeping up ---------------------------------------------------------------------------------------------

    async def sweep(self, expiry: timedelta) -> int:
        """Drop uploads that nobody has gone on with for *expiry*, and chunks of nothing; return how many."""
        before = utc_now() - expiry
        swept = 0
        for upload in await self._store.stale(before):
            if upload.state in ("open", "sealed") and not await self._gridfs.has_file(upload.file_id):
                if not await self._drop(upload, ("open", "sealed"), "expired", before):
                    continue  # somebody goes on with it after all
                swept += 1
            elif not await self._gridfs.has_file(upload.file_id):
                await self._gridfs.drop([upload.file_id])  # what a kill left of a dropping
            await self._store.forget(upload.id)
        since = await self._store.swept_until() or datetime.fromtimestamp(0, before.tzinfo)
        orphans = await self._gridfs.orphans(since, before)
        under_way = await self._store.under_way(orphans)
        orphans = [file_id for file_id in orphans if file_id not in under_way]
        await self._gridfs.drop(orphans)
        await self._store.set_swept_until(before)
        return swept + len(orphans)


def _gone(upload_id: str) -> WherryError:
    return WherryError("upload_gone", f"There is no upload {upload_id} to go on with: begin a new one.")


def _committed(put: Put) -> Committed:
    artifact_id = (put.artifact_id or new_id("a")) if isinstance(put.scope, OwnerScope) else None
    return Committed(blob=BlobRef(sha256=put.sha256, size=len(put.body)), artifact_id=artifact_id)


def _artifact(scope: OwnerScope, committed: Committed, artifact_id: str, now: datetime) -> Artifact:
    return Artifact(
        id=artifact_id,
        owner_id=scope.owner_id,
        blob=committed.blob,
        name=scope.name,
        media_type=scope.media_type,
        created_at=now,
    )
