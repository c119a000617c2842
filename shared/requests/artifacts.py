"""Stored bytes with an owner, and how they come: resumable uploads, the web. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Literal

from shared.job import BlobRef
from shared.model import Message


class Artifact(Message):
    """Stored bytes with a name and an owner. The id is the owner's; the bytes may be shared, which nobody can tell."""

    id: str
    owner_id: str
    blob: BlobRef
    name: str = ""
    media_type: str = "application/octet-stream"
    created_at: datetime


class ArtifactQuery(Message):
    """An artifact by id."""

    artifact_id: str


class ArtifactListQuery(Message):
    """An owner's artifacts, newest first. `owner_id` None is everybody's (admins)."""

    owner_id: str | None = None
    limit: int = 100  # 1 to 1,000
    cursor: str | None = None


class ArtifactList(Message):
    """A page of artifacts; `cursor` asks for the next."""

    artifacts: tuple[Artifact, ...] = ()
    cursor: str | None = None


class ResumableCreate(Message):
    """Begin an upload that any gateway may go on with. The id is the sender's choice: repeating it is harmless."""

    upload_id: str
    owner_id: str
    length: int | None = None  # None: told later
    name: str = ""
    media_type: str = "application/octet-stream"
    metadata: str = ""  # tus' Upload-Metadata, as the user sent it


class ResumableQuery(Message):
    """An upload that may be resumed, by id."""

    upload_id: str


class ResumableBegin(Message):
    """Go on writing at `offset`. Whoever wrote before is shut out from then on."""

    upload_id: str
    offset: int
    length: int | None = None  # told now where it was not before
    checked: bool = False  # what is written counts only once `ResumableAdvance` says so: its checksum comes first


class ResumableAdvance(Message):
    """The writer of `epoch` has had everything below `offset` stored. At the upload's length it becomes an artifact."""

    upload_id: str
    epoch: int
    offset: int


class Resumable(Message):
    """An upload that may be resumed. `epoch` counts its writers; `offset` is what is durable, in bytes."""

    upload_id: str
    owner_id: str
    state: Literal["open", "sealed", "committed", "dropped"]
    offset: int
    epoch: int = 0
    length: int | None = None
    metadata: str = ""
    created_at: datetime
    expires_at: datetime
    artifact_id: str | None = None  # with sha256, once it is committed
    sha256: str | None = None


class WebFetch(Message):
    """A small file from the web, that somebody waits for: it becomes an artifact of theirs."""

    owner_id: str
    url: str
    bytes_max: int
