"""Outputs of one job as inputs of another, for the node that runs the other."""

from collections import OrderedDict

from services.storage.core.access import InputSource, check_input, input_source
from services.storage.core.outputs import Listing, below, one
from services.storage.core.queries import ENTRIES_MOST
from services.storage.shell.jobs import Jobs
from services.storage.shell.outputs import Outputs
from shared.clock import monotonic
from shared.errors import NotFound
from shared.requests import BlobRead, InputQuery, OutputPage

#: How long a node's right to an input, once seen, is not looked up again: a large input is read piece by piece.
TRUST_S = 2.0
KEPT = 256


class Inputs:
    """Looks up inputs by the job that has them. What ended jobs left never changes."""

    def __init__(self, jobs: Jobs, outputs: Outputs) -> None:
        self._jobs = jobs
        self._outputs = outputs
        self._found: OrderedDict[tuple[str, str, str], tuple[float, InputSource, Listing]] = OrderedDict()

    async def page(self, node_id: str, query: InputQuery) -> OutputPage:
        """Return entries of an input.

        Raises:
            NotFound: the node does not run such a job, or nothing is there.
        """
        source, listed = await self._of(node_id, query.job_id, query.input, query.min_seq)
        return below(listed, source.path, query.cursor, ENTRIES_MOST)

    async def digest(self, node_id: str, wanted: BlobRead) -> str:
        """Return the digest of a file of an input.

        Raises:
            NotFound: as with `page`, or the path is none of the input's.
        """
        path = wanted.path or ""
        source, listed = await self._of(node_id, wanted.job_id or "", wanted.input or "", wanted.min_seq)
        if source.path is not None and path != source.path and not path.startswith(f"{source.path}/"):
            raise NotFound(f"{path!r} is not part of the input.")
        blob = one(listed, path).entries[0].blob
        if blob is None:
            raise NotFound(f"{path!r} is a folder.")
        return blob.sha256

    async def _of(self, node_id: str, job_id: str, name: str, min_seq: int) -> tuple[InputSource, Listing]:
        key = (node_id, job_id, name)
        until, source, listed = self._found.get(key, (0.0, None, None))
        if source is not None and listed is not None and monotonic() < until:
            return source, listed
        job = (await self._jobs.get(job_id, min_seq)).job
        source = input_source(job, node_id, name)
        other = (await self._jobs.get(source.job_id)).job
        check_input(job, other)
        listed = await self._outputs.of(other)
        self._found[key] = (monotonic() + TRUST_S, source, listed)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)
        return source, listed
