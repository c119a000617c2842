"""Bytes between storage and others, in chunks. Sizes and offsets are bytes."""

from shared.job import BlobRef
from shared.model import Message
from shared.requests.outputs import SnapshotId

#: Bytes of a chunk: one NATS message and one GridFS chunk document, so nothing is cut twice.
CHUNK_BYTES = 512 * 1024

#: Chunks that one upload may have under way: 8 MiB. The answer to a chunk, sent once it is stored, is the credit.
WINDOW_CHUNKS = 16


class BlobScope(Message):
    """What an upload is for: an owner's artifact (gateway), or an attempt's outputs (the node that runs it)."""

    owner_id: str | None = None
    name: str = ""
    media_type: str = "application/octet-stream"
    job_id: str | None = None
    attempt: int | None = None
    snapshot: SnapshotId | None = None  # with an attempt: for what was asked to be seen while it runs


class UploadOpen(Message):
    """Begin an upload. The id is the sender's choice (`shared.ids`), so that repeating the call is harmless."""

    upload_id: str
    scope: BlobScope


class UploadCommit(Message):
    """All chunks are stored: check the length and SHA-256, and make it one blob. Safe to repeat."""

    upload_id: str
    chunks: int
    size: int
    sha256: str


class UploadAbort(Message):
    """Forget an upload and what it stored."""

    upload_id: str


class Committed(Message):
    """The stored blob; `artifact_id` where the scope was an owner's."""

    blob: BlobRef
    artifact_id: str | None = None


class InputQuery(Message):
    """What an input of a job consists of, for the node that runs the job: a page after the path `cursor`."""

    job_id: str
    input: str
    min_seq: int = 0
    cursor: str | None = None


class BlobRead(Message):
    """Bytes `offset` to `offset + length` of a blob; at most CHUNK_BYTES a call. The answer's body is raw.

    A node names the artifact and the job it runs that has it as source, or one of that job's inputs and a path among
    the outputs of the job that the input names, or an item of the map job whose worker it runs, with the item's
    artifact; the gateway, which has checked the owner, may name the digest.
    """

    artifact_id: str | None = None
    sha256: str | None = None
    job_id: str | None = None
    input: str | None = None
    path: str | None = None  # with input: as the manifest of the other job has it
    item: str | None = None  # with artifact_id and job_id, the worker's
    min_seq: int = 0
    offset: int = 0
    length: int = CHUNK_BYTES
