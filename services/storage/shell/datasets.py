"""Datasets: versions are added one after the other, and nothing goes that a job still needs."""

from services.storage.adapters.dataset_store import DatasetStore
from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.upload_store import UploadStore
from services.storage.core import datasets as d
from services.storage.core import queries as q
from services.storage.core.access import artifact_ref
from services.storage.core.outputs import one
from services.storage.core.projections import Document, microseconds
from services.storage.shell.artifacts import refer
from services.storage.shell.jobs import Jobs
from services.storage.shell.outputs import Outputs
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.ids import new_id
from shared.requests.artifacts import Artifact
from shared.requests.datasets import (
    Dataset,
    DatasetList,
    DatasetListQuery,
    DatasetPut,
    DatasetQuery,
    DatasetRemove,
    DatasetStored,
    DatasetUpdate,
)

JOBS_NAMED = 5


class Datasets:
    """Answers about datasets. Who may see and change which is the gateway's to check; whose a name is, is seen here."""

    def __init__(self, store: DatasetStore, uploads: UploadStore, gridfs: GridFs, jobs: Jobs, outputs: Outputs) -> None:
        self._store = store
        self._uploads = uploads
        self._gridfs = gridfs
        self._jobs = jobs
        self._outputs = outputs

    async def get(self, query: DatasetQuery) -> Dataset:
        """Return a dataset.

        Raises:
            NotFound: there is none of this name, or no such version.
        """
        return d.dataset(await self._document(query.name), query)

    async def list(self, query: DatasetListQuery) -> DatasetList:
        """Return a page of datasets, by name."""
        limit = q.bounded(query.limit, d.DATASETS_MOST)
        found = await self._store.page(d.list_filter(query), limit + 1)
        shown = [d.dataset(one).model_copy(update={"version_count": one["count"]}) for one in found]
        page = shown[: min(limit, q.fitting(len(one.to_bytes()) for one in shown))]
        more = len(found) > len(page)
        return DatasetList(datasets=tuple(page), cursor=q.cursor_text(page[-1].name) if more else None)

    async def put(self, put: DatasetPut) -> DatasetStored:
        """Add a version, unless one has the same bytes: then that one is the answer.

        Raises:
            WherryError: ``name_taken``; ``not_found``: there is no such artifact or output; ``too_many_versions``.
        """
        document = await self._store.get(put.name)
        _check_theirs(document, put)
        artifact = await self._artifact(put)
        while True:
            _check_theirs(document, put)
            done = await self._put(document, put, artifact)
            if done is not None:
                return done
            document = await self._store.get(put.name)  # somebody else was quicker

    async def _put(self, document: Document | None, put: DatasetPut, artifact: Artifact) -> DatasetStored | None:
        """Write what *put* wants onto *document*, or None if that is no longer what is stored."""
        now_us = microseconds(utc_now())
        before = document or d.new_document(put, now_us)
        fields = d.changes(before, put, now_us)
        if (same := d.version_with(before, artifact.blob.sha256)) is not None:
            changed = await self._store.set(put.name, fields)
            return DatasetStored(dataset=d.dataset(changed), version=same, is_new=False) if changed else None
        number = before["last"] + 1
        if len(before["versions"]) >= d.VERSIONS_MOST:
            message = f"Dataset {put.name!r} has {d.VERSIONS_MOST} versions, which is the most: delete some first."
            raise WherryError("too_many_versions", message)
        # First the reference: as soon as the version can be seen, its bytes are held. One too many is harmless.
        await refer(self._uploads, self._gridfs, d.dataset_ref(put.name, number), artifact.blob.sha256)
        version = d.version_document(number, artifact, now_us)
        if document is None:
            whole = before | fields | {"last": number, "versions": [version]}
            changed = whole if await self._store.add(whole) else None
        else:
            changed = await self._store.push(put.name, before["last"], version, fields)
        return DatasetStored(dataset=d.dataset(changed), version=number, is_new=True) if changed else None

    async def with_artifact(self, artifact: Artifact) -> str | None:
        """Return the dataset that an artifact is a version of, as a sentence's subject, or None."""
        name = await self._store.with_artifact(artifact.id)
        return None if name is None else f"Dataset {name}"

    async def update(self, update: DatasetUpdate) -> Dataset:
        """Change how a dataset is described and who sees it.

        Raises:
            NotFound: there is none of this name.
        """
        fields = d.changes(await self._document(update.name), update, microseconds(utc_now()))
        changed = await self._store.set(update.name, fields)
        if changed is None:
            raise d.missing(update.name)
        return d.dataset(changed)

    async def remove(self, remove: DatasetRemove) -> None:
        """Remove a version or all of a dataset. Their artifacts stay what they were before.

        Raises:
            NotFound: there is none.
            WherryError: ``dataset_in_use``: jobs that have not ended need it.
        """
        document = await self._document(remove.name)
        d.dataset(document, DatasetQuery(name=remove.name, version=remove.version))
        numbers = [one["version"] for one in document["versions"]]
        whole = remove.version is None or numbers == [remove.version]
        await self._check_unused(remove.name, None if whole else remove.version)
        if whole:
            if not await self._store.delete(remove.name, document["last"]):
                raise WherryError("conflict", f"Dataset {remove.name!r} has just changed: look, and try again.")
        elif remove.version is not None:
            numbers = [remove.version]
            await self._store.pull(remove.name, remove.version)
        for number in numbers:
            await self._uploads.drop_refs(d.dataset_ref(remove.name, number))

    async def _check_unused(self, name: str, version: int | None) -> None:
        await self._jobs.catch_up()
        jobs = await self._store.jobs(d.references(name, version), JOBS_NAMED + 1)
        if jobs:
            named = ", ".join(jobs[:JOBS_NAMED]) + (" and others" if len(jobs) > JOBS_NAMED else "")
            what = name if version is None else f"{name}@{version}"
            raise WherryError(
                "dataset_in_use",
                f"Jobs that have not ended need dataset {what}: {named}. Wait or cancel them.",
            )

    async def _document(self, name: str) -> Document:
        document = await self._store.get(name)
        if document is None:
            raise d.missing(name)
        return document

    async def _artifact(self, put: DatasetPut) -> Artifact:
        if put.job_id is not None:
            return await self._artifact_of_output(put, put.job_id, put.path or "")
        artifact = await self._uploads.artifact(put.artifact_id or "")
        if artifact is None:
            raise NotFound(f"There is no artifact {put.artifact_id!r}.")
        return artifact

    async def _artifact_of_output(self, put: DatasetPut, job_id: str, path: str) -> Artifact:
        """Return a new artifact with the bytes of a file that a job left: nothing is copied."""
        job = (await self._jobs.get(job_id)).job
        blob = one(await self._outputs.of(job), path).entries[0].blob
        if blob is None:
            raise WherryError("not_a_file", f"{path!r} of job {job_id} is a folder: a dataset is one file.")
        artifact = Artifact(
            id=new_id("a"),
            owner_id=put.owner_id,
            blob=blob,
            name=path.rpartition("/")[2],
            created_at=utc_now(),
        )
        await refer(self._uploads, self._gridfs, artifact_ref(artifact.id), blob.sha256)
        await self._uploads.add_artifacts([artifact])
        return artifact


def _check_theirs(document: Document | None, put: DatasetPut) -> None:
    if document is not None and document["owner_id"] != put.owner_id and not put.anybodys:
        raise d.taken(put.name)
