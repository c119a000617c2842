"""Login, logout and the system at a glance: at the root and under /v1."""

import asyncio
import base64
import binascii

from fastapi import APIRouter, Request, Response

from services.gateway.adapters.form import fields_of
from services.gateway.core import problems, translate, views, views_people
from services.gateway.core.views_people import Credentials
from services.gateway.routes.http import Caller, Door, answer, bearer, body_of, json_body, parsed
from services.gateway.shell import workloads
from services.gateway.shell.gateway import Gateway
from shared.channels import COUNTS, LOGIN, LOGOUT
from shared.clock import utc_now
from shared.errors import FieldProblem, WherryError
from shared.model import Empty
from shared.requests.accounts import Login, TokenQuery

_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
#: Of a login, which anybody may send.
_BYTES_MAX = 8192
_HOW = "Send a user and a password as HTTP Basic, or POST `user` and `password` as JSON or a form."


def router(prefix: str, *, in_document: bool = True) -> APIRouter:
    """Return the routes under *prefix*."""
    routes = APIRouter(prefix=prefix, tags=["session"], include_in_schema=in_document)
    basic = {"security": [{"basic": []}]}
    forms = {kind: {"schema": {"$ref": "#/components/schemas/Credentials"}} for kind in (_FORM, _MULTIPART)}
    body = json_body(Credentials, **forms) | {"security": [{"basic": []}, {}]}
    routes.get("/login", response_model=views_people.SessionView, openapi_extra=basic)(login_with_basic)
    routes.post("/login", response_model=views_people.SessionView, openapi_extra=body)(login)
    routes.delete("/logout", response_model=views_people.LogoutView)(logout)
    routes.get("/status", response_model=views.StatusView)(status)
    return routes


async def login_with_basic(request: Request, gateway: Door) -> Response:
    """Give a session token for a name and a password sent as HTTP Basic."""
    credentials = _basic(request)
    if credentials is None:
        raise WherryError("unauthenticated", _HOW)
    return await _login(gateway, request, credentials)


async def login(request: Request, gateway: Door) -> Response:
    """Give a session token for a name and a password sent as HTTP Basic, JSON or a form."""
    return await _login(gateway, request, _basic(request) or await _sent(request))


async def logout(request: Request, gateway: Door, principal: Caller) -> Response:
    """End the session. The token is dead on every gateway within a second."""
    token = bearer(request)
    await gateway.ask(LOGOUT, TokenQuery(token=token))
    gateway.tokens.forget(token)
    return answer(views_people.LogoutView(logout_message=f"Goodbye, {principal.name}."))


async def status(gateway: Door, principal: Caller) -> Response:
    """Show the system's name and time, how many nodes and jobs there are, and the caller's workloads that go on."""
    counts, active = await asyncio.gather(gateway.ask(COUNTS, Empty()), workloads.active(gateway, principal))
    return answer(translate.status(counts, active, gateway.settings.system_name, utc_now()))


async def _login(gateway: Gateway, request: Request, credentials: Credentials) -> Response:
    client = request.client.host if request.client else ""
    session = await gateway.ask(LOGIN, Login(user=credentials.user, password=credentials.password, client=client))
    gateway.tokens.remember(session.token, session.principal)
    return answer(translate.session(session))


def _basic(request: Request) -> Credentials | None:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise WherryError("unauthenticated", "The HTTP Basic credentials cannot be read.") from None
    if not colon:
        raise WherryError("unauthenticated", "The HTTP Basic credentials have no password.")
    return Credentials(user=user, password=password)


async def _sent(request: Request) -> Credentials:
    body = await body_of(request, _BYTES_MAX)
    fields = await fields_of(request.headers.get("content-type", ""), body)
    if fields is not None:
        return _from_fields(fields)
    if not body.strip():
        raise WherryError("unauthenticated", _HOW)
    return parsed(body, Credentials)


def _from_fields(fields: dict[str, str]) -> Credentials:
    missing = [name for name in ("user", "password") if name not in fields]
    if missing:
        raise problems.invalid(FieldProblem(field=name, message="This field is required") for name in missing)
    return Credentials(user=fields["user"], password=fields["password"])
