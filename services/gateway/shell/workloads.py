"""Image workloads: making them, and taking their images in while they arrive."""

import random
import string
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from functools import cache
from pathlib import Path

from services.gateway.adapters.form import Part, parts
from services.gateway.core import access, images, mapping, problems, submission
from services.gateway.core import views_mapping as views
from services.gateway.core.access import Action
from services.gateway.core.names import file_name
from services.gateway.shell import files
from services.gateway.shell import mapping as items
from services.gateway.shell import submission as jobs
from services.gateway.shell.gateway import Gateway
from shared.channels import JOB_LIST
from shared.errors import FieldProblem, NotFound, WherryError
from shared.ids import keyed_id, new_id
from shared.job import Item, Job
from shared.requests.accounts import Principal
from shared.requests.artifacts import Artifact
from shared.requests.jobs import ItemView, JobList, JobListQuery
from shared.spec import ItemSpec
from shared.states import JOB_TERMINAL, ItemState, JobState

_WHAT, _IMAGE = "such workload", "such image"
_FIELD_BYTES_MAX = 1024
_FILE_FIELDS = ("data", "image")
_ACTIVE = tuple(state.value for state in JobState if state not in JOB_TERMINAL)
_LISTED_MAX = 500
_ROOT = Path(__file__).resolve().parents[3]
#: On a machine without Docker: the package beside wherry's own, by the same Python.
_PROCESS = images.Program(
    command=(sys.executable, "-m", "images.filters", "--warm"),
    env={"PYTHONPATH": str(_ROOT)},
)


# --- workloads -----------------------------------------------------------------------------------------------------


async def create(gateway: Gateway, principal: Principal, wish: views.NewWorkload, key: str | None) -> Job:
    """Record a workload and return its job.

    Raises:
        WherryError: ``invalid``: no such filter; as `submission.submit`.
    """
    settings = gateway.settings
    named = tuple(one.strip() for one in settings.filters.split(",") if one.strip())
    images.check_filter(wish.filter, named or _filters_here())
    name = wish.workload_name or f"workload-{''.join(random.choices(string.ascii_lowercase, k=6))}"  # noqa: S311 - a name
    program = _PROCESS if settings.filters_runtime == "process" else images.Program(settings.filters_image)
    spec = images.spec(name, wish.filter, program, settings.filters_parallelism)
    job_id = await jobs.submit(gateway, principal, spec, 0, key)
    return await find(gateway, principal, job_id)


@cache
def _filters_here() -> tuple[str, ...]:
    return images.filters_in((_ROOT / "images" / "filters" / "filters.py").read_text("utf-8"))


async def find(gateway: Gateway, principal: Principal, workload_id: str, action: Action = Action.SEE) -> Job:
    """Return a workload's job, with the images that it was given before this moment.

    Raises:
        NotFound: there is none, it is not the caller's, or the job is no workload.
    """
    try:
        job = (await items.settled(gateway, principal, workload_id, action)).job
    except NotFound:
        raise access.missing(_WHAT) from None
    if job.spec.view != "workload":
        raise access.missing(_WHAT)
    return job


async def ended_images(gateway: Gateway, job: Job) -> list[Item]:
    """Return the images of a workload that have a result or have failed, in the order of their upload."""
    if job.items is None or not job.items.ended:
        return []
    states = (ItemState.SUCCEEDED, ItemState.FAILED)
    return [one async for one in items.all_items(gateway, job.id, states)]


async def listed(gateway: Gateway, principal: Principal, limit: int, cursor: str | None) -> JobList:
    """Return a page of workloads, newest first: the caller's own, or everybody's to administrators."""
    return await gateway.ask(JOB_LIST, _query(principal, limit=limit, cursor=cursor))


async def active(gateway: Gateway, principal: Principal) -> list[str]:
    """Return the workloads of which not every image has a result, newest first; of those that go on the last 500."""
    found = await gateway.ask(JOB_LIST, _query(principal, limit=_LISTED_MAX, states=_ACTIVE))
    return [view.job.id for view in found.jobs if images.status(view.job) != "completed"]


async def end(gateway: Gateway, principal: Principal, workload_id: str) -> Job:
    """Let a workload take no more images, and stop what is still done for it; return it as it was."""
    job = await find(gateway, principal, workload_id, Action.CHANGE)
    if images.counts(job).waiting:
        await jobs.cancel(gateway, principal, job.id)
    else:
        await items.close(gateway, principal, job.id)
    return job


async def rerun(gateway: Gateway, principal: Principal, workload_id: str, key: str | None) -> Job:
    """Have the failed images of a workload filtered again: in itself, or (where it has ended) in a new one.

    Raises:
        WherryError: ``not_found``; ``conflict``: none has failed.
    """
    job = await find(gateway, principal, workload_id, Action.CHANGE)
    if job.is_terminal:
        return await find(gateway, principal, await jobs.rerun(gateway, principal, job.id, key))
    if not images.counts(job).failed:
        raise WherryError("conflict", f"No image of workload {job.id} has failed.")
    await items.retry(gateway, principal, job.id, ())
    return job


def _query(
    principal: Principal, *, limit: int, states: tuple[str, ...] = (), cursor: str | None = None
) -> JobListQuery:
    owner_id = None if access.may(principal, Action.SEE_EVERYTHING) else principal.user_id
    return JobListQuery(owner_id=owner_id, view="workload", states=states, limit=limit, cursor=cursor)


