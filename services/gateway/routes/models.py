"""The catalogue: models, their releases, how good they are, and runs of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from services.gateway.core import access, problems, views
from services.gateway.core import models as m
from services.gateway.core.access import Action
from services.gateway.core.inputs import parse_ref
from services.gateway.routes.http import Caller, Door, Key, answer, json_body, json_of
from services.gateway.shell import models, submission
from shared.catalogue import EvaluationQuery, FineTuneQuery, ModelListQuery, SyncAsk, SyncQuery
from shared.channels import FINE_TUNE_LIST, MODEL_EVALUATIONS, MODEL_LIST, MODEL_SYNC, MODEL_SYNC_GET
from shared.clock import monotonic
from shared.ids import new_id
from shared.spec import JobSpec
from shared.states import JobState

router = APIRouter(prefix="/v1/models", tags=["models"])
#: How long the reading of a registry is waited for before it is answered as still at work.
_WAIT_S = 20.0
_AT_WORK: dict[int | str, dict[str, Any]] = {202: {"model": m.SyncDocument, "description": "Still at work."}}


@router.post(
    "", status_code=201, response_model=m.ModelStoredDocument, openapi_extra=json_body(m.NewModel),
    responses={200: {"model": m.ModelStoredDocument, "description": "There is the very same version already."}},
)  # fmt: skip
async def release(request: Request, gateway: Door, principal: Caller) -> Response:
    """Make a model, or its next version: of an image, of a file that is stored, or of what a training left."""
    stored = await models.release(gateway, principal, await json_of(request, m.NewModel))
    version = next(one for one in stored.model.versions if one.version == stored.version)
    document = m.ModelStoredDocument(**dict(m.checked_document(stored.model, version)), is_new=stored.is_new)
    headers = {"Location": f"/v1/models/{document.name}@{document.version}"}
    return answer(document, 201 if stored.is_new else 200, headers=headers)


class Filters(BaseModel):
    """Which models are asked for."""

    search: str = Field(default="", max_length=1000, description="All of these words, in name or description.")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None


@router.get("", response_model=m.ModelPage)
async def list_models(gateway: Door, principal: Caller, filters: Annotated[Filters, Query()]) -> Response:
    """Show models by name, each with its newest version."""
    del principal  # the catalogue is for everyone who may come in
    page = await gateway.ask(
        MODEL_LIST, ModelListQuery(text=filters.search, limit=filters.limit, cursor=filters.cursor)
    )
    return answer(m.ModelPage(models=[m.document(one, one.versions[0]) for one in page.models], cursor=page.cursor))


@router.post(
    "/sync", response_model=m.SyncDocument, openapi_extra=json_body(m.SyncOrder),
    responses=_AT_WORK,
)  # fmt: skip
async def sync(request: Request, gateway: Door, principal: Caller) -> Response:
    """Register the images of a registry: each repository a model, described by the labels of its image."""
    access.require(principal, Action.MANAGE_MODELS)
    order = await json_of(request, m.SyncOrder)
    ask = SyncAsk(
        run_id=new_id("r"), registry=order.registry, prefix=order.prefix, tag=order.tag, owner_id=principal.user_id,
        owner_name=principal.name, anybodys=access.may(principal, Action.CHANGE_ANYTHING),
    )  # fmt: skip
    found, give_up_at = await gateway.ask(MODEL_SYNC, ask), monotonic() + _WAIT_S
    while found.ended_at is None and monotonic() < give_up_at:
        found = await gateway.ask(MODEL_SYNC_GET, SyncQuery(run_id=ask.run_id))  # waits a moment by itself
    return answer(m.sync_document(found), 200 if found.ended_at else 202)


@router.get("/sync/{run_id}", response_model=m.SyncDocument, responses=_AT_WORK)
async def synced(run_id: str, gateway: Door, principal: Caller) -> Response:
    """Show how far the reading of a registry is."""
    access.require(principal, Action.MANAGE_MODELS)
    found = await gateway.ask(MODEL_SYNC_GET, SyncQuery(run_id=run_id))
    return answer(m.sync_document(found), 200 if found.ended_at else 202)


@router.get("/{ref}", response_model=m.ModelDocument)
async def show(ref: str, gateway: Door, principal: Caller) -> Response:
    """Show a model as of `name` (its newest version) or `name@version`, with all its versions."""
    del principal
    model, version = await models.find(gateway, ref)
    return answer(m.checked_document(model, version))


@router.patch("/{name}", response_model=m.ModelDocument, openapi_extra=json_body(m.ModelChanges))
async def update(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Change how a model is described, who its experts are, and how good it should be."""
    model = await models.update(gateway, principal, name, await json_of(request, m.ModelChanges))
    return answer(m.document(model, model.versions[0]))


