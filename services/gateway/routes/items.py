"""Items of map jobs: handed in, looked at, tried again."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.gateway.core import problems, ranges, translate_mapping
from services.gateway.core import views_mapping as views
from services.gateway.core.views import Accepted
from services.gateway.routes.files import FILE, file_answer
from services.gateway.routes.http import (
    Caller,
    Door,
    Key,
    answer,
    body_of,
    chosen,
    json_body,
    json_or_default,
    optional_body,
    parsed,
)
from services.gateway.shell import mapping
from shared.errors import FieldProblem
from shared.states import ItemState

router = APIRouter(prefix="/v1", tags=["items"])


@router.post(
    "/jobs/{job_id}/items", status_code=202, response_model=views.AddedItems, openapi_extra=json_body(views.NewItems)
)
async def add(job_id: str, request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Add items to an open map job. With `close` no more will come. Answered once they are on disk."""
    wish = parsed(await body_of(request, gateway.settings.batch_bytes_max), views.NewItems)
    if not wish.items and not wish.close:
        raise problems.invalid([FieldProblem(field="items", message="Give items, or `close`")])
    ids = await mapping.add(gateway, principal, job_id, wish.items, close=wish.close, key=idempotency_key)
    return answer(views.AddedItems(job_id=job_id, items=ids, closed=wish.close), 202)


@router.get("/jobs/{job_id}/items", response_model=views.ItemPage)
async def list_items(
    job_id: str,
    gateway: Door,
    principal: Caller,
    state: Annotated[list[str] | None, Query(description="One or more states, repeated or with commas.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """Show a map job's items in order, each with its state, its tries and what has become of it."""
    job = (await gateway.job(principal, job_id)).job
    return answer(translate_mapping.items(await mapping.page(gateway, job, chosen(state, ItemState), cursor, limit)))


@router.post(
    "/jobs/{job_id}/items/retry", status_code=202, response_model=Accepted,
    openapi_extra=optional_body(views.RetriedItems),
)  # fmt: skip
async def retry(job_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Try failed items of a map job again, those named or all. It must not have ended: then there is rerun."""
    wish = await json_or_default(request, views.RetriedItems)
    job = await mapping.retry(gateway, principal, job_id, wish.items)
    return answer(Accepted(job_id=job.id, state=job.state), 202)


@router.post("/jobs/{job_id}/close", status_code=202, response_model=Accepted)
async def close(job_id: str, gateway: Door, principal: Caller) -> Response:
    """Let a map job take no more items: it ends once it has done those that it has."""
    job = await mapping.close(gateway, principal, job_id)
    return answer(Accepted(job_id=job.id, state=job.state), 202)


@router.get("/jobs/{job_id}/items/{item_id}", response_model=views.ItemDocument)
async def show(job_id: str, item_id: str, gateway: Door, principal: Caller) -> Response:
    """Show an item."""
    return answer(translate_mapping.item((await mapping.item(gateway, principal, item_id, job_id)).item))


@router.get("/jobs/{job_id}/items/{item_id}/original", response_class=Response, responses=FILE)  # pyright: ignore[reportArgumentType]
async def original(job_id: str, item_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Give the artifact that an item is made of."""
    name, blob = mapping.original(await mapping.item(gateway, principal, item_id, job_id))
    return await file_answer(request, gateway, blob, name, ranges.media_type(name))


@router.get("/jobs/{job_id}/items/{item_id}/files/{path:path}", response_class=Response, responses=FILE)  # pyright: ignore[reportArgumentType]
async def file(job_id: str, item_id: str, path: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Give a file that an item has left, or a range of it."""
    name, blob = mapping.result(await mapping.item(gateway, principal, item_id, job_id), path)
    return await file_answer(request, gateway, blob, name, ranges.media_type(name))
