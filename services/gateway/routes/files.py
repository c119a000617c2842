"""Artifacts and outputs: bytes in, bytes out."""

from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from services.gateway.core import ranges, translate, views_files
from services.gateway.core.names import BINARY, is_media_type
from services.gateway.core.problems import invalid
from services.gateway.routes.http import Caller, Door, Stream, answer, bearer, gateway_of, uploaded, wants_json
from services.gateway.shell import files, live, mapping
from services.gateway.shell.gateway import Gateway
from shared.channels import ARTIFACT_LIST
from shared.errors import FieldProblem, WherryError
from shared.job import BlobRef, Job
from shared.requests.artifacts import ArtifactListQuery

router = APIRouter(prefix="/v1", tags=["files"])
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"*/*": _BYTES}},
    "parameters": [
        {
            "name": "name", "in": "query", "description": "Else from Content-Disposition.",
            "schema": {"type": "string", "maxLength": 255},
        }
    ],
}  # fmt: skip
FILE = {200: {"content": {"*/*": _BYTES}}, 206: {"content": {"*/*": _BYTES}}, 304: {"description": "Unchanged"}}
ZIP = {200: {"content": {"application/zip": _BYTES}}}


Live = Annotated[
    str | None,
    Query(alias="live", description="`true` to look at what a running job has left so far, or the id of a look."),
]


# Served by `app` without FastAPI's routing; this entry is what the OpenAPI document is made from.
@router.put("/artifacts", status_code=201, response_model=views_files.ArtifactView, openapi_extra=_UPLOAD)
async def put_artifact(request: Request) -> Response:
    """Store the body, of any size. Nothing is kept of an upload that is cut."""
    gateway = gateway_of(request)
    principal = await gateway.tokens.principal(bearer(request))
    media_type = request.headers.get("content-type", BINARY)
    if not is_media_type(media_type):
        raise invalid([FieldProblem(field="Content-Type", message="That is no media type")])
    name = _name(request, request.query_params.get("name"))
    stored = await files.store(gateway, principal, uploaded(request), name, media_type)
    return answer(translate.committed(stored), 201, headers={"Location": f"/v1/artifacts/{stored.artifact_id}"})


