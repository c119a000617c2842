"""Items of map jobs: found in zips, handed in, tried again, and read back."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.gateway.adapters import archive, zips
from services.gateway.core import access, mapping, problems, submission
from services.gateway.core.access import Action
from services.gateway.shell import files
from services.gateway.shell.gateway import Gateway
from shared.bus import Record
from shared.channels import ITEM_GET, ITEM_LIST, ITEMS_ADDED, ITEMS_RETRIED, JOB_GET
from shared.clock import utc_now
from shared.errors import FieldProblem, NotFound, WherryError
from shared.events import ItemsAdded, ItemsRetried
from shared.ids import TOKEN, keyed_id, new_id
from shared.job import BlobRef, Item, Job
from shared.manifest import Entry
from shared.requests.accounts import Principal
from shared.requests.jobs import ItemList, ItemListQuery, ItemQuery, ItemView, JobQuery, JobView
from shared.requests.outputs import OutputPage
from shared.spec import ItemSpec, JobSpec
from shared.states import ItemState

#: Questions about items' artifacts that one request has under way.
_ASKED_AT_ONCE = 32
_PAGE = 1000


# --- handing in ----------------------------------------------------------------------------------------------------


async def of_spec(gateway: Gateway, principal: Principal, sent: JobSpec, recorded: JobSpec) -> list[ItemSpec]:
    """Return the items that a map job begins with, without ids but those that users gave.

    Args:
        gateway: where.
        principal: who hands it in.
        sent: the spec as it came, with the items.
        recorded: the spec with its inputs as they are recorded.

    Raises:
        WherryError: ``invalid``: the zip is none, or nothing in it is wanted; an artifact is not there;
            ``too_large``: all together.
    """
    if sent.map is None:
        return []
    items = await _of_zip(gateway, recorded) if sent.map.over else []
    items += await resolved(gateway, principal, sent.map.items, "map.items")
    mapping.check_count(len(items))
    mapping.check_bytes(items, 0, gateway.settings.items_bytes_max)
    return items


async def _of_zip(gateway: Gateway, spec: JobSpec) -> list[ItemSpec]:
    given = spec.inputs[mapping.OVER]
    if given.sha256 is None or given.size is None:
        raise problems.invalid([FieldProblem(field="map.over", message="Name a zip: `dataset:…` or `artifact:…`")])
    try:
        paths = await zips.files_of(gateway.blobs, BlobRef(sha256=given.sha256, size=given.size))
    except WherryError as error:
        if error.code != "bad_source":
            raise
        why = error.message.removeprefix("source: ")
        raise problems.invalid(
            [FieldProblem(field="map.over", message=f"Items are the files of a zip: {why}")]
        ) from None
    return await asyncio.to_thread(mapping.of_files, paths, spec.map.pattern if spec.map else None)


async def resolved(gateway: Gateway, principal: Principal, items: Sequence[ItemSpec], field: str) -> list[ItemSpec]:
    """Return *items* with what their artifacts are.

    Raises:
        WherryError: ``invalid``: an artifact is not there, or not the caller's.
    """
    turn = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def one(at: int, item: ItemSpec) -> ItemSpec | FieldProblem:
        if item.artifact is None:
            return mapping.named(item, (item.path or "").rpartition("/")[2])
        async with turn:
            try:
                found = await gateway.artifact(principal, item.artifact)
            except NotFound:
                message = f"There is no artifact {item.artifact}, or it is not yours"
                return FieldProblem(field=f"{field}.{at}.artifact", message=message)
        whole = item.model_copy(update={"sha256": found.blob.sha256, "size": found.blob.size})
        return mapping.named(whole, found.name)

    found = await asyncio.gather(*(one(at, item) for at, item in enumerate(items)))
    if missing := [problem for problem in found if isinstance(problem, FieldProblem)]:
        raise problems.invalid(missing)
    return [item for item in found if isinstance(item, ItemSpec)]


async def begin(gateway: Gateway, job: Job, items: Sequence[ItemSpec], *, by: str) -> None:
    """Hand in the items of a job that has been recorded, and close it unless it is open. Safe to repeat."""
    if job.spec.map is None or mapping.is_closed(job):
        return
    whole = _with_ids(items, [keyed_id("i", gateway.key, job.id, "spec", str(at)) for at in range(len(items))])
    await _send(gateway, job, whole, close=not job.spec.map.open, by=by)


async def add(
    gateway: Gateway, principal: Principal, job_id: str, items: Sequence[ItemSpec], *, close: bool, key: str | None
) -> list[str]:
    """Add items to an open map job and return their ids; a repeat under the same key adds nothing twice.

    To close it alone, without items, changes nothing where it is closed.

    Raises:
        WherryError: ``not_found``, ``closed``, ``conflict``: it is no map job; ``invalid``; ``too_large``.
    """
    job = (await settled(gateway, principal, job_id, Action.CHANGE)).job
    mapping.require_map(job)
    if not items and mapping.is_closed(job):
        return []
    if wrong := mapping.unusable_items(items, job.spec.inputs, "items"):
        raise problems.invalid(wrong)
    submission.check_key(key)
    ids = [keyed_id("i", gateway.key, job.id, "add", key, str(at)) if key else new_id("i") for at in range(len(items))]
    whole = _with_ids(items, ids)
    if not (key and whole and await _has(gateway, job, whole[-1].id or "")):
        mapping.require_open(job, len(items))
        whole = _with_ids(await resolved(gateway, principal, items, "items"), ids)
        before = job.items.bytes if job.items else 0
        mapping.check_bytes(whole, before, gateway.settings.items_bytes_max)
        await _send(gateway, job, whole, close=close, by=principal.user_id)
    return [item.id or "" for item in whole]


async def give(gateway: Gateway, principal: Principal, job: Job, item: ItemSpec) -> None:
    """Add one item, with its id and all that the gateway sets, to a job that was checked."""
    await _send(gateway, job, [item], close=False, by=principal.user_id)


async def close(gateway: Gateway, principal: Principal, job_id: str) -> Job:
    """Let no more items be added to a map job; return it as it was. Closing again changes nothing.

    Raises:
        WherryError: ``not_found``; ``conflict``: it is no map job.
    """
    job = (await gateway.job(principal, job_id, Action.CHANGE)).job
    mapping.require_map(job)
    if not mapping.is_closed(job):
        await _send(gateway, job, (), close=True, by=principal.user_id)
    return job


async def retry(gateway: Gateway, principal: Principal, job_id: str, ids: Sequence[str]) -> Job:
    """Have failed items tried again: those named, or all. Return the job as it was.

    Raises:
        WherryError: ``not_found``; ``conflict``: no map job; ``closed``: it has ended; ``invalid``: no such item.
    """
    job = (await gateway.job(principal, job_id, Action.CHANGE)).job
    mapping.require_map(job)
    if job.is_terminal:
        raise WherryError("closed", f"Job {job.id} has ended: rerun it, which takes the items without a result.")
    there = await asyncio.gather(*(_has(gateway, job, item_id) for item_id in ids))
    if not all(there):
        raise problems.invalid([FieldProblem(field="items", message=f"There is no item {ids[there.index(False)]}")])
    data = ItemsRetried(items=tuple(ids), by=principal.user_id, at=utc_now())
    event = gateway.bus.event(ITEMS_RETRIED, data, subject=job.id)
    await gateway.bus.record(Record(ITEMS_RETRIED, {"owner": job.owner.id, "job_id": job.id}, event))
    return job


async def left_over(gateway: Gateway, job: Job, *, everything: bool) -> list[Item]:
    """Return the items of an ended job that have no result, or all.

    Raises:
        WherryError: ``not_ended``; ``conflict``: there are none.
    """
    if not job.is_terminal:
        raise WherryError(
            "not_ended", f"Job {job.id} has not ended: POST /v1/jobs/{job.id}/items/retry tries failed items again."
        )
    states = () if everything else (ItemState.FAILED, ItemState.WAITING)
    found = [item async for item in all_items(gateway, job.id, states)]
    if not found:
        why = "has no items" if everything else "has a result for every item; `all=true` does them all again"
        raise WherryError("conflict", f"Job {job.id} {why}.")
    return found


async def begin_again(gateway: Gateway, job: Job, items: Sequence[Item], *, by: str) -> None:
    """Hand in items of another job as those of *job*, and close it. Safe to repeat."""
    if job.spec.map is None or mapping.is_closed(job):
        return
    ids = [keyed_id("i", gateway.key, job.id, "again", one.id) for one in items]
    await _send(gateway, job, mapping.again(items, ids), close=True, by=by)


def _with_ids(items: Sequence[ItemSpec], ids: Sequence[str]) -> list[ItemSpec]:
    made = zip(items, ids, strict=True)
    return [item if item.id else item.model_copy(update={"id": item_id}) for item, item_id in made]


async def _send(gateway: Gateway, job: Job, items: Sequence[ItemSpec], *, close: bool, by: str) -> None:
    """Record items, batch after batch: their order is that of the log. The last batch closes."""
    batches = list(mapping.messages(items)) or ([()] if close else [])
    params = {"owner": job.owner.id, "job_id": job.id}
    for at, batch in enumerate(batches):
        data = ItemsAdded(items=batch, close=close and at == len(batches) - 1, by=by, at=utc_now())
        await gateway.bus.record(Record(ITEMS_ADDED, params, gateway.bus.event(ITEMS_ADDED, data, subject=job.id)))


async def _has(gateway: Gateway, job: Job, item_id: str) -> bool:
    try:
        await gateway.ask(ITEM_GET, ItemQuery(item_id=item_id, job_id=job.id))
    except NotFound:
        return False
    return True


# --- reading -------------------------------------------------------------------------------------------------------


async def settled(gateway: Gateway, principal: Principal, job_id: str, action: Action = Action.SEE) -> JobView:
    """Return a job with the items that it was given before this moment, as `Gateway.job`.

    Raises:
        NotFound: there is none, or *principal* may not do *action* to it.
    """
    if not TOKEN.match(job_id):
        raise access.missing("such job")
    try:
        view = await gateway.ask(JOB_GET, JobQuery(job_id=job_id, settled=True))
    except NotFound:
        raise access.missing("such job") from None
    access.require_owned(principal, action, view.job.owner.id, "such job")
    return view


async def page(
    gateway: Gateway, job: Job, states: Sequence[str] = (), cursor: str | None = None, limit: int = _PAGE
) -> ItemList:
    """Return a page of a map job's items.

    Raises:
        WherryError: ``conflict``: it is no map job; ``invalid``: no such state or cursor.
    """
    mapping.require_map(job)
    return await gateway.ask(ITEM_LIST, ItemListQuery(job_id=job.id, states=tuple(states), cursor=cursor, limit=limit))


async def all_items(gateway: Gateway, job_id: str, states: Sequence[str] = ()) -> AsyncGenerator[Item, None]:
    """Give every item of a job that is in one of *states* (none: in any), in order."""
    cursor: str | None = None
    while True:
        query = ItemListQuery(job_id=job_id, states=tuple(states), cursor=cursor, limit=_PAGE)
        found = await gateway.ask(ITEM_LIST, query)
        for item in found.items:
            yield item
        if (cursor := found.cursor) is None:
            return


async def item(gateway: Gateway, principal: Principal, item_id: str, job_id: str | None = None) -> ItemView:
    """Return an item of the caller's with its job: of one job, or whichever has it.

    Raises:
        NotFound: there is none, or it is not the caller's.
    """
    owner_id = None if access.may(principal, Action.SEE_EVERYTHING) else principal.user_id
    try:
        return await gateway.ask(ITEM_GET, ItemQuery(item_id=item_id, job_id=job_id, owner_id=owner_id))
    except NotFound:
        raise access.missing("such item") from None


def result(found: ItemView, path: str | None = None) -> tuple[str, BlobRef]:
    """Return the path and the bytes of a file that an item has left: the one at *path*, or the first.

    Raises:
        WherryError: ``not_ready``: it has not ended; ``item_failed``: why; ``not_found``.
    """
    one = found.item
    if one.state is ItemState.SUCCEEDED and one.spec.given and path is None:
        return original(found)
    for file in one.files:
        if path in (None, file.path):
            return file.path, file.blob
    if one.state is ItemState.WAITING and not found.job.is_terminal:
        raise WherryError("not_ready", f"Item {one.id} is waiting or being worked on.")
    if one.state is ItemState.WAITING:
        raise WherryError("item_failed", f"Item {one.id} was not done: its job is {found.job.state.value}.")
    if one.error is not None and path is None:
        raise WherryError("item_failed", f"Item {one.id} has failed ({one.error.reason.value}): {one.error.message}")
    raise access.missing("such file of the item")


def original(found: ItemView) -> tuple[str, BlobRef]:
    """Return the name and the bytes of what an item is made of, where that is an artifact.

    Raises:
        NotFound: it is something else.
    """
    spec = found.item.spec
    if spec.sha256 is not None and spec.size is not None:
        return spec.name, BlobRef(sha256=spec.sha256, size=spec.size)
    where = f": it is {spec.path} of the job's inputs" if spec.path else ""
    raise NotFound(f"Item {found.item.id} has no file of its own{where}.")


# --- results as files ----------------------------------------------------------------------------------------------


async def listing(gateway: Gateway, job: Job, cursor: str | None = None, limit: int = _PAGE) -> OutputPage:
    """Return a page of what a map job's items have left so far; `cursor` is one of items."""
    query = ItemListQuery(job_id=job.id, states=(ItemState.SUCCEEDED,), cursor=cursor, limit=limit)
    found = await gateway.ask(ITEM_LIST, query)
    return OutputPage(
        entries=tuple(entry for one in found.items for entry in mapping.entries(job.id, one)), cursor=found.cursor
    )


async def output(gateway: Gateway, job: Job, path: str) -> BlobRef:
    """Return the file that `listing` shows as *path*.

    Raises:
        NotFound: there is none, or not yet.
    """
    index = mapping.index_of(job.id, path)
    if index is not None:
        query = ItemListQuery(job_id=job.id, states=(ItemState.SUCCEEDED,), after=index - 1, limit=1)
        for one in (await gateway.ask(ITEM_LIST, query)).items:
            for entry in mapping.entries(job.id, one):
                if entry.path == path and entry.blob is not None:
                    return entry.blob
    raise access.missing("such output")


def zip_of(gateway: Gateway, job: Job) -> AsyncGenerator[bytes, None]:
    """Give what a map job's items have left so far as one zip."""

    async def entries() -> AsyncGenerator[Entry, None]:
        async for one in all_items(gateway, job.id, (ItemState.SUCCEEDED,)):
            for entry in mapping.entries(job.id, one):
                yield entry

    return archive.written(entries(), lambda blob: files.read(gateway, blob))
