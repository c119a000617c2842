"""What jobs leave, and what one has left so far while it runs. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Annotated

from pydantic import StringConstraints

from shared.job import BlobRef
from shared.manifest import Entry
from shared.model import Message


class OutputQuery(Message):
    """Outputs of a job: all, or the one at `path` (``_stdout.txt`` and ``_stderr.txt`` are the logs)."""

    job_id: str
    path: str | None = None
    cursor: str | None = None  # the last path of the page before
    limit: int = 1000


class OutputPage(Message):
    """Entries of the manifest in order of their path. Logs come as files."""

    entries: tuple[Entry, ...] = ()
    cursor: str | None = None
    skipped: tuple[str, ...] = ()


#: Names one look at what a running job has left so far.
SnapshotId = Annotated[str, StringConstraints(pattern=r"^l[a-z2-7]{25}$")]


class SnapshotAsk(Message):
    """See what a running job has left so far: everything, or what is at `path` and below it. The id is the sender's."""

    snapshot_id: SnapshotId
    job_id: str
    path: str | None = None
    bytes_max: int  # of what is fetched


class SnapshotWanted(Message):
    """Storage to the node that runs the attempt: store what is there now, and say so with `SnapshotTaken`."""

    snapshot_id: SnapshotId
    job_id: str
    attempt: int
    path: str | None = None
    bytes_max: int


class SnapshotTaken(Message):
    """The node's answer: the manifest of what it has stored, or why it could not."""

    snapshot_id: SnapshotId
    manifest: BlobRef | None = None
    error: str = ""  # a code
    message: str = ""


class SnapshotQuery(Message):
    """A page of a look. Where the node has not answered yet, storage waits a moment for it."""

    snapshot_id: SnapshotId
    job_id: str
    path: str | None = None  # of one entry
    cursor: str | None = None
    limit: int = 1000


class SnapshotPage(Message):
    """What was there when the node looked. `taken_at` None: not answered yet."""

    taken_at: datetime | None = None
    attempt: int = 0
    page: OutputPage = OutputPage()
