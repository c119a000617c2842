"""Image workloads as a view of open map jobs: ids, words for states, and which bytes are an image.

An image is an item. Its original has the item's id (``i…``); what the filter makes of it has the same id but for its
first letter (``f…``), so that neither needs a table.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.gateway.core.problems import invalid
from services.gateway.core.views_mapping import FailedImage, ImageCounts, ImageType, WorkloadStatus
from shared.errors import FieldProblem
from shared.job import Item, Job
from shared.spec import ImageRef, JobSpec, Map, Resources
from shared.states import ItemState, JobState

#: What a worker of a workload gets, and how long one image may take.
RESOURCES = Resources.model_validate({"cpus": 1, "memory": "1GiB", "disk": "512MiB"})
IMAGE_TIMEOUT_S = 300.0
#: How often an image is tried: one whose container ended on it may have had no part in that.
TRIES = 2
#: Bytes at the start of a file by which it is known.
HEAD_BYTES = 32

_ORIGINAL, _FILTERED = "i", "f"


@dataclass(frozen=True, slots=True)
class Format:
    """A format that Pillow reads: by which bytes it is known, its media type, the ending of its files."""

    media_type: str
    ending: str
    magic: bytes
    at: int = 0

    def fits(self, head: bytes) -> bool:
        """Return whether a file that begins with *head* is of this format."""
        return head[self.at : self.at + len(self.magic)] == self.magic


_PNM = "image/x-portable-anymap"
FORMATS = (
    Format("image/png", "png", b"\x89PNG\r\n\x1a\n"),
    Format("image/jpeg", "jpg", b"\xff\xd8\xff"),
    Format("image/gif", "gif", b"GIF87a"),
    Format("image/gif", "gif", b"GIF89a"),
    Format("image/webp", "webp", b"WEBP", at=8),
    Format("image/tiff", "tif", b"II*\x00"),
    Format("image/tiff", "tif", b"MM\x00*"),
    Format("image/tiff", "tif", b"II+\x00"),
    Format("image/bmp", "bmp", b"BM"),
    Format("image/jp2", "jp2", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    Format("image/jp2", "j2k", b"\xff\x4f\xff\x51"),
    Format("image/avif", "avif", b"ftypavif", at=4),
    Format("image/avif", "avif", b"ftypavis", at=4),
    Format("image/vnd.microsoft.icon", "ico", b"\x00\x00\x01\x00"),
    Format("image/x-icns", "icns", b"icns"),
    Format("image/vnd.adobe.photoshop", "psd", b"8BPS"),
    Format("image/vnd-ms.dds", "dds", b"DDS "),
    Format("image/x-qoi", "qoi", b"qoif"),
    Format("image/x-sgi", "sgi", b"\x01\xda"),
    Format("image/x-cmu-raster", "ras", b"\x59\xa6\x6a\x95"),
    Format("image/x-pcx", "pcx", b"\x0a\x05\x01"),
    *(Format(_PNM, "pnm", b"P%d" % number) for number in range(1, 7)),
)
#: Of other endings than a format's own.
_ENDINGS = {one.ending: one.media_type for one in FORMATS} | {
    "jpeg": "image/jpeg", "tiff": "image/tiff", "ppm": _PNM, "pgm": _PNM, "pbm": _PNM,
}  # fmt: skip


def format_of(head: bytes) -> Format | None:
    """Return the format of a file that begins with *head* (HEAD_BYTES of it, or all), or None if it is no image."""
    found = next((one for one in FORMATS if one.fits(head)), None)
    if found is not None and found.media_type == _PNM and head[2:3] not in (b" ", b"\n", b"\r", b"\t"):
        return None
    return found


def media_type(path: str, fallback: str) -> str:
    """Return the media type of an image by the ending of its file's name."""
    return _ENDINGS.get(path.rpartition(".")[2].lower(), fallback)


# --- ids -----------------------------------------------------------------------------------------------------------


