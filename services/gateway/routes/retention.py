"""What is kept no longer. For administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from services.gateway.core import access, views_administration
from services.gateway.core.access import Action
from services.gateway.routes.http import Caller, Door, answer
from shared.channels import RETENTION_GET, RETENTION_RUN
from shared.clock import monotonic
from shared.ids import new_id
from shared.requests.administration import RetentionAsk, RetentionQuery, RetentionRun

router = APIRouter(prefix="/v1/retention", tags=["retention"])
#: How long a run is waited for before it is answered as still at work.
_WAIT_S = 20.0
_AT_WORK: dict[int | str, dict[str, Any]] = {
    202: {"model": views_administration.RetentionDocument, "description": "Still at work."}
}


@router.post("/run", response_model=views_administration.RetentionDocument, responses=_AT_WORK)
async def run(
    gateway: Door,
    principal: Caller,
    dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = False,  # noqa: FBT002
    limit: Annotated[int, Query(ge=0, le=1000, description="Things that are named.")] = 100,
) -> Response:
    """Remove what is kept no longer, or only list it, with reasons. It happens by itself once a day."""
    access.require(principal, Action.MANAGE_RETENTION)
    ask = RetentionAsk(run_id=new_id("r"), dry_run=dry_run, limit=limit, by=principal.name)
    found, give_up_at = await gateway.ask(RETENTION_RUN, ask), monotonic() + _WAIT_S
    while found.ended_at is None and monotonic() < give_up_at:
        found = await gateway.ask(RETENTION_GET, RetentionQuery(run_id=ask.run_id))  # waits a moment by itself
    return _shown(found)


@router.get("/runs/{run_id}", response_model=views_administration.RetentionDocument, responses=_AT_WORK)
async def show(run_id: str, gateway: Door, principal: Caller) -> Response:
    """Show a run: what it has removed and hidden, and why."""
    access.require(principal, Action.MANAGE_RETENTION)
    return _shown(await gateway.ask(RETENTION_GET, RetentionQuery(run_id=run_id)))


def _shown(found: RetentionRun) -> Response:
    document = views_administration.RetentionDocument.model_validate(found.model_dump())
    return answer(document, 200 if found.ended_at else 202)
