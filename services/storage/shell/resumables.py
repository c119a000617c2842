"""Uploads that resume, storage's end of tus: whoever writes has an epoch, and what is durable is what is stored."""

import asyncio
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.mongo import ObjectId
from services.storage.adapters.resumable_store import Piece, Record, ResumableStore, State
from services.storage.core.access import OwnerScope
from services.storage.core.resumable import ResumedDigest, chunk_count, durable, expected_size
from services.storage.shell.grouping import Grouped
from services.storage.shell.uploads import (
    CHUNKS_MOST,
    INSERT_BYTES,
    INSERTS_AT_ONCE,
    PUTS_MOST,
    TRACKED_MOST,
    WAITING_BYTES,
    Uploads,
)
from shared import observe
from shared.clock import utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.ids import new_id
from shared.job import BlobRef
from shared.requests.artifacts import Resumable, ResumableAdvance, ResumableBegin, ResumableCreate
from shared.requests.blobs import CHUNK_BYTES, Committed

log = observe.logger("storage.resumables")


@dataclass(slots=True)
class _UnderWay:
    """What this process knows of an upload that it works on."""

    record: Record
    digest: ResumedDigest = field(default_factory=ResumedDigest)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Resumables:
    """Takes in uploads that may break off. Whose they are is for the gateway to check.

    Args:
        gridfs: where the bytes go.
        store: the records.
        uploads: makes artifacts of whole files.
        expiry: how long an upload that nobody goes on with is kept.
        open_max: uploads that an owner may have begun and not ended.
    """

    def __init__(
        self, gridfs: GridFs, store: ResumableStore, uploads: Uploads, *, expiry: timedelta, open_max: int
    ) -> None:
        self._gridfs = gridfs
        self._store = store
        self._uploads = uploads
        self._expiry = expiry
        self._open_max = open_max
        self._under_way: OrderedDict[str, _UnderWay] = OrderedDict()
        self._writes = Grouped(
            store.write,
            lambda piece: len(piece.data),
            at_once=INSERTS_AT_ONCE,
            group_most=PUTS_MOST,
            group_bytes=INSERT_BYTES,
            waiting_bytes=WAITING_BYTES,
        )

    async def create(self, wanted: ResumableCreate) -> Resumable:
        """Begin an upload; beginning it again is harmless.

        Raises:
            WherryError: ``uploads_open``: the owner has too many that are not ended.
        """
        known = await self._store.get(wanted.upload_id)
        if known is None and await self._store.open_count(wanted.owner_id) >= self._open_max:
            raise WherryError(
                "uploads_open", f"{self._open_max} of your uploads are not ended: finish or delete one of them first."
            )
        now = utc_now()
        record = known or await self._store.create(
            Record(
                wanted.upload_id, wanted.owner_id, wanted.name, wanted.media_type, wanted.metadata, wanted.length,
                ObjectId(), new_id("a"), "open", 0, 0, False, now, now,  # noqa: FBT003 - a record's fields in order
            )
        )  # fmt: skip
        return self._view(await self._ended(record))

    async def get(self, upload_id: str) -> Resumable:
        """Return how far an upload has come. One of which all is there is ended on the way.

        Raises:
            WherryError: ``not_found``; ``upload_ended``: it was dropped, or is too old.
        """
        record = await self._found(upload_id)
        if record.state == "open":
            record = await self._ended(record, await self._durable(record))
        elif record.state == "sealed":
            record = await self._finish(record.id)
        return self._view(record)

    async def begin(self, wanted: ResumableBegin) -> Resumable:
        """Let somebody write at an offset, and shut out whoever wrote before.

        Raises:
            WherryError: ``offset_mismatch``, ``not_found``, ``upload_ended``; ``invalid``: another length was told.
        """
        record = await self._found(wanted.upload_id)
        if record.state in ("sealed", "committed"):
            done = await self._finish(record.id)
            if wanted.offset != done.offset:
                raise _mismatch(done.offset)
            return self._view(done)
        offset = await self._durable(record)
        if wanted.offset != offset:
            raise _mismatch(offset)
        length = _agreed(record.length, wanted.length, offset)
        seen = {"state": "open", "epoch": record.epoch}
        now = utc_now()
        fresh = await self._store.change(
            record.id, seen, epoch=record.epoch + 1, offset=offset, length=length, checked=wanted.checked, active_at=now
        )
        if fresh is None:
            raise _taken_over()
        self._track(fresh).digest.begin(fresh.epoch, offset)
        return self._view(fresh)

    async def tail(self, upload_id: str, offset: int) -> bytes:
        """Return what is stored of the chunk that *offset* is within, up to *offset*."""
        record = await self._found(upload_id)
        data = await self._store.chunk(record.file_id, offset // CHUNK_BYTES)
        return data[: offset % CHUNK_BYTES]

    async def chunk(self, upload_id: str, epoch: int, number: int, data: bytes) -> None:
        """Store a chunk of the writer of *epoch*, and return once it is stored; storing it again is harmless.

        Raises:
            WherryError: ``offset_mismatch``: another writer has taken over; ``upload_ended``; ``invalid``.
        """
        if not 0 <= number < CHUNKS_MOST or not 0 < len(data) <= CHUNK_BYTES:
            raise WherryError("invalid", f"Chunks have a number from 0 and 1 to {CHUNK_BYTES} bytes.")
        work = await self._writer(upload_id, epoch)
        if not await self._writes.do(Piece(work.record.file_id, epoch, number, data)):
            raise _taken_over()
        if work.record.state == "dropped":  # while this chunk was on its way: what was dropped did not yet hold it
            await self._gridfs.drop([work.record.file_id])
            raise _ended(upload_id)
        if work.record.epoch == epoch:
            work.digest.take(epoch, number, data)

    async def advance(self, wanted: ResumableAdvance) -> Resumable:
        """Note what a writer has had stored; at the upload's length make it an artifact. Safe to repeat.

        Raises:
            WherryError: ``offset_mismatch``: another writer has taken over; ``corrupt``: the upload is lost.
        """
        seen = {"state": "open", "epoch": wanted.epoch, "offset": {"$lte": wanted.offset}}
        record = await self._store.change(wanted.upload_id, seen, offset=wanted.offset, active_at=utc_now())
        if record is None:
            record = await self._found(wanted.upload_id)
            if record.epoch != wanted.epoch or record.offset < wanted.offset:
                raise _taken_over()
        return self._view(await self._ended(record))

    async def end(self, upload_id: str) -> None:
        """Drop an upload and its bytes; what became an artifact stays one, and what is becoming one becomes it.

        Raises:
            WherryError: ``not_found``, ``upload_ended``; as `get` for an upload of which all is there.
        """
        if not await self._drop(await self._found(upload_id), "open"):
            await self._finish(upload_id)

    async def sweep(self, expiry: timedelta) -> int:
        """Drop what nobody has gone on with for *expiry*, and forget what ended so long ago; return how many."""
        swept = 0
        for record in await self._store.stale(utc_now() - expiry):
            if record.state == "sealed":
                with suppress(WherryError):  # then it was dropped, or it is tried again with the next sweep
                    await self._finish(record.id)
            elif record.state == "open":
                await self._drop(record, "open")  # and remembered for as long again: whoever comes back is told
                swept += 1
            else:
                if not await self._gridfs.has_file(record.file_id):
                    await self._gridfs.drop([record.file_id])  # late chunks, or what a kill left of the dropping
                await self._store.forget(record.id)
        return swept

    # --- the pieces ------------------------------------------------------------------------------------------------

    async def _found(self, upload_id: str) -> Record:
        record = await self._store.get(upload_id)
        if record is None:
            raise NotFound(f"There is no upload {upload_id!r}.")
        if record.state == "dropped" or (record.state == "open" and self._expires(record) < utc_now()):
            raise _ended(upload_id)
        return record

    async def _writer(self, upload_id: str, epoch: int) -> _UnderWay:
        work = self._under_way.get(upload_id)
        if work is None or work.record.epoch < epoch or work.record.state != "open":
            work = self._track(await self._found(upload_id))
        if work.record.epoch != epoch:
            raise _taken_over()
        if work.record.state != "open":
            raise _ended(upload_id)
        return work

    def _track(self, record: Record) -> _UnderWay:
        work = self._under_way.setdefault(record.id, _UnderWay(record))
        work.record = record
        self._under_way.move_to_end(record.id)
        while len(self._under_way) > TRACKED_MOST:
            self._under_way.popitem(last=False)
        return work

    async def _durable(self, record: Record) -> int:
        """Return up to which byte an open upload is stored: its writer may be gone without having said so."""
        if record.checked:
            return record.offset
        chunks = await self._store.stored(record.file_id, record.offset // CHUNK_BYTES)
        offset = durable(record.offset, record.epoch, chunks)
        return offset if record.length is None else min(offset, record.length)

    async def _ended(self, record: Record, offset: int | None = None) -> Record:
        """Return the record, as an artifact if all of it is there."""
        offset = record.offset if offset is None else offset
        if offset == record.length and record.state in ("open", "sealed"):
            seen = {"state": "open", "epoch": record.epoch}
            await self._store.change(record.id, seen, state="sealed", offset=offset, active_at=utc_now())
            record = await self._finish(record.id)
        return record if record.offset >= offset else await self._seen_at(record, offset)

    async def _seen_at(self, record: Record, offset: int) -> Record:
        """Note what was found stored, so that it is not looked for again; the writer goes on undisturbed."""
        seen = {"state": "open", "epoch": record.epoch, "offset": {"$lte": offset}}
        return await self._store.change(record.id, seen, offset=offset) or await self._found(record.id)

    async def _finish(self, upload_id: str) -> Record:
        """Check a sealed upload and make it an artifact; one at a time, and again, the outcome is the same.

        Raises:
            WherryError: ``corrupt``: chunks are missing; ``upload_ended``; ``unavailable``.
        """
        work = self._under_way.get(upload_id) or self._track(await self._found(upload_id))
        async with work.turn:
            record = await self._found(upload_id)
            if record.state != "sealed":
                return record
            sha256 = await self._digest(record, work.digest)
            if sha256 is None:
                return await self._lost(record)
            size = record.length or 0
            published = await self._gridfs.publish([(record.file_id, sha256, size)], utc_now())
            if sha256 not in published:
                raise Unavailable("The same bytes are being removed at this moment: ask again.")
            committed = Committed(blob=BlobRef(sha256=sha256, size=size), artifact_id=record.artifact_id)
            scope = OwnerScope(record.owner_id, record.name, record.media_type)
            await self._uploads.keep([(scope, committed, published[sha256])], {published[sha256]})
            done = await self._store.change(
                record.id, {"state": {"$in": ["sealed", "committed"]}}, state="committed", sha256=sha256
            )
            await self._gridfs.drop([record.file_id] if published[sha256] != record.file_id else [])
            self._under_way.pop(upload_id, None)
            return done or await self._found(upload_id)

    async def _digest(self, record: Record, digest: ResumedDigest) -> str | None:
        """Return the SHA-256 of what is stored, or None if it is not all there."""
        length = record.length or 0
        count = chunk_count(length)
        await self._store.cut(record.file_id, count)
        if digest.chunks > count:
            digest.begin(record.epoch, 0)
        if count - digest.chunks > 1:
            log.info("upload_read_again", upload_id=record.id, chunks=count - digest.chunks)
        async for number, data in self._store.chunks(record.file_id, digest.chunks):
            if number != digest.chunks or len(data) != expected_size(number, length):
                return None
            digest.add(data)
        return digest.hexdigest() if digest.chunks == count else None

    async def _lost(self, record: Record) -> Record:
        fresh = await self._store.get(record.id)
        if fresh is not None and fresh.state == "committed":
            return fresh  # by another process, whose artifact has the same bytes from an older file
        await self._drop(record, "sealed")
        raise WherryError("corrupt", "What was stored of this upload is not whole. Begin a new one.")

    async def _drop(self, record: Record, state: State) -> bool:
        """Drop an upload that is in *state*, and tell whether it was: the bytes of a sealed one may be published."""
        dropped = await self._store.change(record.id, {"state": state}, state="dropped", active_at=utc_now())
        if dropped is not None:
            if (work := self._under_way.pop(record.id, None)) is not None:
                work.record = dropped
            await self._gridfs.drop([record.file_id])
        return dropped is not None

    def _expires(self, record: Record) -> datetime:
        return record.active_at + self._expiry

    def _view(self, record: Record) -> Resumable:
        committed = record.state == "committed"
        return Resumable(
            upload_id=record.id, owner_id=record.owner_id, state=record.state, offset=record.offset,
            epoch=record.epoch, length=record.length, metadata=record.metadata, created_at=record.created_at,
            expires_at=self._expires(record), artifact_id=record.artifact_id if committed else None,
            sha256=record.sha256,
        )  # fmt: skip


def _agreed(known: int | None, told: int | None, offset: int) -> int | None:
    """Return the upload's length.

    Raises:
        WherryError: ``invalid``.
    """
    if told is None or known == told:
        return known
    if known is not None or told < offset:
        raise WherryError("invalid", "The length of this upload was told before, or more than that is stored.")
    return told


def _mismatch(offset: int) -> WherryError:
    return WherryError("offset_mismatch", f"The upload stands at byte {offset}: go on there.")


def _taken_over() -> WherryError:
    return WherryError("offset_mismatch", "Somebody else writes this upload by now. Ask how far it has come.")


def _ended(upload_id: str) -> WherryError:
    return WherryError("upload_ended", f"Upload {upload_id} has ended: it was deleted, or nobody went on with it.")
