"""Deployments: serve a model, ask it, change it, take it away; and the Open Inference Protocol (v2)."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from yarl import URL

from services.gateway.adapters.replica import Answer, Wish
from services.gateway.core import deployments
from services.gateway.core.deployments import DeploymentAccepted, DeploymentDocument, DeploymentPage, Filters
from services.gateway.core.predictions import PredictDocument, PredictOrder, QuickPredict
from services.gateway.core.serving import passed_back
from services.gateway.routes.http import JSON, Caller, Door, Key, answer, body_of, json_body, links, parsed, uploaded
from services.gateway.shell import deployments as shell
from services.gateway.shell import predictions as asking
from services.gateway.shell.gateway import Gateway
from shared.job import Job
from shared.requests.accounts import Principal

router = APIRouter(prefix="/v1", tags=["deployments"])
#: The Open Inference Protocol's own paths: a model is a deployment of the caller's, by its name.
v2 = APIRouter(prefix="/v2", tags=["inference"])
#: Of a request, what is not for the program: who asks, and what was for this gateway.
_OURS = frozenset({"authorization", "cookie", "x-forwarded-for", "x-forwarded-proto", "forwarded"})
_BODY_BYTES_MAX = 256 * 1024
#: Of bodies for which the place is all that they need: a connection holds as much before anything is read.
_SMALL_BYTES = 64 * 1024
_IMAGE: dict[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "width": {"type": "integer"}, "height": {"type": "integer"}, "channels": {"type": "integer"},
            },
        }
    }
}  # fmt: skip

#: Of routes that answer whatever the program does.
_PROGRAM: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"description": "What the program answers, also with any other status.", "content": {"*/*": {}}}
    },
}
_PUBLIC = {"security": []}


class ReadyView(BaseModel):
    """Whether requests can be passed on."""

    ready: bool


_UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyView, "description": "Not now."}}


class _Passed(Response):
    """A replica's answer as it is. Its room is given back once it was sent, also to a slow reader."""

    def __init__(self, found: Answer, held: AsyncExitStack) -> None:
        super().__init__(found.body, found.status)
        self.raw_headers += [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in passed_back(found.headers)
        ]
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


