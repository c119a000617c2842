"""Datasets: names for stored bytes, with versions. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Literal

from shared.job import BlobRef
from shared.model import Message

Visibility = Literal["private", "shared"]


class DatasetVersion(Message):
    """Bytes that a dataset had from some moment on. Numbers count from 1 and are not used again."""

    version: int
    artifact_id: str
    blob: BlobRef
    name: str = ""  # the file's
    media_type: str = "application/octet-stream"
    created_at: datetime


class Dataset(Message):
    """A name for bytes, which are its versions, newest first. Names are unique in an installation.

    `version_count` tells how many there are where not all of them are in the answer.
    """

    name: str
    owner_id: str
    owner_name: str
    description: str = ""
    labels: tuple[str, ...] = ()
    visibility: Visibility = "private"
    created_at: datetime
    updated_at: datetime
    versions: tuple[DatasetVersion, ...] = ()
    version_count: int = 0


class DatasetPut(Message):
    """A new version of a dataset, or the first: an artifact, or a file that a job left.

    That the caller may use the artifact or the job has been checked. What is None stays as it was.
    """

    name: str
    owner_id: str
    owner_name: str
    artifact_id: str | None = None
    job_id: str | None = None
    path: str | None = None
    description: str | None = None
    labels: tuple[str, ...] | None = None
    visibility: Visibility | None = None
    anybodys: bool = False  # an administrator does it: the dataset may be somebody else's


class DatasetStored(Message):
    """What became of it: a new version, or (with `is_new` false) the one that has the same bytes already."""

    dataset: Dataset
    version: int
    is_new: bool


class DatasetQuery(Message):
    """A dataset by name. With `alone` the answer has no version but `version`, or the newest."""

    name: str
    version: int | None = None
    alone: bool = False


class DatasetListQuery(Message):
    """Datasets by name, each with its newest version. All words of `text` have to be in one's name, words or labels.

    `viewer_id`: who asks; sees shared ones and their own. None is an administrator, who sees all.
    """

    text: str = ""
    owner_name: str | None = None
    viewer_id: str | None = None
    limit: int = 50  # 1 to 500
    cursor: str | None = None


class DatasetList(Message):
    """A page of datasets; `cursor` asks for the next."""

    datasets: tuple[Dataset, ...] = ()
    cursor: str | None = None


class DatasetUpdate(Message):
    """Changes to a dataset; what is None stays."""

    name: str
    description: str | None = None
    labels: tuple[str, ...] | None = None
    visibility: Visibility | None = None


class DatasetRemove(Message):
    """A version of a dataset, or (None) all of it. Its last version is all of it."""

    name: str
    version: int | None = None
