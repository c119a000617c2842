"""Quotas: what one owner's jobs may hold, and how many may wait."""

from fastapi import APIRouter, Request, Response

from services.gateway.core import access, translate_fleet, views_administration
from services.gateway.routes.http import Caller, Door, answer, json_body, json_of
from services.gateway.shell import fleet
from services.gateway.shell.gateway import Gateway
from shared.channels import QUOTA_GET
from shared.requests.accounts import Principal, UserName

router = APIRouter(prefix="/v1", tags=["quotas"])


@router.put(
    "/users/{name}/quota",
    response_model=views_administration.QuotaDocument,
    openapi_extra=json_body(views_administration.QuotaLimits),
)
async def set_quota(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Set a user's quota, all of it: what is left out is no limit. For administrators."""
    access.require(principal, access.Action.MANAGE_QUOTAS)
    limits = await json_of(request, views_administration.QuotaLimits)
    name = _named(name, principal)
    await fleet.set_quota(gateway, principal, name, translate_fleet.wanted_quota(limits))
    return await _shown(gateway, name)


@router.get("/users/{name}/quota", response_model=views_administration.QuotaDocument)
async def show_quota(name: str, gateway: Door, principal: Caller) -> Response:
    """Show one's own quota (`me` is oneself), and how many jobs wait or run; anybody's to administrators."""
    name = _named(name, principal)
    if name != principal.name:
        access.require(principal, access.Action.MANAGE_QUOTAS)
    return await _shown(gateway, name)


@router.delete("/users/{name}/quota", status_code=204, response_class=Response)
async def remove_quota(name: str, gateway: Door, principal: Caller) -> Response:
    """Take a user's quota away. For administrators."""
    access.require(principal, access.Action.MANAGE_QUOTAS)
    await fleet.set_quota(gateway, principal, _named(name, principal), None)
    return Response(status_code=204)


def _named(name: str, principal: Principal) -> str:
    """Return a user's name; names are the same however they are spelt."""
    return principal.name if name == "me" or name.casefold() == principal.name.casefold() else name


async def _shown(gateway: Gateway, name: str) -> Response:
    return answer(translate_fleet.quota(await gateway.ask(QUOTA_GET, UserName(name=name)), name))
