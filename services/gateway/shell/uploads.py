"""Uploads that resume: whose they are, and their bytes on the way to storage."""

from collections.abc import AsyncGenerator, AsyncIterator

from services.gateway.core import access, tus
from services.gateway.core.access import Action
from services.gateway.shell.gateway import Gateway
from shared.errors import WherryError
from shared.ids import TOKEN, new_id
from shared.requests.accounts import Principal
from shared.requests.artifacts import Resumable, ResumableCreate
from shared.resumable import Part


async def create(gateway: Gateway, principal: Principal, wanted: tus.Creation) -> Resumable:
    """Begin an upload of the caller's.

    Raises:
        WherryError: ``uploads_open``, ``unavailable``.
    """
    return await gateway.resumables.create(
        ResumableCreate(
            upload_id=new_id("up"), owner_id=principal.user_id, length=wanted.length, name=wanted.name,
            media_type=wanted.media_type, metadata=wanted.metadata,
        )
    )  # fmt: skip


async def find(gateway: Gateway, principal: Principal, upload_id: str) -> Resumable:
    """Return an upload of the caller's.

    Raises:
        WherryError: ``not_found``; ``upload_ended``: it was deleted, or nobody went on with it.
    """
    if not TOKEN.match(upload_id):
        raise access.missing("such upload")
    try:
        found = await gateway.resumables.get(upload_id)
    except WherryError as error:
        raise access.missing("such upload") if error.code == "not_found" else error from None
    access.require_owned(principal, Action.CHANGE, found.owner_id, "such upload")
    return found


async def write(
    gateway: Gateway, upload: Resumable, offset: int, length: int | None, body: AsyncIterator[bytes],
    checksum: tus.Checksum | None,
) -> Resumable:  # fmt: skip
    """Store *body* at *offset* and return how far the upload has come; what has come of a broken body is kept.

    Raises:
        WherryError: ``offset_mismatch``, ``checksum_mismatch``, ``too_large``, ``too_slow``, ``busy``, ``unavailable``.
        ClientDisconnect: the rest will not come.
    """
    known = upload.length if length is None else length
    most = (gateway.settings.upload_bytes_max if known is None else known) - offset
    limited = _limited(body, most)
    if checksum is None:
        part, chunks = Part(offset, length), limited
    else:
        digest = checksum.new()
        part = Part(offset, length, lambda: digest.digest() == checksum.digest)
        chunks = _hashed(limited, digest)
    async with gateway.uploads.taken():
        return await gateway.resumables.write(upload.upload_id, part, chunks)


async def _limited(body: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    async for chunk in body:
        most -= len(chunk)
        if most < 0:
            raise WherryError("too_large", "These are more bytes than the upload has.")
        yield chunk


async def _hashed(body: AsyncIterator[bytes], digest: tus.Hash) -> AsyncGenerator[bytes, None]:
    async for chunk in body:
        digest.update(chunk)
        yield chunk
