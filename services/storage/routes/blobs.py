"""The blob protocol, storage's end. `kind` and `peer` of the subject say who asks; the broker vouches for them."""

import json
from collections import OrderedDict
from hashlib import sha256

from prometheus_client import Counter

from services.storage.adapters.gridfs import GridFs, Span, StoredFile
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.access import AttemptScope, OwnerScope, check_attempt, check_source, scope_of
from services.storage.routes.table import Route, route
from services.storage.shell.grouping import Grouped
from services.storage.shell.inputs import Inputs
from services.storage.shell.items import Items
from services.storage.shell.jobs import Jobs
from services.storage.shell.uploads import Put, Uploads
from shared import channels as c
from shared.blobs import CHUNK_HEADER, SCOPE_HEADER, SHA256_HEADER, SIZE_HEADER, UPLOAD_HEADER
from shared.bus import Raw
from shared.clock import monotonic
from shared.errors import NotFound, WherryError
from shared.ids import keyed_id
from shared.requests.artifacts import Artifact, ArtifactQuery
from shared.requests.blobs import (
    CHUNK_BYTES,
    BlobRead,
    BlobScope,
    Committed,
    InputQuery,
    UploadAbort,
    UploadCommit,
    UploadOpen,
)
from shared.requests.outputs import OutputPage

SENT = Counter("wherry_storage_blob_bytes_sent_total", "Bytes of blobs that were read.")

#: Chunks that may be handled at a time, and reads: each holds at most one chunk.
CHUNKS_AT_ONCE, READS_AT_ONCE = 64, 32
#: Pieces that one question to the database is about.
FOUND_MOST = 8
FILES_KEPT = 1024
#: How long a node's right to an input or an attempt, once seen, is not looked up again. The outcome of an attempt
#: that was replaced in the meantime does not count anyway.
TRUST_S = 2.0


