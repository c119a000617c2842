"""Datasets: names for stored bytes, with versions."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from services.gateway.core import access, translate_datasets, views_datasets
from services.gateway.core.access import Action
from services.gateway.routes.files import FILE, file_answer
from services.gateway.routes.http import Caller, Door, answer, json_body, json_of, uploaded
from services.gateway.shell import datasets
from shared.channels import DATASET_LIST
from shared.requests.datasets import DatasetListQuery

router = APIRouter(prefix="/v1", tags=["datasets"])
_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["name", "file"],
            "properties": {
                "name": {"type": "string"},
                "file": {"type": "string", "format": "binary"},
                "description": {"type": "string"},
                "labels": {"type": "string", "description": "With commas between them."},
                "visibility": {"type": "string", "enum": ["private", "shared"]},
            },
        }
    }
}


@router.post(
    "/datasets",
    status_code=201,
    response_model=views_datasets.DatasetStoredDocument,
    openapi_extra=json_body(views_datasets.NewDataset, **_FORM),
    responses={
        200: {"model": views_datasets.DatasetStoredDocument, "description": "A version has these very bytes already."}
    },
)
async def put(request: Request, gateway: Door, principal: Caller) -> Response:
    """Make a dataset, or its next version: of a file in a form, of an artifact, or of a file that a job left.

    The same bytes are stored once: then the answer is 200 with the version that has them.
    """
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        stored = await datasets.put_form(gateway, principal, kind, uploaded(request))
    else:
        stored = await datasets.put(gateway, principal, await json_of(request, views_datasets.NewDataset))
    shown = translate_datasets.dataset(stored.dataset, stored.version)
    document = views_datasets.DatasetStoredDocument(**dict(shown), is_new=stored.is_new)
    headers = {"Location": f"/v1/datasets/{document.name}@{document.version}"}
    return answer(document, 201 if stored.is_new else 200, headers=headers)


class Filters(BaseModel):
    """Which datasets are asked for."""

    search: str = Field(default="", max_length=1000, description="All of these words, in name, description or labels.")
    owner: str | None = Field(default=None, description="A user's name or `me`.")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None


@router.get("/datasets", response_model=views_datasets.DatasetPage)
async def list_datasets(gateway: Door, principal: Caller, filters: Annotated[Filters, Query()]) -> Response:
    """Show datasets by name, each with its newest version: one's own and shared ones; all to administrators."""
    query = DatasetListQuery(
        text=filters.search,
        owner_name=principal.name if filters.owner == "me" else filters.owner,
        viewer_id=None if access.may(principal, Action.SEE_EVERYTHING) else principal.user_id,
        limit=filters.limit,
        cursor=filters.cursor,
    )
    page = await gateway.ask(DATASET_LIST, query)
    found = [translate_datasets.dataset(one, one.versions[0].version) for one in page.datasets]
    return answer(views_datasets.DatasetPage(datasets=found, cursor=page.cursor))


@router.head("/datasets/{ref}/content", include_in_schema=False)
@router.get("/datasets/{ref}/content", response_class=Response, responses=FILE)  # pyright: ignore[reportArgumentType]
async def content(ref: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Give the bytes of `name` (its newest version) or `name@version`, or a range of them."""
    found, version = await datasets.find(gateway, principal, ref)
    return await file_answer(request, gateway, version.blob, version.name or found.name, version.media_type)


@router.get("/datasets/{ref}", response_model=views_datasets.DatasetDocument)
async def show(ref: str, gateway: Door, principal: Caller) -> Response:
    """Show a dataset as of `name` (its newest version) or `name@version`, with all its versions."""
    found, version = await datasets.find(gateway, principal, ref)
    return answer(translate_datasets.dataset(found, version.version))


@router.patch(
    "/datasets/{name}",
    response_model=views_datasets.DatasetDocument,
    openapi_extra=json_body(views_datasets.DatasetChanges),
)
async def update(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Change how a dataset is described and who sees it."""
    found = await datasets.update(gateway, principal, name, await json_of(request, views_datasets.DatasetChanges))
    return answer(translate_datasets.dataset(found, found.versions[0].version))


@router.delete("/datasets/{ref}", status_code=204, response_class=Response)
async def remove(ref: str, gateway: Door, principal: Caller) -> Response:
    """Remove a dataset (`name`) or one version (`name@version`). Refused while a job that has not ended needs it."""
    await datasets.remove(gateway, principal, ref)
    return Response(status_code=204)
