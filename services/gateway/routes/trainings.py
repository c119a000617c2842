"""Trainings: hand in code and data, follow, fetch the model, terminate."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.gateway.core import trainings
from services.gateway.core.access import Action
from services.gateway.core.trainings import Filters, TrainingAccepted, TrainingDocument, TrainingPage
from services.gateway.routes.http import Caller, Door, Key, answer, body_of, json_body, links
from services.gateway.shell import submission
from services.gateway.shell import trainings as shell

router = APIRouter(prefix="/v1", tags=["trainings"])


@router.post(
    "/trainings",
    status_code=202,
    response_model=TrainingAccepted,
    openapi_extra=json_body(trainings.NewTraining),
)
async def submit(request: Request, gateway: Door, principal: Caller, idempotency_key: Key = None) -> Response:
    """Train a model: `preprocessing` prepares the data set, `algorithm` makes the model, `helpers` are for both.

    The code is read here and run in a container only; what cannot be read is answered with its line.
    """
    body = await body_of(request, trainings.BODY_BYTES_MAX)
    training_id = await shell.submit(gateway, principal, body, idempotency_key)
    headers = {"Location": f"/v1/trainings/{training_id}"}
    return answer(TrainingAccepted(training_id=training_id, status="initializing"), 202, headers=headers)


@router.get("/trainings", response_model=TrainingPage)
async def list_trainings(
    request: Request, gateway: Door, principal: Caller, filters: Annotated[Filters, Query()]
) -> Response:
    """Show trainings, newest first: one's own, or everybody's to administrators."""
    return answer(await shell.listed(gateway, principal, filters, links(request)))


@router.get("/trainings/{training_id}", response_model=TrainingDocument)
async def show(training_id: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Show a training: its status word, how far it is, what it measured, and where its model is once completed."""
    view = await shell.find(gateway, principal, training_id)
    return answer(await shell.document(gateway, view, links(request)))


@router.delete("/trainings/{training_id}", status_code=202, response_model=TrainingAccepted)
async def terminate(training_id: str, gateway: Door, principal: Caller) -> Response:
    """End a training and free its machines. Safe to repeat; the answer shows the status before."""
    view = await shell.find(gateway, principal, training_id, Action.CHANGE)
    await submission.cancel(gateway, principal, training_id)
    return answer(TrainingAccepted(training_id=training_id, status=trainings.status_of(view.job)), 202)