@router.get("/artifacts", response_model=views_files.ArtifactsDocument)
async def list_artifacts(
    gateway: Door,
    principal: Caller,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """List the caller's artifacts, newest first."""
    query = ArtifactListQuery(owner_id=principal.user_id, limit=limit, cursor=cursor)
    return answer(translate.artifacts(await gateway.ask(ARTIFACT_LIST, query)))


@router.delete("/artifacts/{artifact_id}", status_code=204)
async def delete_artifact(artifact_id: str, gateway: Door, principal: Caller) -> Response:
    """Remove an artifact. Refused while a job that has not ended needs it."""
    await files.remove(gateway, principal, artifact_id)
    return Response(status_code=204)


@router.head("/artifacts/{artifact_id}", include_in_schema=False)
@router.get("/artifacts/{artifact_id}", response_class=Response, responses=FILE)  # pyright: ignore[reportArgumentType]
async def get_artifact(artifact_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Give an artifact's bytes, or a range of them."""
    artifact = await gateway.artifact(principal, artifact_id)
    return await file_answer(request, gateway, artifact.blob, artifact.name or artifact_id, artifact.media_type)


@router.get("/jobs/{job_id}/outputs", response_model=views_files.OutputsDocument, responses=ZIP)  # pyright: ignore[reportArgumentType]
async def outputs(  # noqa: PLR0913, PLR0917 - what is asked for
    job_id: str,
    request: Request,
    gateway: Door,
    principal: Caller,
    as_list: Annotated[bool, Query(alias="list", description="The entries instead of the zip.")] = False,  # noqa: FBT002
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    cursor: str | None = None,
    live_: Live = None,
    path: Annotated[str | None, Query(description="With `live=true`: look at this file or folder only.")] = None,
) -> Response:
    """Give all that the job left as one zip, or (by `list` or Accept) the entries.

    With `live` the entries are what a running job has left so far, marked as partial. A map job's are what its items
    have left, at any time: `<job_id>/0001-<name>` and so on, in the order of the items.
    """
    job = (await gateway.job(principal, job_id)).job
    if job.spec.map is not None:
        if as_list or wants_json(request):
            return answer(translate.entries(await mapping.listing(gateway, job, cursor, limit)))
        return await outputs_of_items(gateway, job)
    if live_ is not None:
        look, seen = await live.look(gateway, job, live_, path=path, cursor=cursor, limit=limit)
        return answer(translate.seen(look, seen), headers=_partial(look))
    if as_list or wants_json(request):
        return answer(translate.entries(await files.listing(gateway, job, cursor, limit)))
    files.require_outputs(job)
    held = AsyncExitStack()
    await held.enter_async_context(gateway.downloads.taken())
    try:
        content, length = files.zip_of(gateway, job, await files.listing(gateway, job))
    except BaseException:
        await held.aclose()
        raise
    headers = _download_headers(f"{job_id}.zip") | ({} if length is None else {"Content-Length": str(length)})
    return Stream(content, held, 200, headers, "application/zip")


async def outputs_of_items(gateway: Gateway, job: Job) -> Response:
    """Return what a map job's items have left so far as one zip; a header says whether more may come."""
    held = AsyncExitStack()
    await held.enter_async_context(gateway.downloads.taken())
    headers = _download_headers(f"{job.id}.zip") | ({} if job.is_terminal else {live.PARTIAL_HEADER: "true"})
    return Stream(mapping.zip_of(gateway, job), held, 200, headers, "application/zip")


@router.head("/jobs/{job_id}/outputs/{path:path}", include_in_schema=False)
@router.get("/jobs/{job_id}/outputs/{path:path}", response_class=Response, responses=FILE)  # pyright: ignore[reportArgumentType]
async def output(
    job_id: str, path: str, request: Request, gateway: Door, principal: Caller, live_: Live = None
) -> Response:
    """Give one file that the job left, or a range of it. With `live` as it is now, or as a look has seen it."""
    job = (await gateway.job(principal, job_id)).job
    if job.spec.map is not None:
        blob = await mapping.output(gateway, job, path)
        return await file_answer(request, gateway, blob, path, ranges.media_type(path))
    if live_ is not None:
        look, blob = await live.one(gateway, job, live_, path)
        found = await file_answer(request, gateway, blob, path, ranges.media_type(path))
        found.headers.update(_partial(look))
        return found
    _, blob = await files.one(gateway, job, path)
    return await file_answer(request, gateway, blob, path, ranges.media_type(path))


async def file_answer(request: Request, gateway: Gateway, blob: BlobRef, name: str, media_type: str) -> Response:
    """Return a stored file, or the range of it that is asked for. That the caller may have it has been checked."""
    etag = f'"{blob.sha256}"'
    headers = _download_headers(name) | {"ETag": etag, "Accept-Ranges": "bytes"}
    if ranges.matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = _span(request, blob.size, etag)
    start, end, status = 0, blob.size, 200
    if span is not None:
        start, end, status = span.start, span.end, 206
        headers["Content-Range"] = span.content_range
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD" or end == start:
        return Response(status_code=status, headers=headers, media_type=media_type)
    held = AsyncExitStack()
    await held.enter_async_context(gateway.downloads.taken())
    return Stream(files.read(gateway, blob, start, end), held, status, headers, media_type)


def _span(request: Request, size: int, etag: str) -> ranges.Span | None:
    """Return the range that is asked for; none if it was asked of another version."""
    if request.headers.get("if-range", etag) != etag:
        return None
    try:
        return ranges.span(request.headers.get("range"), size)
    except WherryError as error:
        raise HTTPException(416, error.message, {"Content-Range": f"bytes */{size}"}) from None


def _download_headers(name: str) -> dict[str, str]:
    """Return headers under which no browser shows or runs what a user stored."""
    return {
        "Content-Disposition": ranges.attachment(name),
        "Content-Security-Policy": "sandbox",
        "Cache-Control": "private, no-cache",
    }


def _name(request: Request, name: str | None) -> str:
    if name is None:
        _, options = parse_options_header(request.headers.get("content-disposition"))
        name = options.get(b"filename", b"").decode(errors="replace")[:255]
    if len(name) > 255:
        raise invalid([FieldProblem(field="name", message="A name has at most 255 characters")])
    if not all(char.isprintable() for char in name):
        raise invalid([FieldProblem(field="name", message="A name has printable characters only")])
    return name


def _partial(look: str) -> dict[str, str]:
    return {live.PARTIAL_HEADER: "true", live.LOOK_HEADER: look}
