"""What clients see of files: what jobs leave, artifacts, and uploads. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class EntryView(BaseModel):
    """One file or folder that a job left. `mtime` is seconds since the epoch; `sha256` is a file's."""

    path: str
    kind: Literal["file", "dir"]
    mode: int
    mtime: float
    size: int
    sha256: str | None


class OutputsDocument(BaseModel):
    """Entries by path; `cursor` asks for the next. `skipped` says what was left out and why."""

    entries: list[EntryView]
    cursor: str | None
    skipped: list[str]
    partial: bool = False  # seen while the job runs: `look` names what was seen `taken_at` of that attempt
    look: str | None = None
    taken_at: datetime | None = None
    attempt: int | None = None


class ArtifactView(BaseModel):
    """Stored bytes."""

    artifact_id: str
    sha256: str
    size: int


class ArtifactEntry(ArtifactView):
    """An artifact in a list."""

    name: str
    media_type: str
    owner_id: str
    created_at: datetime


class ArtifactsDocument(BaseModel):
    """A page of artifacts, newest first; `cursor` asks for the next."""

    artifacts: list[ArtifactEntry]
    cursor: str | None = None


class UploadView(BaseModel):
    """An upload that may be resumed: how far it has come, in bytes, and which artifact it has become."""

    upload_id: str
    offset: int
    length: int | None
    created_at: datetime
    expires_at: datetime | None
    artifact_id: str | None
    sha256: str | None
