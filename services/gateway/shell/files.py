"""Bytes in and out: artifacts, single outputs, and all outputs as one zip."""

from collections.abc import AsyncGenerator, AsyncIterator

from services.gateway.adapters import archive
from services.gateway.core import access, zip64
from services.gateway.core.access import Action
from services.gateway.shell.gateway import Gateway
from shared.channels import ARTIFACT_DELETE, JOB_OUTPUTS
from shared.errors import WherryError
from shared.job import BlobRef, Job
from shared.manifest import Entry
from shared.requests.accounts import Principal
from shared.requests.artifacts import ArtifactQuery
from shared.requests.blobs import BlobRead, BlobScope, Committed
from shared.requests.outputs import OutputPage, OutputQuery

_PAGE = 1000


async def store(
    gateway: Gateway, principal: Principal, body: AsyncIterator[bytes], name: str, media_type: str
) -> Committed:
    """Store *body* as an artifact of the caller's.

    Raises:
        WherryError: ``busy``, ``unavailable``; then nothing is left behind.
    """
    scope = BlobScope(owner_id=principal.user_id, name=name, media_type=media_type)
    async with gateway.uploads.taken():
        return await gateway.blobs.upload(body, scope)


async def remove(gateway: Gateway, principal: Principal, artifact_id: str) -> None:
    """Remove an artifact of the caller's.

    Raises:
        WherryError: ``not_found``; ``in_use``: something needs it.
    """
    artifact = await gateway.artifact(principal, artifact_id, Action.CHANGE)
    await gateway.ask(ARTIFACT_DELETE, ArtifactQuery(artifact_id=artifact.id))
    gateway.forget_source(artifact.id)


def read(gateway: Gateway, blob: BlobRef, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
    """Give the bytes of a blob whose owner has been checked."""
    return gateway.blobs.read(BlobRead(sha256=blob.sha256), start=start, end=end)


async def listing(gateway: Gateway, job: Job, cursor: str | None = None, limit: int = _PAGE) -> OutputPage:
    """Return a page of what *job* left."""
    if job.outputs is None:
        return OutputPage()
    return await gateway.ask(JOB_OUTPUTS, OutputQuery(job_id=job.id, cursor=cursor, limit=limit))


async def one(gateway: Gateway, job: Job, path: str) -> tuple[Entry, BlobRef]:
    """Return the file at *path* of what *job* left.

    Raises:
        WherryError: ``not_found``; ``not_ended`` as long as there may still be one.
    """
    require_outputs(job)
    try:
        page = await gateway.ask(JOB_OUTPUTS, OutputQuery(job_id=job.id, path=path)) if job.outputs else OutputPage()
    except WherryError as error:
        raise access.missing("such output") if error.code == "not_found" else error from None
    for entry in page.entries:
        if entry.path == path and entry.blob is not None:
            return entry, entry.blob
    raise access.missing("such output")


def require_outputs(job: Job) -> None:
    """Let a job pass that has outputs or will have none.

    Raises:
        WherryError: ``not_ended``.
    """
    if job.outputs is None and not job.is_terminal:
        raise WherryError("not_ended", f"Job {job.id} is {job.state}; its outputs can be fetched when it has ended.")


def zip_of(gateway: Gateway, job: Job, first: OutputPage) -> tuple[AsyncGenerator[bytes, None], int | None]:
    """Return all outputs as a zip, and its length in bytes where one page told of all of them."""
    length = None
    if first.cursor is None:
        length = zip64.archive_length(archive.member_of(entry) for entry in first.entries)
    return archive.written(_entries(gateway, job, first), lambda blob: read(gateway, blob)), length


async def _entries(gateway: Gateway, job: Job, page: OutputPage) -> AsyncGenerator[Entry, None]:
    while True:
        for entry in page.entries:
            yield entry
        if page.cursor is None:
            return
        page = await listing(gateway, job, page.cursor)
