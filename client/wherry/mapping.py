"""Map jobs' items and image workloads: what the server takes and answers, and the operations on them."""

import mimetypes
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from client.wherry import models, protocol, scripts
from client.wherry.effects import Body, Request, Script, Series, Work
from client.wherry.errors import SourceError, WherryError
from client.wherry.source import File, ProgressCallback, form_body, read_file

_PAGE = 1000


class ItemFile(models.Answer):
    """A file that an item has left."""

    path: str
    size: int = 0
    sha256: str = ""


class Item(models.Answer):
    """An item of a map job and what has become of it. `number` is its place in the job, from 1."""

    item_id: str
    number: int
    name: str = ""
    state: str
    tries: int = 0
    node: str | None = None
    worker: str | None = None
    added_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: models.Failure | None = None
    params: dict[str, Any] = {}
    artifact_id: str | None = None
    path: str | None = None
    files: tuple[ItemFile, ...] = ()


class ItemPage(models.Answer):
    """Some items; `cursor` asks for the next."""

    items: tuple[Item, ...] = ()
    cursor: str | None = None


class AddedItems(models.Answer):
    """The ids of items that were handed in, in order."""

    job_id: str
    items: tuple[str, ...] = ()
    closed: bool = False


class ImageCounts(models.Answer):
    """Images of a workload, in numbers."""

    total: int = 0
    waiting: int = 0
    filtered: int = 0
    failed: int = 0
    cancelled: int = 0  # the workload ended before they had a result


class FailedImage(models.Answer):
    """An image that could not be filtered, and why."""

    image_id: str
    name: str = ""
    reason: str = ""
    message: str = ""


class Workload(models.Answer):
    """An image workload: a map job whose items are images. In a list the ids of images are left out."""

    workload_id: str
    workload_name: str = ""
    filter: str = ""
    status: str
    running_jobs: int = 0
    filtered_images: tuple[str, ...] = ()
    failed_images: tuple[FailedImage, ...] = ()
    images: ImageCounts = ImageCounts()
    closed: bool = False
    state: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    error: models.Failure | None = None
    pending: tuple[str, ...] = ()


class WorkloadPage(models.Answer):
    """Some workloads; `cursor` asks for the next."""

    workloads: tuple[Workload, ...] = ()
    cursor: str | None = None


class Image(models.Answer):
    """An image that was taken in."""

    workload_id: str
    image_id: str
    type: str = "original"


# --- requests --------------------------------------------------------------------------------------------------------


def _path(*parts: str) -> str:
    return "/" + "/".join(map(protocol.segment, parts))


def add(job_id: str, items: Sequence[str | Mapping[str, Any]], key: str, *, close: bool) -> Request:
    """Add items to an open map job; the key makes it safe to repeat."""
    wish = {"items": [one if isinstance(one, str) else dict(one) for one in items], "close": close}
    return Request("POST", _path("jobs", job_id, "items"), headers={"Idempotency-Key": key}, json=wish)


def retry(job_id: str, items: Sequence[str]) -> Request:
    """Ask for failed items to be tried again: these, or all."""
    return Request("POST", _path("jobs", job_id, "items", "retry"), json={"items": list(items)})


def close(job_id: str) -> Request:
    """Let a map job take no more items."""
    return Request("POST", _path("jobs", job_id, "close"))


def rerun(job_id: str, key: str, *, everything: bool) -> Request:
    """Hand in the items of an ended map job again that have no result, or all of any job."""
    query: dict[str, str | list[str]] = {"all": "true"} if everything else {}
    return Request("POST", _path("jobs", job_id, "rerun"), query=query, headers={"Idempotency-Key": key})


def create(filter_: str, name: str | None, key: str) -> Request:
    """Make a workload."""
    wish = {"filter": filter_} | ({"workload_name": name} if name else {})
    return Request("POST", "/workloads", headers={"Idempotency-Key": key}, json=wish)


def workload(workload_id: str, method: str = "GET") -> Request:
    """Ask for a workload, or (DELETE) that it ends."""
    return Request(method, _path("workloads", workload_id))


def rerun_workload(workload_id: str, key: str) -> Request:
    """Ask for the failed images of a workload to be filtered again."""
    return Request("POST", _path("workloads", workload_id, "rerun"), headers={"Idempotency-Key": key})


# --- operations ------------------------------------------------------------------------------------------------------


def items(job_id: str, states: Sequence[str], limit: int | None, patience_s: float) -> Series[Item]:
    """Give a map job's items in order."""
    path, filters = _path("jobs", job_id, "items"), {"state": ",".join(states)}
    return scripts.each(ItemPage, path, filters, lambda page: page.items, limit, patience_s, _PAGE)


def workloads(limit: int | None, patience_s: float) -> Series[Workload]:
    """Give workloads, newest first."""
    return scripts.each(WorkloadPage, "/workloads", {}, lambda page: page.workloads, limit, patience_s)


def put_image(
    workload_id: str, path: Path, type_: str, key: str, progress: ProgressCallback | None, patience_s: float
) -> Script[Image]:
    """Give a workload an image, which is read while it is sent.

    Raises:
        SourceError: there is no such file.

    """
    body = yield Work(partial(_image_body, workload_id, path, type_, progress))
    request = Request("POST", "/images", headers={"Idempotency-Key": key}, body=body)
    return (yield from scripts.ask(Image, request, patience_s))


def get_image(
    image_id: str, target: Path, type_: str | None, progress: ProgressCallback | None, patience_s: float
) -> Script[Path]:
    """Bring an image to the file *target*, going on where a connection broke."""
    query: dict[str, str | list[str]] = {"type": type_} if type_ else {}

    def part(start: int) -> Request:
        plain = protocol.download(_path("images", image_id), start)
        return Request("GET", plain.path, query=query, headers=plain.headers)

    yield from scripts.get_file(part, target, progress, patience_s)
    return target


def get_item_file(
    job_id: str, item_id: str, path: str, target: Path, progress: ProgressCallback | None, patience_s: float
) -> Script[Path]:
    """Bring a file that an item has left to the file *target*, going on where a connection broke.

    Raises:
        Corrupt: what arrived is not what the item has left.

    """
    found = yield from scripts.ask(Item, Request("GET", _path("jobs", job_id, "items", item_id)), patience_s)
    wanted = next((file for file in found.files if file.path == path), None)
    if wanted is None:
        raise WherryError("not_found", f"item {item_id} has left no {path!r}")
    where = f"{_path('jobs', job_id, 'items', item_id, 'files')}/{quote(path)}"
    sha256 = yield from scripts.get_file(partial(protocol.download, where), target, progress, patience_s)
    yield Work(partial(scripts.check_digest, target, sha256, wanted.sha256))
    return target


def _image_body(workload_id: str, path: Path, type_: str, progress: ProgressCallback | None) -> Body:
    if not path.is_file():
        raise SourceError(f"{path} is not a file")
    name = "".join(char for char in path.name if char.isprintable())[:200]
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    fields = {
        key: ("text/plain", text) for key, text in (("workload_id", workload_id), ("type", type_), ("name", name))
    }
    return form_body(
        fields, File("data", path.name, media_type, partial(read_file, path, progress), path.stat().st_size)
    )