class BlobRoutes:
    """Stores and reads bytes for whom they are meant."""

    def __init__(
        self, uploads: Uploads, gridfs: GridFs, store: UploadStore, jobs: Jobs, inputs: Inputs, items: Items
    ) -> None:
        self._uploads = uploads
        self._gridfs = gridfs
        # Readers ask ahead: what waits at a moment, mostly pieces of one file in a row, is one question.
        self._reads = Grouped(
            gridfs.read_many,
            lambda span: span.length,
            at_once=2,
            group_most=FOUND_MOST,
            group_bytes=FOUND_MOST * CHUNK_BYTES,
            waiting_bytes=2 * READS_AT_ONCE * CHUNK_BYTES,
        )
        self._store = store
        self._jobs = jobs
        self._inputs = inputs
        self._items = items
        self._files: OrderedDict[str, StoredFile] = OrderedDict()
        self._trusted: OrderedDict[tuple[str, str, object], float] = OrderedDict()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(c.BLOB_OPEN, self.open),
            Route(c.BLOB_CHUNK, self.chunk, CHUNKS_AT_ONCE),
            Route(c.BLOB_COMMIT, self.commit),
            Route(c.BLOB_ABORT, self.abort),
            Route(c.BLOB_PUT, self.put, 4 * CHUNKS_AT_ONCE),
            Route(c.BLOB_READ, self.read, READS_AT_ONCE),
            Route(c.INPUT_LIST, self.list_input),
        ]

    async def open(self, who: dict[str, str], message: UploadOpen) -> None:
        """Begin an upload."""
        await self._check_scope(who, message.scope)
        await self._uploads.open(who["kind"], who["peer"], message.upload_id, message.scope)

    async def chunk(self, who: dict[str, str], message: Raw) -> None:
        """Store a chunk."""
        try:
            upload_id, number = message.headers[UPLOAD_HEADER], int(message.headers[CHUNK_HEADER])
        except (KeyError, ValueError) as error:
            raise WherryError("invalid", f"A chunk needs the headers {UPLOAD_HEADER} and {CHUNK_HEADER}.") from error
        await self._uploads.chunk(who["kind"], who["peer"], upload_id, number, message.body)

    async def commit(self, who: dict[str, str], message: UploadCommit) -> Committed:
        """Check and keep an upload."""
        return await self._uploads.commit(who["kind"], who["peer"], message)

    async def abort(self, who: dict[str, str], message: UploadAbort) -> None:
        """Drop an upload."""
        await self._uploads.abort(who["kind"], who["peer"], message.upload_id)

    async def put(self, who: dict[str, str], message: Raw) -> Committed:
        """Store a whole small blob."""
        try:
            scope = BlobScope.model_validate(json.loads(message.headers[SCOPE_HEADER]))
            digest = message.headers[SHA256_HEADER]
        except (KeyError, ValueError) as error:
            raise WherryError("invalid", f"A blob needs the headers {SCOPE_HEADER} and {SHA256_HEADER}.") from error
        if len(message.body) > CHUNK_BYTES:
            raise WherryError("too_large", f"More than {CHUNK_BYTES} bytes go in chunks.")
        if sha256(message.body).hexdigest() != digest:
            raise WherryError("corrupt", "The bytes that arrived are not those that were sent.", retryable=True)
        upload_id = message.headers.get(UPLOAD_HEADER)
        artifact_id = keyed_id("a", who["peer"].encode(), upload_id) if upload_id else None
        return await self._uploads.put(Put(message.body, digest, await self._check_scope(who, scope), artifact_id))

    async def read(self, who: dict[str, str], message: BlobRead) -> Raw:
        """Return a range of a blob."""
        if message.offset < 0 or not 0 <= message.length <= CHUNK_BYTES:
            raise WherryError("invalid", f"A range begins at 0 or later and has at most {CHUNK_BYTES} bytes.")
        digest = await self._digest(who, message)
        file = await self._file(digest)
        body = await self._reads.do(Span(file, message.offset, message.length))
        if len(body) < min(message.length, file.size - message.offset):
            # Removed since it was found, and perhaps stored anew.
            self._files.pop(digest, None)
            file = await self._file(digest)
            body = await self._reads.do(Span(file, message.offset, message.length))
        SENT.inc(len(body))
        return Raw(body, {SIZE_HEADER: str(file.size)})

    async def list_input(self, who: dict[str, str], query: InputQuery) -> OutputPage:
        """Return what an input consists of."""
        if who["kind"] != "node":
            raise NotFound("Inputs are for nodes.")
        return await self._inputs.page(who["peer"], query)

    async def artifact(self, query: ArtifactQuery) -> Artifact:
        """Return an artifact's facts.

        Raises:
            NotFound: there is none of this id.
        """
        artifact = await self._store.artifact(query.artifact_id)
        if artifact is None:
            raise NotFound(f"There is no artifact {query.artifact_id!r}.")
        return artifact

    async def _check_scope(self, who: dict[str, str], wanted: BlobScope) -> OwnerScope | AttemptScope:
        scope = scope_of(who["kind"], wanted)
        if isinstance(scope, AttemptScope) and not self._trusts(who["peer"], scope.job_id, scope.attempt):
            found = await self._jobs.get(scope.job_id)
            check_attempt(found.job, who["peer"], scope.attempt)
            self._trust(who["peer"], scope.job_id, scope.attempt)
        return scope

    async def _digest(self, who: dict[str, str], wanted: BlobRead) -> str:
        """Return the digest of what is asked for, if the asker may read it."""
        if who["kind"] == "gateway" and wanted.sha256:
            return wanted.sha256
        if who["kind"] == "node" and wanted.input is not None:
            return await self._inputs.digest(who["peer"], wanted)
        if who["kind"] == "node" and wanted.item is not None:
            return await self._items.digest(who["peer"], wanted)
        if wanted.artifact_id is None:
            raise NotFound("Name an artifact.")
        if who["kind"] != "gateway":
            await self._check_source(who["peer"], wanted, wanted.artifact_id)
        return (await self.artifact(ArtifactQuery(artifact_id=wanted.artifact_id))).blob.sha256

    async def _check_source(self, node_id: str, wanted: BlobRead, artifact_id: str) -> None:
        if wanted.job_id is None:
            raise NotFound("A node names the job whose source it wants.")
        if not self._trusts(node_id, wanted.job_id, artifact_id):
            found = await self._jobs.get(wanted.job_id, wanted.min_seq)
            check_source(found.job, node_id, artifact_id)
            self._trust(node_id, wanted.job_id, artifact_id)

    def _trusts(self, node_id: str, job_id: str, what: object) -> bool:
        return monotonic() < self._trusted.get((node_id, job_id, what), 0.0)

    def _trust(self, node_id: str, job_id: str, what: object) -> None:
        self._trusted[(node_id, job_id, what)] = monotonic() + TRUST_S
        while len(self._trusted) > FILES_KEPT:
            self._trusted.popitem(last=False)

    async def _file(self, digest: str) -> StoredFile:
        file = self._files.get(digest) or await self._gridfs.find(digest)
        if file is None:
            raise NotFound("There are no such bytes.")
        self._files[digest] = file  # never changes; kept, so that the next piece needs one question less
        self._files.move_to_end(digest)
        while len(self._files) > FILES_KEPT:
            self._files.popitem(last=False)
        return file


def artifact_route(blobs: BlobRoutes) -> Route:
    """Return the question about an artifact; it is not part of the bytes' own connection."""
    return route(c.ARTIFACT_GET, blobs.artifact)