def item_of(image_id: str) -> tuple[str, ImageType] | None:
    """Return the item that an image belongs to, and what of it the image is; None if that is no image's id."""
    if len(image_id) != 26 or image_id[0] not in (_ORIGINAL, _FILTERED):
        return None
    return _ORIGINAL + image_id[1:], "original" if image_id[0] == _ORIGINAL else "filtered"


def image_id(item_id: str, type_: ImageType) -> str:
    """Return the id of an item's original, or of what the filter makes of it."""
    return item_id if type_ == "original" else _FILTERED + item_id[1:]


# --- workloads -----------------------------------------------------------------------------------------------------


def filters_in(source: str) -> tuple[str, ...]:
    """Return the names of the filters that a module defines (its *source* is images/filters/filters.py), in order."""
    return tuple(
        one.name
        for one in ast.parse(source).body
        if isinstance(one, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == "picture_filter" for mark in one.decorator_list)
    )


def check_filter(name: str, filters: Sequence[str]) -> None:
    """Let a filter pass that is among *filters*.

    Raises:
        WherryError: ``invalid``, naming those that there are.
    """
    if name not in filters:
        message = f"There is no filter {name[:100]!r}; there are {', '.join(filters)}"
        raise invalid([FieldProblem(field="filter", message=message)])


@dataclass(frozen=True, slots=True)
class Program:
    """What filters: an image, or (where it has none) a command with its environment, as plain processes."""

    image: ImageRef | None = None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])


def spec(name: str, filter_: str, program: Program, parallelism: int) -> JobSpec:
    """Return the map job that a workload is.

    Args:
        name: what the user calls it.
        filter_: the name of one.
        program: what filters.
        parallelism: workers at a time, at most.
    """
    how: dict[str, object] = {"image": program.image}
    if program.image is None:
        how = {"runtime": "process", "command": program.command, "env": program.env}
    return JobSpec.model_validate(
        {
            "name": name, "kind": "map", "view": "workload", "params": {"filter": filter_}, "resources": RESOURCES,
            "map": Map(
                open=True, warm=True, parallelism=parallelism, item_attempts=TRIES, item_timeout=IMAGE_TIMEOUT_S
            ), **how,
        }
    )  # fmt: skip


def filter_of(job: Job) -> str:
    """Return the filter of a workload."""
    return str(job.spec.params.get("filter", ""))


def counts(job: Job) -> ImageCounts:
    """Return how many images a workload has."""
    if job.items is None:
        return ImageCounts(total=0, waiting=0, filtered=0, failed=0)
    left = job.items.total - job.items.ended
    waiting, cancelled = (0, left) if job.is_terminal else (left, 0)
    return ImageCounts(
        total=job.items.total, waiting=waiting, filtered=job.items.succeeded, failed=job.items.failed,
        cancelled=cancelled,
    )  # fmt: skip


def running_jobs(job: Job) -> int:
    """Return how many containers of a workload work on images. One that has none left is kept for the next image."""
    workers = sum(one.state is JobState.RUNNING for one in job.members)
    return min(workers, counts(job).waiting)


def status(job: Job) -> WorkloadStatus:
    """Return where a workload is: `completed` once every image has a result or has failed."""
    images = counts(job)
    if job.is_terminal or (images.total and not images.waiting):
        return "completed"
    return "running" if running_jobs(job) or images.waiting < images.total else "scheduling"


def filtered(items: Iterable[Item]) -> list[str]:
    """Return the ids of what was made of *items* that have succeeded."""
    return [image_id(one.id, "filtered") for one in items if one.state is ItemState.SUCCEEDED]


def failed(items: Sequence[Item]) -> list[FailedImage]:
    """Return which of *items* have failed, and why."""
    return [
        FailedImage(
            image_id=one.id, name=one.spec.name,
            reason=one.error.reason.value if one.error else "", message=one.error.message if one.error else "",
        )
        for one in items
        if one.state is ItemState.FAILED
    ]  # fmt: skip


def fields_of(sent: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a form; one that is empty counts as left out, as browsers send it."""
    return {name: value for name, value in sent.items() if value}