# --- images --------------------------------------------------------------------------------------------------------


async def take(
    gateway: Gateway, principal: Principal, content_type: str, body: AsyncIterator[bytes], key: str | None
) -> views.ImageView:
    """Take an image of a form in, while it arrives: a file `data` or `image`, `workload_id` and `type`, in any order.

    Raises:
        WherryError: ``bad_form``, ``invalid``, ``not_an_image``, ``too_large``; ``not_found``: no such workload;
            ``closed``: it takes no more. Nothing of the upload is left behind then.
    """
    submission.check_key(key)
    fields: dict[str, str] = {}
    stored: Artifact | None = None
    try:
        async with aclosing(parts(content_type, body)) as found:
            async for part in found:
                if part.name in _FILE_FIELDS and stored is None:
                    if "workload_id" in fields:  # before megabytes of it have come for nothing
                        await _open_workload(gateway, principal, fields["workload_id"])
                    stored = await _stored(gateway, principal, part)
                else:
                    name = _known(part.name, is_second=stored is not None)  # before its bytes, which may be many
                    fields[name] = (await part.content(_FIELD_BYTES_MAX)).decode(errors="replace").strip()
        job, spec = await _checked(gateway, principal, images.fields_of(fields), stored)
    except BaseException:
        if stored is not None:
            await _drop(gateway, principal, stored)
        raise
    item_id = keyed_id("i", gateway.key, job.id, "image", key) if key else new_id("i")
    await items.give(gateway, principal, job, spec.model_copy(update={"id": item_id}))
    type_: views.ImageType = "filtered" if spec.given else "original"
    return views.ImageView(workload_id=job.id, image_id=images.image_id(item_id, type_), type=type_)


def _known(name: str, *, is_second: bool) -> str:
    if name in _FILE_FIELDS and is_second:
        raise problems.invalid([_field(name, "A form has one image: send each of several in a request of its own")])
    if name not in ("workload_id", "type", "name"):
        raise problems.invalid([_field(name, "A form has a file `data`, `workload_id` and `type`, and nothing else")])
    return name


async def _checked(
    gateway: Gateway, principal: Principal, fields: dict[str, str], stored: Artifact | None
) -> tuple[Job, ItemSpec]:
    type_ = fields.get("type", "original")
    wrong = [] if stored else [_field("data", "This part of the form is missing: the image's file")]
    if type_ not in ("original", "filtered"):
        wrong.append(_field("type", f"{type_[:100]!r} is neither original nor filtered"))
    if "workload_id" not in fields:
        wrong.append(_field("workload_id", "This field is required: POST /workloads makes a workload"))
    if wrong or stored is None:
        raise problems.invalid(wrong)
    job = await _open_workload(gateway, principal, fields["workload_id"])
    return job, ItemSpec(
        name=file_name(fields.get("name", "")).strip() or stored.name, artifact=stored.id,
        sha256=stored.blob.sha256, size=stored.blob.size, given=type_ == "filtered",
    )  # fmt: skip


async def _open_workload(gateway: Gateway, principal: Principal, workload_id: str) -> Job:
    try:
        job = (await gateway.job(principal, workload_id, Action.CHANGE)).job
    except NotFound:
        raise access.missing(_WHAT) from None
    if job.spec.view != "workload":
        raise access.missing(_WHAT)
    mapping.require_open(job, 1)
    return job


async def _stored(gateway: Gateway, principal: Principal, part: Part) -> Artifact:
    """Store the file of a form, once its first bytes are those of an image."""
    async with aclosing(part.chunks()) as chunks:
        head = b""
        async for chunk in chunks:
            head += chunk
            if len(head) >= images.HEAD_BYTES:
                break
        known = images.format_of(head)
        if known is None:
            what = "is empty" if not head else "begins like no image that can be read"
            raise WherryError("not_an_image", f"{_name(part, '')[:100] or 'The file'} {what}.")
        name = _name(part, known.ending)
        limited = _limited(head, chunks, gateway.settings.image_bytes_max)
        stored = await files.store(gateway, principal, limited, name, known.media_type)
    return await gateway.artifact(principal, stored.artifact_id or "")


async def _limited(head: bytes, rest: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    size, chunk = len(head), head
    while chunk:
        if size > most:
            raise WherryError("too_large", f"An image may have {most} bytes.")
        yield chunk
        chunk = await anext(rest, b"")
        size += len(chunk)


async def _drop(gateway: Gateway, principal: Principal, stored: Artifact) -> None:
    with suppress(WherryError):  # where storage is away, retention takes it one day
        await files.remove(gateway, principal, stored.id)


def _name(part: Part, ending: str) -> str:
    return file_name(part.filename or "").strip() or (f"image.{ending}" if ending else "")


def _field(field: str, message: str) -> FieldProblem:
    return FieldProblem(field=field[:100], message=message)


async def image(gateway: Gateway, principal: Principal, image_id: str) -> tuple[ItemView, views.ImageType]:
    """Return the item that an image is of, and which of the two it is.

    Raises:
        NotFound: there is no such image, or it is not the caller's.
    """
    known = images.item_of(image_id)
    if known is None:
        raise access.missing(_IMAGE)
    try:
        found = await items.item(gateway, principal, known[0])
    except NotFound:
        raise access.missing(_IMAGE) from None
    if found.job.spec.view != "workload":
        raise access.missing(_IMAGE)
    return found, known[1]
