"""Uploads that resume, by the tus 1.0 protocol. A finished one is an artifact."""

from fastapi import APIRouter, Depends, Request, Response

from services.gateway.core import translate, tus, views_files
from services.gateway.routes.http import Caller, Door, answer, uploaded
from services.gateway.shell import uploads
from services.gateway.shell.gateway import Gateway
from shared.errors import WherryError
from shared.requests.artifacts import Resumable

_BODY = {"requestBody": {"content": {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}

#: What is said of the protocol is for everybody.
_PUBLIC = {"security": []}


def _version(request: Request) -> None:
    """Let a request of our version of the protocol pass; told with every refusal is which that is."""
    tus.require_version(request.headers)


router = APIRouter(prefix="/v1", tags=["uploads"])
_tus = [Depends(_version)]


@router.options("/uploads", status_code=204, openapi_extra=_PUBLIC)
@router.options("/uploads/{upload_id}", status_code=204, openapi_extra=_PUBLIC)
async def options(gateway: Door) -> Response:
    """Say which version and which extensions of tus there are, and how large an upload may be."""
    return Response(status_code=204, headers=tus.capabilities(gateway.settings.upload_bytes_max))


@router.post("/uploads", status_code=201, dependencies=_tus, response_class=Response, openapi_extra=_BODY)
async def create(request: Request, gateway: Door, principal: Caller) -> Response:
    """Begin an upload (`Upload-Length` or `Upload-Defer-Length`, `Upload-Metadata`), with its first bytes if any come.

    `filename` and `filetype` of the metadata become the artifact's name and media type.
    """
    wanted = tus.creation(request.headers, gateway.settings.upload_bytes_max)
    with_bytes = "content-type" in request.headers
    if with_bytes:
        tus.require_media_type(request.headers)
    upload = await uploads.create(gateway, principal, wanted)
    if with_bytes and upload.state == "open":
        upload = await _written(request, gateway, upload, 0, None)
    return Response(status_code=201, headers=tus.state(upload) | {"Location": f"/v1/uploads/{upload.upload_id}"})


@router.head("/uploads/{upload_id}", dependencies=_tus, response_class=Response)
async def head(upload_id: str, gateway: Door, principal: Caller) -> Response:
    """Say how far an upload has come."""
    return Response(status_code=200, headers=tus.description(await uploads.find(gateway, principal, upload_id)))


@router.get("/uploads/{upload_id}", response_model=views_files.UploadView)
async def show(upload_id: str, gateway: Door, principal: Caller) -> Response:
    """Say the same as JSON, outside the protocol: also which artifact a finished upload is."""
    return answer(translate.upload(await uploads.find(gateway, principal, upload_id)))


@router.patch("/uploads/{upload_id}", status_code=204, dependencies=_tus, openapi_extra=_BODY)
async def patch(upload_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Go on with an upload at `Upload-Offset`. Whatever arrives is kept, also when the connection breaks.

    With `Upload-Checksum` (sha1 or sha256) the bytes of this request count only if it is theirs. The answer to the
    last bytes names the artifact in `Wherry-Artifact` and its digest in `Wherry-Sha256`.
    """
    offset = tus.offset(request.headers)
    length = tus.number(request.headers, "upload-length")
    tus.require_fits(length, gateway.settings.upload_bytes_max)
    upload = await uploads.find(gateway, principal, upload_id)
    return Response(status_code=204, headers=tus.state(await _written(request, gateway, upload, offset, length)))


@router.delete("/uploads/{upload_id}", status_code=204, dependencies=_tus)
async def end(upload_id: str, gateway: Door, principal: Caller) -> Response:
    """Drop an upload and its bytes. What became an artifact stays one."""
    upload = await uploads.find(gateway, principal, upload_id)
    await gateway.resumables.end(upload.upload_id)
    return Response(status_code=204, headers={"Tus-Resumable": tus.VERSION})


@router.post("/uploads/{upload_id}", include_in_schema=False, dependencies=_tus)
async def overridden(upload_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Do what `X-HTTP-Method-Override` says, for who can only send GET and POST."""
    match request.headers.get("x-http-method-override", "").upper():
        case "PATCH":
            return await patch(upload_id, request, gateway, principal)
        case "DELETE":
            return await end(upload_id, gateway, principal)
        case _:
            raise WherryError("method_not_allowed", "An upload takes HEAD, PATCH and DELETE.")


async def _written(request: Request, gateway: Gateway, upload: Resumable, offset: int, length: int | None) -> Resumable:
    known = upload.length if length is None else length
    coming = tus.number(request.headers, "content-length") or 0
    if known is not None and offset == upload.offset and offset + coming > known:
        raise WherryError("too_large", f"The upload has {known} bytes; these are more.")
    checksum = tus.checksum(request.headers)
    return await uploads.write(gateway, upload, offset, length, uploaded(request), checksum)
