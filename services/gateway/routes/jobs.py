"""Jobs: hand in, look at, stop, run again."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import from_json

from services.gateway.core import access, problems, translate, translate_fleet, views
from services.gateway.core.access import Action
from services.gateway.routes.http import (
    Caller,
    Door,
    Key,
    answer,
    bearer,
    body_of,
    chosen,
    gateway_of,
    json_body,
    uploaded,
)
from services.gateway.shell import explain, submission
from services.gateway.shell.gateway import Gateway
from shared.channels import JOB_DELIVERIES, JOB_LIST, JOB_METRICS, USER_GET
from shared.errors import FieldProblem, WherryError
from shared.requests.accounts import Principal, UserName
from shared.requests.jobs import JobListQuery, JobQuery, MetricQuery
from shared.spec import JobSpec
from shared.states import JobState

router = APIRouter(prefix="/v1", tags=["jobs"])


class MetricParams(BaseModel):
    """Which series are asked for, and how closely."""

    attempt: int | None = Field(default=None, ge=1, le=2**31, description="Else the current one.")
    name: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)] = []
    points: int = Field(default=1000, ge=2, le=5000, description="Of each series, at most.")


_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {"$ref": "#/components/schemas/JobSpec"},
                "source": {"type": "string", "format": "binary", "description": "A zip: the working directory."},
            },
        }
    }
}
_KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 255},
    "description": "The same key with the same spec is the same job, for ever.",
}  # fmt: skip
_BATCH: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["jobs"],
                    "properties": {
                        "jobs": {
                            "type": "array", "minItems": 1, "maxItems": 1000,
                            "items": {"$ref": "#/components/schemas/JobSpec"},
                        }
                    },
                }
            }
        },
    }
}  # fmt: skip


# Served by `app` without FastAPI's routing; this entry is what the OpenAPI document is made from.
@router.post(
    "/jobs",
    status_code=202,
    response_model=views.Accepted,
    openapi_extra=json_body(JobSpec, **_FORM) | {"parameters": [_KEY]},
)
async def submit(request: Request) -> Response:
    """Hand in a job: a spec as JSON, or a form with `spec` and `source` (a zip). Answered once it is on disk."""
    gateway = gateway_of(request)
    principal = await gateway.tokens.principal(bearer(request))
    headers = request.headers
    key = headers.get("idempotency-key")
    kind = headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        job_id = await submission.submit_form(gateway, principal, kind, uploaded(request), key)
    else:
        body = await body_of(request, gateway.settings.spec_bytes_max)
        job_id = await submission.submit(gateway, principal, submission.parse_spec(body), len(body), key)
    return _accepted(job_id)


@router.post("/jobs/batch", status_code=202, response_model=views.BatchView, openapi_extra=_BATCH)
async def submit_batch(request: Request, gateway: Door, principal: Caller) -> Response:
    """Hand in up to 1,000 jobs: `{"jobs": [...]}` or a plain list. Each gets an id or a problem, in order."""
    specs = _specs(await body_of(request, gateway.settings.batch_bytes_max), gateway.settings.batch_jobs_max)
    outcomes = await submission.submit_batch(gateway, principal, specs)
    jobs: list[views.Accepted | views.BatchRefusal] = [
        views.Accepted(job_id=outcome, state=JobState.QUEUED)
        if isinstance(outcome, str)
        else views.BatchRefusal(problem=problems.problem(outcome).model_dump(exclude_none=True))
        for outcome in outcomes
    ]
    return answer(views.BatchView(jobs=jobs), 202)


@router.post("/jobs/plan", response_model=views.ExplanationView, openapi_extra=json_body(JobSpec, **_FORM))
async def plan(request: Request, gateway: Door, principal: Caller) -> Response:
    """Tell where a job would go now, or why it would wait. It is checked as if it were handed in; nothing is kept."""
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        spec = await submission.check_form(gateway, principal, kind, uploaded(request))
    else:
        body = await body_of(request, gateway.settings.spec_bytes_max)
        spec, _ = await submission.check(gateway, principal, submission.parse_spec(body), len(body))
    return answer(translate_fleet.explanation(await explain.of_spec(gateway, principal, spec)))


class Filters(BaseModel):
    """Which jobs are asked for."""

    state: list[str] | None = Field(default=None, description="One or more states, repeated or with commas.")
    owner: str | None = Field(default=None, description="A user's name or `me`; others' are for administrators.")
    name: str | None = None
    kind: str | None = None
    label: str | None = None
    view: str | None = Field(default=None, description="What they are seen as: job, workload, training, deployment.")
    gang: str | None = Field(default=None, description="Its members; a map job's workers. Other lists leave them out.")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None


@router.get("/jobs", response_model=views.JobPage)
async def list_jobs(gateway: Door, principal: Caller, filters: Annotated[Filters, Query()]) -> Response:
    """Show jobs, newest first: one's own, or everybody's to administrators."""
    query = JobListQuery(
        owner_id=await _owner_id(gateway, principal, filters.owner),
        states=chosen(filters.state, JobState),
        gang_id=filters.gang,
        **filters.model_dump(include={"name", "kind", "label", "view", "limit", "cursor"}),
    )
    page = await gateway.ask(JOB_LIST, query)
    jobs = [translate.job(view, with_spec=False) for view in page.jobs]
    return answer(views.JobPage(jobs=jobs, cursor=page.cursor))


@router.get("/jobs/{job_id}", response_model=views.JobDocument)
async def show(job_id: str, gateway: Door, principal: Caller) -> Response:
    """Show a job with its attempts, progress, times, and why it waits or how it ended."""
    return answer(translate.job(await gateway.job(principal, job_id), with_spec=True))


@router.get("/jobs/{job_id}/explain", response_model=views.ExplanationView)
async def explain_job(job_id: str, gateway: Door, principal: Caller) -> Response:
    """Tell why a job waits and what would let it start, why it went where it went, or how it ended."""
    job, why = await explain.of_job(gateway, principal, job_id)
    return answer(translate_fleet.explanation(why, job))


@router.post("/jobs/{job_id}/cancel", status_code=202, response_model=views.Accepted)
async def cancel(job_id: str, gateway: Door, principal: Caller) -> Response:
    """Ask for a job to stop. Safe to repeat; the answer shows the state before."""
    state = await submission.cancel(gateway, principal, job_id)
    return answer(views.Accepted(job_id=job_id, state=state), 202)


@router.post("/jobs/{job_id}/rerun", status_code=202, response_model=views.Accepted)
async def rerun(
    job_id: str,
    gateway: Door,
    principal: Caller,
    idempotency_key: Key = None,
    everything: Annotated[bool, Query(alias="all", description="Of a map job: all items.")] = False,  # noqa: FBT002
) -> Response:
    """Hand in the same spec once more, as a new job. Of a map job that has ended: the items without a result."""
    again = await submission.rerun(gateway, principal, job_id, idempotency_key, everything=everything)
    return _accepted(again)


@router.get("/jobs/{job_id}/metrics", response_model=views.MetricsDocument)
async def metrics(job_id: str, gateway: Door, principal: Caller, params: Annotated[MetricParams, Query()]) -> Response:
    """Show what the job printed as `::metric name=value step=n`, and what it used, as `system.cpu` and the like.

    A series with more points than are asked for keeps its first and last point and those that stand out.
    """
    await gateway.job(principal, job_id)
    query = MetricQuery(job_id=job_id, attempt=params.attempt, names=tuple(params.name), most=params.points)
    return answer(translate.metrics(await gateway.ask(JOB_METRICS, query)))


@router.get("/jobs/{job_id}/notifications", response_model=views.NotificationsDocument)
async def notifications(job_id: str, gateway: Door, principal: Caller) -> Response:
    """Show each notification about the job: to whom, its tries and its end."""
    await gateway.job(principal, job_id)
    page = await gateway.ask(JOB_DELIVERIES, JobQuery(job_id=job_id))
    return answer(views.NotificationsDocument(notifications=[translate.notification(one) for one in page.deliveries]))


def _accepted(job_id: str) -> Response:
    headers = {"Location": f"/v1/jobs/{job_id}"}
    return Response(b'{"job_id":"%s","state":"queued"}' % job_id.encode(), 202, headers, "application/json")


def _specs(body: bytes, count_max: int) -> list[Any]:
    try:
        sent: Any = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise WherryError("invalid_json", f"Invalid JSON: {error}.") from None
    specs = sent.get("jobs") if isinstance(sent, dict) and set(sent) == {"jobs"} else sent
    if not isinstance(specs, list) or not 0 < len(specs) <= count_max:
        message = f"Give a list of 1 to {count_max} job specs"
        raise problems.invalid([FieldProblem(field="jobs", message=message)])
    return specs


async def _owner_id(gateway: Gateway, principal: Principal, owner: str | None) -> str | None:
    everything = access.may(principal, Action.SEE_EVERYTHING)
    if owner is None:
        return None if everything else principal.user_id
    if owner in ("me", principal.name, principal.user_id):
        return principal.user_id
    access.require(principal, Action.SEE_EVERYTHING)
    return (await gateway.ask(USER_GET, UserName(name=owner))).id