@router.delete("/{ref}", status_code=204, response_class=Response)
async def remove(ref: str, gateway: Door, principal: Caller) -> Response:
    """Remove a model (`name`) with all that is about it, or one version (`name@version`). Jobs that run go on."""
    await models.remove(gateway, principal, ref)
    return Response(status_code=204)


@router.post("/{ref}/runs", status_code=202, response_model=views.Accepted, openapi_extra=json_body(m.ModelRun))
async def run(ref: str, request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Run a model with a dataset and parameters, which have to fit its schema: the answer is a job."""
    wish = await json_of(request, m.ModelRun)
    await models.find(gateway, ref)
    name, version = parse_ref(ref)
    try:
        spec = m.run_spec(name, wish.model_copy(update={"version": wish.version or version}))
    except ValidationError as error:
        raise problems.from_validation(error, JobSpec) from None
    size = len(spec.model_dump_json(exclude_defaults=True))
    job_id = await submission.submit(gateway, principal, spec, size, idempotency_key)
    return answer(views.Accepted(job_id=job_id, state=JobState.QUEUED), 202, headers={"Location": f"/v1/jobs/{job_id}"})


class EvaluationFilters(BaseModel):
    """Which evaluations are asked for."""

    version: int | None = Field(default=None, ge=1)
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


@router.post(
    "/{name}/evaluations",
    status_code=201,
    response_model=m.EvaluationDocument,
    openapi_extra=json_body(m.NewEvaluation),
)
async def evaluate(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Keep what a version was measured to be worth; the answer says whether the model has become worse."""
    kept = await models.evaluate(gateway, principal, name, await json_of(request, m.NewEvaluation))
    return answer(m.evaluation_document(kept), 201)


@router.get("/{name}/evaluations", response_model=m.EvaluationPage)
async def evaluations(
    name: str, gateway: Door, principal: Caller, filters: Annotated[EvaluationFilters, Query()]
) -> Response:
    """Show what a model was measured to be worth over time, the newest first."""
    del principal
    query = EvaluationQuery(model=name, version=filters.version, limit=filters.limit, cursor=filters.cursor)
    return answer(m.evaluation_page(await gateway.ask(MODEL_EVALUATIONS, query)))


@router.post(
    "/{name}/fine-tune-requests", status_code=201, response_model=m.FineTuneDocument,
    openapi_extra=json_body(m.NewFineTune),
)  # fmt: skip
async def ask_experts(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Ask a model's experts to make it better, with this data. They are told by email; a version of it answers."""
    kept = await models.ask_experts(gateway, principal, name, await json_of(request, m.NewFineTune))
    return answer(m.fine_tune_document(kept), 201)


class FineTuneFilters(BaseModel):
    """Which requests are asked for."""

    state: str | None = Field(default=None, pattern="^(open|answered|declined)$")
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


@router.get("/{name}/fine-tune-requests", response_model=m.FineTunePage)
async def fine_tunes(
    name: str, gateway: Door, principal: Caller, filters: Annotated[FineTuneFilters, Query()]
) -> Response:
    """Show the requests to a model's experts, the newest first."""
    access.require(principal, Action.MANAGE_MODELS)
    query = FineTuneQuery.model_validate({"model": name, **filters.model_dump()})
    page = await gateway.ask(FINE_TUNE_LIST, query)
    return answer(m.FineTunePage(requests=[m.fine_tune_document(one) for one in page.requests], cursor=page.cursor))


@router.post(
    "/{name}/fine-tune-requests/{request_id}/decline", response_model=m.FineTuneDocument,
    openapi_extra=json_body(m.Decline),
)  # fmt: skip
async def decline(name: str, request_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Close a request without a version, and say why."""
    wish = await json_of(request, m.Decline)
    return answer(m.fine_tune_document(await models.decline(gateway, principal, name, request_id, wish.why)))
