"""Logs and events, as they are and as they grow."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from services.gateway.core import access, sse, translate, views
from services.gateway.core.access import Action
from services.gateway.core.members import Places, come_and_go, has_members
from services.gateway.core.tail import parse_event_id
from services.gateway.routes.http import Caller, Door, Stream, answer, event_stream, wants_events, wants_json
from services.gateway.shell import events, logs, member_logs
from services.gateway.shell.gateway import Gateway
from shared.channels import JOB_EVENTS
from shared.job import Job
from shared.requests.jobs import EventQuery

router = APIRouter(prefix="/v1", tags=["streams"])
LastEventId = Annotated[str | None, Header(description="Where a broken stream goes on.")]
#: What stands behind it is counted in 64 bits.
_NUMBER_MOST = 2**63 - 1
_PLAIN = "text/plain; charset=utf-8"
_SSE = {200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}}}
_LOG = {200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}, _PLAIN: {"schema": {"type": "string"}}}}}


class LogParams(BaseModel):
    """Which lines are asked for, and how."""

    follow: bool = Field(default=False, description="Server-sent events while the job runs.")
    stream: Literal["stdout", "stderr", "o", "e"] | None = None
    attempt: int | None = Field(default=None, ge=1, le=_NUMBER_MOST, description="Else the current one.")
    tail: int | None = Field(default=None, ge=0, le=5000, description="Only so many last lines.")
    since: Annotated[
        Annotated[int, Field(ge=1, le=_NUMBER_MOST)] | AwareDatetime | None, Field(union_mode="left_to_right")
    ] = Field(default=None, description="A line's number or a time: nothing before it.")
    after: int = Field(default=0, ge=0, le=_NUMBER_MOST, description="JSON only: lines with higher numbers.")
    limit: int = Field(default=1000, ge=1, le=5000, description="JSON only.")
    cursor: str | None = Field(default=None, max_length=100, description="JSON of a job with members: from a page.")


class EventParams(BaseModel):
    """Which events are asked for, and how."""

    follow: bool = Field(default=False, description="Server-sent events as they happen.")
    after: int = Field(default=0, ge=0, le=_NUMBER_MOST, description="The sequence behind which to begin.")
    limit: int = Field(default=500, ge=1, le=1000, description="Lists only.")


@router.get("/jobs/{job_id}/logs", response_model=views.LogDocument, responses=_LOG)  # pyright: ignore[reportArgumentType]
async def read_logs(
    job_id: str,
    request: Request,
    gateway: Door,
    principal: Caller,
    params: Annotated[LogParams, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Give what the job printed: text, JSON (by Accept), or server-sent events while it runs.

    Events are `log`, `progress`, `metric`, `gap` (lines that are lost) and `end`. Of a gang, a map job or a service the
    output of all members is given, also of workers and replicas that have ended, and each event has `member` (which
    one it is in its job), `member_id` (its own job) and `node`.
    """
    job = (await gateway.job(principal, job_id)).job
    # Workers and replicas have one attempt each; their parent's number counts them.
    if params.attempt is not None and params.attempt > (1 if come_and_go(job) else job.attempt):
        raise access.missing("such attempt")
    wish = logs.Wanted(
        job_id,
        params.attempt,
        translate.LETTERS[params.stream] if params.stream else None,
        params.tail,
        params.since if isinstance(params.since, datetime) else None,
        params.since if isinstance(params.since, int) else 1,
        parse_event_id(last_event_id),
    )
    if has_members(job):
        return await _members_logs(request, gateway, job, wish, params, last_event_id)
    if wants_events(request, follow=params.follow):
        return await event_stream(gateway, logs.follow(gateway, wish))
    attempt = wish.attempt or job.attempt or 1
    if wants_json(request):
        return answer(translate.log(await logs.document(gateway, wish, attempt, params.after, params.limit)))
    return Stream(logs.text(gateway, wish, attempt), media_type=_PLAIN)


async def _members_logs(
    request: Request, gateway: Gateway, job: Job, wish: logs.Wanted, params: LogParams, last_event_id: str | None
) -> Response:
    if wants_events(request, follow=params.follow):
        return await event_stream(gateway, member_logs.follow(gateway, job, wish, Places.parse(last_event_id)))
    if wants_json(request):
        return answer(await member_logs.document(gateway, job, wish, params.limit, params.cursor))
    return Stream(member_logs.text(gateway, job, wish), media_type=_PLAIN)


@router.get("/jobs/{job_id}/events", response_model=views.EventsDocument, responses=_SSE)  # pyright: ignore[reportArgumentType]
async def job_events(
    job_id: str,
    request: Request,
    gateway: Door,
    principal: Caller,
    params: Annotated[EventParams, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Give the job's CloudEvents: a list, or server-sent events until its last one."""
    await gateway.job(principal, job_id)
    return await _events(request, gateway, events.Scope(job_id=job_id), params, last_event_id)


@router.get("/events", response_model=views.EventsDocument, responses=_SSE)  # pyright: ignore[reportArgumentType]
async def all_events(
    request: Request,
    gateway: Door,
    principal: Caller,
    params: Annotated[EventParams, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Give the CloudEvents of one's own jobs, of all jobs to administrators: a list, or server-sent events."""
    everything = access.may(principal, Action.SEE_EVERYTHING)
    scope = events.Scope(owner_id=None if everything else principal.user_id)
    return await _events(request, gateway, scope, params, last_event_id)


async def _events(
    request: Request, gateway: Gateway, scope: events.Scope, params: EventParams, last_event_id: str | None
) -> Response:
    after = _after(last_event_id, params.after)
    if wants_events(request, follow=params.follow):
        return await event_stream(gateway, events.follow(gateway, scope, after))
    query = EventQuery(job_id=scope.job_id, owner_id=scope.owner_id, after_seq=after, limit=params.limit)
    return answer(translate.events(await gateway.ask(JOB_EVENTS, query), after))


def _after(last_event_id: str | None, after: int) -> int:
    if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 19:
        return int(last_event_id)
    return after