@router.post(
    "/deployments", status_code=202, response_model=DeploymentAccepted,
    openapi_extra=json_body(deployments.NewDeployment),
)  # fmt: skip
async def create(request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Serve a model: replicas are placed, watched, replaced when they fail, and asked over wherry alone."""
    body = await body_of(request, _BODY_BYTES_MAX)
    job_id = await shell.create(gateway, principal, body, idempotency_key)
    name = parsed(body, deployments.NewDeployment).name
    headers = {"Location": f"/v1/deployments/{job_id}"}
    return answer(DeploymentAccepted(deployment_id=job_id, name=name, status="starting"), 202, headers=headers)


@router.get("/deployments", response_model=DeploymentPage)
async def list_deployments(
    request: Request, gateway: Door, principal: Caller, filters: Annotated[Filters, Query()]
) -> Response:
    """Show deployments, newest first: one's own, or everybody's to administrators."""
    return answer(await shell.listed(gateway, principal, filters, links(request)))


@router.get("/deployments/{deployment}", response_model=DeploymentDocument)
async def show(deployment: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Show a deployment, by its id or one's own by its name: its status word, its replicas, and why one waits."""
    return answer(await shell.fresh(gateway, principal, deployment, links(request)))


@router.patch(
    "/deployments/{deployment}", status_code=202, response_model=DeploymentAccepted,
    openapi_extra=json_body(deployments.DeploymentChanges),
)  # fmt: skip
async def change(deployment: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Have other replicas, or serve something else: then each replica is exchanged once another of the new one runs."""
    changes = parsed(await body_of(request, _BODY_BYTES_MAX), deployments.DeploymentChanges)
    return _accepted(await shell.change(gateway, principal, deployment, changes))


@router.delete("/deployments/{deployment}", status_code=202, response_model=DeploymentAccepted)
async def remove(deployment: str, gateway: Door, principal: Caller) -> Response:
    """Take a deployment away, once it has answered what it was asked. Safe to repeat."""
    return _accepted(await shell.remove(gateway, principal, deployment))


@router.post(
    "/deployments/{deployment}/predict", response_model=PredictDocument,
    openapi_extra=json_body(PredictOrder, **_IMAGE),
)  # fmt: skip
async def predict(deployment: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Ask a model: with `instances`, with the address of an image, or with an image in a form."""
    job = await shell.find(gateway, principal, deployment)
    async with _room(request, gateway, job.owner.id):
        order, image = await _order(request, gateway, PredictOrder)
        return answer(await asking.predict(gateway, principal, job, order, image))


@router.post("/predict", response_model=PredictDocument, openapi_extra=json_body(QuickPredict, **_IMAGE))
async def quick(request: Request, gateway: Door, principal: Caller) -> Response:
    """Ask a model by the address of its zip. It is deployed for this, and found again when it is asked once more."""
    async with _room(request, gateway, principal.user_id):
        order, image = await _order(request, gateway, QuickPredict)
        return answer(await asking.quick(gateway, principal, order, image))


@router.get("/deployments/{deployment}/v1/{path:path}", operation_id="deployment_v1_get", **_PROGRAM)
@router.post("/deployments/{deployment}/v1/{path:path}", operation_id="deployment_v1_post", **_PROGRAM)
async def tensorflow(deployment: str, path: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Ask a deployment in the REST form of TensorFlow Serving; what is sent and answered passes untouched."""
    return await _passed(request, gateway, principal, await shell.find(gateway, principal, deployment), f"/v1/{path}")


@router.get("/deployments/{deployment}/v2/{path:path}", operation_id="deployment_v2_get", **_PROGRAM)
@router.post("/deployments/{deployment}/v2/{path:path}", operation_id="deployment_v2_post", **_PROGRAM)
async def inference(deployment: str, path: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Ask a deployment by the Open Inference Protocol; what is sent and answered passes untouched."""
    return await _passed(request, gateway, principal, await shell.find(gateway, principal, deployment), f"/v2/{path}")


@v2.get("")
async def server(_: Caller) -> dict[str, Any]:
    """Tell what answers here."""
    return {"name": "wherry", "version": "1", "extensions": ["binary_tensor_data"]}


@v2.get("/health/live", openapi_extra=_PUBLIC)
async def live() -> dict[str, bool]:
    """Tell that this gateway answers."""
    return {"live": True}


@v2.get("/health/ready", openapi_extra=_PUBLIC, response_model=ReadyView, responses=_UNREADY)
async def ready(gateway: Door) -> Response:
    """Tell whether requests can be passed on."""
    is_ready = await gateway.not_ready() is None
    return Response(b'{"ready":%s}' % (b"true" if is_ready else b"false"), 200 if is_ready else 503, media_type=JSON)


@v2.get("/models/{model}", operation_id="model_metadata", **_PROGRAM)
@v2.get("/models/{model}/{path:path}", operation_id="model_get", **_PROGRAM)
@v2.post("/models/{model}/{path:path}", operation_id="model_post", **_PROGRAM)
async def model(model: str, request: Request, gateway: Door, principal: Caller, path: str = "") -> Response:
    """Pass a request on to the deployment that has the model's name: metadata, `ready`, `infer`."""
    job = await shell.find(gateway, principal, model)
    return await _passed(request, gateway, principal, job, f"/v2/models/{model}{f'/{path}' if path else ''}")


async def _order(request: Request, gateway: Gateway, kind: type[PredictOrder]) -> tuple[Any, bytes | None]:
    bytes_max = gateway.settings.serve_bytes_max
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data"):
        return await asking.form(kind, content_type, uploaded(request), bytes_max)
    return parsed(await body_of(request, bytes_max), kind), None


async def _passed(request: Request, gateway: Gateway, principal: Principal, job: Job, path: str) -> Response:
    """Return a replica's answer as it is."""
    headers = tuple((name, value) for name, value in request.headers.items() if name not in _OURS)
    query = f"?{request.url.query}" if request.url.query else ""
    target = URL.build(path=path).raw_path + query  # it came decoded: a ? in it is part of it
    async with AsyncExitStack() as held:
        async with _room(request, gateway, job.owner.id):
            body = await body_of(request, gateway.settings.serve_bytes_max)
            found = await shell.ask(gateway, principal, job, Wish(request.method, target, headers, body), held)
        return _Passed(found, held.pop_all())


@asynccontextmanager
async def _room(request: Request, gateway: Gateway, owner_id: str) -> AsyncGenerator[None, None]:
    """Hold a place for a request to a service of *owner_id*'s, and room for its body before any of that is read.

    Raises:
        WherryError: ``busy``.
    """
    bytes_max = gateway.settings.serve_bytes_max
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        size = min(int(declared), bytes_max)
    else:
        size = bytes_max if "transfer-encoding" in request.headers else 0
    large = size if size > _SMALL_BYTES else 0
    async with gateway.serve_places.taken(owner_id), gateway.serve_bodies.taken(owner_id, large):
        yield


def _accepted(job: Job) -> Response:
    status = deployments.status_of(job)
    return answer(DeploymentAccepted(deployment_id=job.id, name=job.spec.name, status=status), 202)
