"""What clients see, and say, of datasets. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shared.requests.datasets import Visibility
from shared.spec import ArtifactId, Label

DatasetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]


_Description = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")]


_Labels = Annotated[list[Label], Field(max_length=64)]


class NewDataset(BaseModel):
    """A dataset, or its next version, of bytes that are stored already. What is left out stays as it was."""

    model_config = ConfigDict(extra="forbid")

    name: DatasetName
    artifact_id: ArtifactId | None = None
    #: ``job:<id>/<path>``: a file that a job left.
    output: Annotated[str, StringConstraints(pattern=r"^job:j[a-z2-7]{25}/[^\x00-\x1f\x7f]{1,4096}$")] | None = None
    description: _Description | None = None
    labels: _Labels | None = None
    visibility: Visibility | None = None


class DatasetChanges(BaseModel):
    """Changes to a dataset; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    description: _Description | None = None
    labels: _Labels | None = None
    visibility: Visibility | None = None


class DatasetVersionView(BaseModel):
    """Bytes that a dataset had from some moment on."""

    version: int
    artifact_id: str
    sha256: str
    size: int
    media_type: str
    created_at: datetime
    file: str


class DatasetDocument(BaseModel):
    """A dataset as of one version. `versions` has all of them, newest first; in lists the newest alone."""

    name: str
    version: int
    artifact_id: str
    sha256: str
    size: int
    description: str
    labels: list[str]
    media_type: str
    visibility: Visibility
    owner: str
    created_at: datetime
    updated_at: datetime
    version_count: int
    versions: list[DatasetVersionView]


class DatasetStoredDocument(DatasetDocument):
    """The same, and whether there was no version with these bytes yet."""

    is_new: bool


class DatasetPage(BaseModel):
    """Datasets by name; `cursor` asks for the next."""

    datasets: list[DatasetDocument]
    cursor: str | None = None
