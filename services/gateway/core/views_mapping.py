"""What clients see of map jobs' items, and of image workloads, which are map jobs too."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.gateway.core.views import FailureView
from shared.spec import ItemId, ItemSpec
from shared.states import ItemState, JobState

WorkloadStatus = Literal["scheduling", "running", "completed"]
ImageType = Literal["original", "filtered"]


def _item(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class NewItems(BaseModel):
    """Items for a map job: each an object, or a name alone. With `close`, no more will come."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[
        list[Annotated[ItemSpec, BeforeValidator(_item, json_schema_input_type=ItemSpec | str)]],
        Field(max_length=10_000),
    ] = []
    close: bool = False


class RetriedItems(BaseModel):
    """Failed items that are to be tried again; none: all that have failed."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[ItemId], Field(max_length=1000)] = []


class AddedItems(BaseModel):
    """The ids of items that were handed in, in order."""

    job_id: str
    items: list[str]
    closed: bool


class ItemFileView(BaseModel):
    """A file that an item has left."""

    path: str
    size: int
    sha256: str


class ItemDocument(BaseModel):
    """An item of a map job and what has become of it. `number` is its place in the job, from 1."""

    item_id: str
    number: int
    name: str
    state: ItemState
    tries: int
    node: str | None
    worker: str | None  # the job that had it last, with its logs
    added_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: FailureView | None
    params: dict[str, Any]
    artifact_id: str | None
    path: str | None  # below the job's inputs
    given: bool  # it came as a result
    files: list[ItemFileView]


class ItemPage(BaseModel):
    """Some items, in the order in which they came; `cursor` asks for the next."""

    items: list[ItemDocument]
    cursor: str | None


class NewWorkload(BaseModel):
    """What a workload does with its images, and how it is called."""

    model_config = ConfigDict(extra="forbid")

    filter: str = "grayscale"
    workload_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None


class ImageCounts(BaseModel):
    """Images of a workload, in numbers. `waiting` ones have no result yet, `cancelled` ones will never have one."""

    total: int
    waiting: int
    filtered: int
    failed: int
    cancelled: int = 0


class FailedImage(BaseModel):
    """An image that could not be filtered, and why."""

    image_id: str
    name: str
    reason: str
    message: str


class WorkloadDocument(BaseModel):
    """An image workload. It is a map job: `workload_id` is the job's id.

    `filtered_images` are the ids of finished results in the order in which the originals were uploaded.
    """

    workload_id: str
    workload_name: str
    filter: str
    status: WorkloadStatus
    running_jobs: int
    filtered_images: list[str]
    failed_images: list[FailedImage]
    images: ImageCounts
    closed: bool  # it takes no more images
    state: JobState
    owner: str
    created_at: datetime
    ended_at: datetime | None
    error: FailureView | None
    pending: list[str]  # why nothing runs, where nothing does


class WorkloadSummary(BaseModel):
    """A workload in a list."""

    workload_id: str
    workload_name: str
    filter: str
    status: WorkloadStatus
    running_jobs: int
    images: ImageCounts
    closed: bool
    created_at: datetime


class WorkloadPage(BaseModel):
    """Some workloads, newest first; `cursor` asks for the next."""

    workloads: list[WorkloadSummary]
    cursor: str | None


class ImageView(BaseModel):
    """An image that was taken in. `type` says what it is; the id asks for it."""

    workload_id: str
    image_id: str
    type: ImageType
