"""Dead letters: messages that a service could not take in. For administrators."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from services.gateway.core import access, translate_fleet, views_administration
from services.gateway.core.access import Action
from services.gateway.routes.http import Caller, Door, answer
from shared.channels import DEAD_LETTER_REPLAY, DEAD_LETTERS
from shared.requests.administration import DeadLetterId, DeadLetterQuery

router = APIRouter(prefix="/v1", tags=["dead letters"])


class LetterFilters(BaseModel):
    """Which dead letters are asked for."""

    reader: str | None = Field(default=None, description="Only of this service.")
    limit: int = Field(default=50, ge=1, le=200)
    cursor: str | None = None


@router.get("/dead-letters", response_model=views_administration.LettersDocument)
async def list_letters(gateway: Door, principal: Caller, filters: Annotated[LetterFilters, Query()]) -> Response:
    """Show what services could not take in, newest first, and why."""
    access.require(principal, Action.MANAGE_LETTERS)
    page = await gateway.ask(DEAD_LETTERS, DeadLetterQuery(**filters.model_dump()))
    letters = [translate_fleet.letter(one) for one in page.letters]
    return answer(views_administration.LettersDocument(dead_letters=letters, cursor=page.cursor))


@router.post("/dead-letters/{letter_id}/replay", status_code=202, response_model=views_administration.LetterView)
async def replay(letter_id: str, gateway: Door, principal: Caller) -> Response:
    """Hand a dead letter to its reader again. If it fails once more, it is shown as not replayed, with the reason."""
    access.require(principal, Action.MANAGE_LETTERS)
    return answer(translate_fleet.letter(await gateway.ask(DEAD_LETTER_REPLAY, DeadLetterId(id=letter_id))), 202)
