"""Artifacts: listed, removed unless something needs them, and the bytes that nothing refers to collected."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import ObjectId
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.projections import microseconds
from services.storage.core.queries import ARTIFACTS_MOST, artifacts_filter, bounded, cursor_text
from services.storage.shell.jobs import Jobs
from shared.clock import utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.requests.artifacts import Artifact, ArtifactList, ArtifactListQuery

#: Tells who needs an artifact, as a sentence's subject ("Job j1"), or None.
NeededBy = Callable[[Artifact], Awaitable[str | None]]


async def refer(store: UploadStore, gridfs: GridFs, scope: str, sha256: str) -> None:
    """Let *scope* hold stored bytes.

    Raises:
        NotFound: there are none of this digest.
        Unavailable: they are being removed.
    """
    file = await gridfs.find(sha256)
    if file is None:
        raise NotFound("There are no such bytes any more.")
    await store.add_refs([(scope, sha256, file.id)], utc_now())
    if not await store.pardon({file.id}):  # it was about to be collected as nobody's
        raise Unavailable("Those bytes are being removed, as nothing needed them: ask again or store them anew.")


class Artifacts:
    """What users have stored. Who may see it is the gateway's to check.

    Attributes:
        needed_by: who is asked before an artifact is removed; others with a reason to keep one add themselves.
    """

    def __init__(self, gridfs: GridFs, store: UploadStore, jobs: Jobs, job_store: JobStore) -> None:
        self._gridfs = gridfs
        self._store = store
        self._jobs = jobs
        self._job_store = job_store
        self.needed_by: list[NeededBy] = [self._job_that_needs]

    async def list(self, query: ArtifactListQuery) -> ArtifactList:
        """Return a page of artifacts, newest first."""
        limit = bounded(query.limit, ARTIFACTS_MOST)
        found = await self._store.artifacts(artifacts_filter(query), limit + 1)
        more = len(found) > limit
        last = found[limit - 1] if more else None
        cursor = cursor_text(microseconds(last.created_at), last.id) if last else None
        return ArtifactList(artifacts=tuple(found[:limit]), cursor=cursor)

    async def delete(self, artifact_id: str) -> None:
        """Remove an artifact, and its bytes if nobody else has the same. Nothing is left half-done for good.

        Raises:
            WherryError: ``not_found``; ``in_use``: a job that has not ended, or something else, needs it.
        """
        artifact = await self._store.artifact(artifact_id)
        if artifact is None:
            raise NotFound(f"There is no artifact {artifact_id!r}.")
        for needs in self.needed_by:
            if who := await needs(artifact):
                raise WherryError("in_use", f"{who} needs artifact {artifact_id}.")
        # Looked up while the artifact refers to it: later there may be a new file of these bytes, not yet referred to.
        file = await self._gridfs.find(artifact.blob.sha256)
        if await self._store.remove_artifact(artifact_id) and file:
            await self._collect(file.id)

    async def remove(self, artifact_id: str) -> None:
        """Remove an artifact that nothing needs; its bytes are for `collect`."""
        await self._store.remove_artifact(artifact_id)

    async def collect(self, before: datetime) -> int:
        """Remove what is older than *before* and belongs to nobody: what a kill left of storing or of removing."""
        await self._store.drop_void_refs(before)
        collected = 0
        loose = await self._store.unreferenced(before)
        under_way = await self._store.under_way(loose)  # published, and the commit that refers to it may be repeated
        for file_id in loose:
            if file_id not in under_way:
                collected += await self._collect(file_id)
        return collected

    async def _collect(self, file_id: ObjectId) -> bool:
        if not await self._store.doom(file_id):
            return False
        await self._gridfs.drop([file_id])
        await self._store.remove_file(file_id)
        return True

    async def _job_that_needs(self, artifact: Artifact) -> str | None:
        await self._jobs.catch_up()
        for job in await self._job_store.open_jobs_with(artifact.id):
            given = {one.artifact or one.source.removeprefix("artifact:") for one in job.spec.inputs.values()}
            if artifact.id in {job.spec.source, *given}:
                return f"Job {job.id}"
        return None
