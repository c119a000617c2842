"""Image workloads: the paths of the image-processing seed, at the root and under /v1, and what goes beyond them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from services.gateway.adapters.form import fields_of
from services.gateway.core import images, problems, ranges, translate_mapping
from services.gateway.core import views_mapping as views
from services.gateway.routes.files import FILE, ZIP, file_answer, outputs_of_items
from services.gateway.routes.http import (
    JSON,
    Caller,
    Door,
    Key,
    answer,
    body_of,
    gateway_of,
    optional_body,
    parsed,
    uploaded,
)
from services.gateway.shell import mapping, workloads
from services.gateway.shell.gateway import Gateway
from shared.errors import WherryError
from shared.job import Job

Type = Annotated[views.ImageType | None, Query(alias="type", description="Of the image's pair; else itself.")]
_MULTIPART = "multipart/form-data"
_IMAGE_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["data", "workload_id"],
                    "properties": {
                        "data": {"type": "string", "format": "binary", "description": "The image; or call it `image`."},
                        "workload_id": {"type": "string"},
                        "type": {"type": "string", "enum": ["original", "filtered"], "default": "original"},
                        "name": {"type": "string", "description": "Else the file's."},
                    },
                }
            }
        },
    }
}


def router(prefix: str, *, in_document: bool = True) -> APIRouter:
    """Return the seed's routes under *prefix*."""
    routes = APIRouter(prefix=prefix, tags=["images"], include_in_schema=in_document)
    wish = optional_body(views.NewWorkload)
    routes.post("/workloads", status_code=201, response_model=views.WorkloadDocument, openapi_extra=wish)(create)
    routes.get("/workloads/{workload_id}", response_model=views.WorkloadDocument)(show)
    routes.post("/images", status_code=201, response_model=views.ImageView, openapi_extra=_IMAGE_FORM)(upload)
    routes.get("/images/{image_id}", response_class=Response, responses=FILE)(download)  # pyright: ignore[reportArgumentType]
    routes.head("/images/{image_id}", include_in_schema=False)(download)
    return routes


more = APIRouter(prefix="/v1", tags=["images"])


async def create(request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Make a workload: images that are given to it get its filter. JSON, a form, a query, or nothing at all."""
    job = await workloads.create(gateway, principal, await _wish(request), idempotency_key)
    return await _document(gateway, job, 201)


async def show(workload_id: str, gateway: Door, principal: Caller) -> Response:
    """Show how far a workload is, which images are filtered, and which have failed."""
    return await _document(gateway, await workloads.find(gateway, principal, workload_id))


async def upload(request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Give a workload an image. It is stored while it arrives, and filtered as soon as a container is free."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith(_MULTIPART):
        raise WherryError("unsupported_media_type", "Send a form (multipart/form-data) with the image as `data`.")
    taken = await workloads.take(gateway, principal, kind, uploaded(request), idempotency_key)
    return answer(taken, 201, headers={"Location": f"/v1/images/{taken.image_id}"})


async def download(
    image_id: str,
    request: Request,
    gateway: Door,
    principal: Caller,
    type_: Type = None,
) -> Response:
    """Give an image's bytes. A filtered one that is not there yet is a problem with `Retry-After`."""
    found, itself = await workloads.image(gateway, principal, image_id)
    if found.item.spec.given:
        if type_ == "original":
            raise WherryError("not_found", f"Image {image_id} was given as it is; it has no original.")
        name, blob = mapping.original(found)
    elif (type_ or itself) == "original":
        name, blob = mapping.original(found)
    else:
        name, blob = mapping.result(found)
    media_type = images.media_type(name, ranges.media_type(found.item.spec.name))
    return await file_answer(request, gateway, blob, name, media_type)


@more.get("/workloads", response_model=views.WorkloadPage)
async def list_workloads(
    gateway: Door, principal: Caller, limit: Annotated[int, Query(ge=1, le=500)] = 50, cursor: str | None = None
) -> Response:
    """Show workloads, newest first: one's own, or everybody's to administrators."""
    page = await workloads.listed(gateway, principal, limit, cursor)
    found = [translate_mapping.summary(view.job) for view in page.jobs]
    return answer(views.WorkloadPage(workloads=found, cursor=page.cursor))


@more.delete("/workloads/{workload_id}", status_code=202, response_model=views.WorkloadDocument)
async def end(workload_id: str, gateway: Door, principal: Caller) -> Response:
    """Let a workload take no more images, and drop those that wait. What is filtered stays."""
    return await _document(gateway, await workloads.end(gateway, principal, workload_id), 202)


@more.post("/workloads/{workload_id}/rerun", status_code=202, response_model=views.WorkloadDocument)
async def rerun(workload_id: str, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Filter the failed images again: in the same workload, or in a new one where it has ended."""
    return await _document(gateway, await workloads.rerun(gateway, principal, workload_id, idempotency_key), 202)


@more.get("/workloads/{workload_id}/results", response_class=Response, responses=ZIP)  # pyright: ignore[reportArgumentType]
async def results(workload_id: str, gateway: Door, principal: Caller) -> Response:
    """Give all filtered images so far as one zip: `<workload_id>/0001-<name>` and so on, in the order of upload."""
    return await outputs_of_items(gateway, await workloads.find(gateway, principal, workload_id))


async def _document(gateway: Gateway, job: Job, status: int = 200) -> Response:
    document = translate_mapping.workload(job, await workloads.ended_images(gateway, job))
    return answer(document, status, headers={"Location": f"/v1/workloads/{job.id}"} if status != 200 else {})


async def _wish(request: Request) -> views.NewWorkload:
    body = await body_of(request, gateway_of(request).settings.form_bytes_max)
    if not body.strip():
        return _wished(dict(request.query_params))
    kind = request.headers.get("content-type", JSON)
    if kind.partition(";")[0].strip().lower() == JSON or body.lstrip()[:1] == b"{":  # curl -d says that it is a form
        return parsed(body, views.NewWorkload)
    sent = await fields_of(kind, body)
    if sent is None:
        raise WherryError("unsupported_media_type", "Send JSON, a form, or nothing.")
    return _wished(sent)


def _wished(sent: dict[str, str]) -> views.NewWorkload:
    try:
        return views.NewWorkload.model_validate(images.fields_of(sent))
    except ValidationError as error:
        raise problems.from_validation(error, views.NewWorkload) from None
