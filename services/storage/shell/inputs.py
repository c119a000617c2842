"""Inputs of a job, for the node that runs it: outputs of other jobs, artifacts, datasets, files from the web."""

from collections import OrderedDict

from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.access import check_input, input_of, prefetched
from services.storage.core.fetching import file_name
from services.storage.core.outputs import Listing, below, one
from services.storage.core.queries import ENTRIES_MOST
from services.storage.shell.fetches import Fetches
from services.storage.shell.jobs import Jobs
from services.storage.shell.outputs import Outputs
from shared.clock import monotonic
from shared.errors import NotFound, Unavailable
from shared.job import BlobRef, Job
from shared.manifest import Entry
from shared.requests.blobs import BlobRead, InputQuery
from shared.requests.outputs import OutputPage
from shared.spec import Input

#: How long a node's right to an input, once seen, is not looked up again: a large input is read piece by piece.
TRUST_S = 2.0
KEPT = 256


class Inputs:
    """Looks up inputs by the job that has them. What is found once never changes.

    An input is what another job left, or one file: then it has one entry, whose path is the file's name.
    """

    def __init__(
        self, jobs: Jobs, outputs: Outputs, artifacts: UploadStore, fetches: Fetches, fleet: FleetStore
    ) -> None:
        self._jobs = jobs
        self._outputs = outputs
        self._artifacts = artifacts
        self._fetches = fetches
        self._fleet = fleet
        self._found: OrderedDict[tuple[str, str, str], tuple[float, Listing, str | None]] = OrderedDict()

    async def page(self, node_id: str, query: InputQuery) -> OutputPage:
        """Return entries of an input.

        Raises:
            NotFound: the node does not run such a job, or nothing is there.
            Unavailable: it is being fetched.
            WherryError: ``input_missing`` or ``stage_in_failed``: it cannot be fetched.
        """
        listed, inner = await self._of(node_id, query.job_id, query.input, query.min_seq)
        return below(listed, inner, query.cursor, ENTRIES_MOST)

    async def digest(self, node_id: str, wanted: BlobRead) -> str:
        """Return the digest of a file of an input.

        Raises:
            NotFound: as with `page`, or the path is none of the input's.
        """
        path = wanted.path or ""
        listed, inner = await self._of(node_id, wanted.job_id or "", wanted.input or "", wanted.min_seq)
        if inner is not None and path != inner and not path.startswith(f"{inner}/"):
            raise NotFound(f"{path!r} is not part of the input.")
        blob = one(listed, path).entries[0].blob
        if blob is None:
            raise NotFound(f"{path!r} is a folder.")
        return blob.sha256

    async def _of(self, node_id: str, job_id: str, name: str, min_seq: int) -> tuple[Listing, str | None]:
        """Return a listing, and the path in it that the input is (None: all of it)."""
        key = (node_id, job_id, name)
        until, listed, inner = self._found.get(key, (0.0, None, None))
        if listed is not None and monotonic() < until:
            return listed, inner
        if job_id.startswith("p"):
            file = await self._prefetch(node_id, job_id, name)
            listed, inner = Listing((file,), (file.path,), ()), file.path
        else:
            job = (await self._jobs.get(job_id, min_seq)).job
            listed, inner = await self._list(job, name, input_of(job, node_id, name))
        self._found[key] = (monotonic() + TRUST_S, listed, inner)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)
        return listed, inner

    async def _list(self, job: Job, name: str, given: Input) -> tuple[Listing, str | None]:
        if given.job is not None:
            job_id, inner = given.job
            other = (await self._jobs.get(job_id)).job
            check_input(job, other)
            return await self._outputs.of(other), inner
        if given.artifact is not None and given.sha256 is not None:
            file = await self._stored(name, given, given.artifact, given.sha256)
        else:
            file = await self._fetches.entry(job, given.source)
        return Listing((file,), (file.path,), ()), file.path

    async def _prefetch(self, node_id: str, prefetch_id: str, name: str) -> Entry:
        """Return the file of a prefetch that an administrator wants of the node, by what the scheduler has recorded.

        Raises:
            Unavailable: the record does not have it: not yet, or not any more.
        """
        given = prefetched(await self._fleet.record(node_id), prefetch_id)
        if given is None or given.artifact is None or given.sha256 is None:
            raise Unavailable(f"No prefetch {prefetch_id!r} is recorded for this node.")
        return await self._stored(name, given, given.artifact, given.sha256)

    async def _stored(self, name: str, given: Input, artifact_id: str, sha256: str) -> Entry:
        """Return the file that the gateway has found for an input, named as the artifact while that is there."""
        artifact = await self._artifacts.artifact(artifact_id)
        blob = BlobRef(sha256=sha256, size=given.size or 0)
        if artifact is None:
            return Entry(path=name, blob=blob)
        return Entry(path=file_name(artifact.name, name), blob=blob, mtime=artifact.created_at.timestamp())
