"""Users, and what belongs to oneself."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.gateway.core import access, translate, views_people
from services.gateway.core.access import Action
from services.gateway.routes.http import Caller, Door, answer, bearer, json_body, json_of
from shared.channels import PASSWORD_CHANGE, SECRET_GET, USER_CREATE, USER_DELETE, USER_LIST, USER_UPDATE
from shared.errors import WherryError
from shared.requests.accounts import PasswordChange, SecretRef, UserCreate, UserListQuery, UserName, UserUpdate

router = APIRouter(prefix="/v1", tags=["people"])


@router.post(
    "/users", status_code=201, response_model=views_people.UserView, openapi_extra=json_body(views_people.NewUser)
)
async def add_user(request: Request, gateway: Door, principal: Caller) -> Response:
    """Add a user. For administrators."""
    access.require(principal, Action.MANAGE_USERS)
    new = await json_of(request, views_people.NewUser)
    user = await gateway.ask(
        USER_CREATE, UserCreate(name=new.name, password=new.password, role=new.role, email=new.email)
    )
    return answer(translate.user(user), 201)


@router.get("/users", response_model=views_people.UsersDocument)
async def list_users(
    gateway: Door, principal: Caller, limit: Annotated[int, Query(ge=1, le=1000)] = 500, cursor: str | None = None
) -> Response:
    """Show users, by name. For administrators."""
    access.require(principal, Action.MANAGE_USERS)
    page = await gateway.ask(USER_LIST, UserListQuery(limit=limit, cursor=cursor))
    found = [translate.user(user) for user in page.users]
    return answer(views_people.UsersDocument(users=found, cursor=page.cursor))


@router.get("/users/me", response_model=views_people.Me)
async def show_me(principal: Caller) -> Response:
    """Show who the token belongs to."""
    return answer(translate.me(principal))


@router.patch("/users/{name}", response_model=views_people.UserView, openapi_extra=json_body(views_people.UserChanges))
async def change_user(name: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Change a user's role, address or password, or lock the account. For administrators."""
    access.require(principal, Action.MANAGE_USERS)
    changes = await json_of(request, views_people.UserChanges)
    if name == principal.name and (changes.disabled or changes.role not in (None, principal.role)):
        raise WherryError("own_account", "Another administrator must lock your account or change your role.")
    update = UserUpdate(name=name, **changes.model_dump())
    return answer(translate.user(await gateway.ask(USER_UPDATE, update)))


@router.delete("/users/{name}", status_code=204, response_class=Response)
async def remove_user(name: str, gateway: Door, principal: Caller) -> Response:
    """Remove a user. For administrators."""
    access.require(principal, Action.MANAGE_USERS)
    if name == principal.name:
        raise WherryError("own_account", "Another administrator must remove your account.")
    await gateway.ask(USER_DELETE, UserName(name=name))
    return Response(status_code=204)


@router.post("/password", status_code=204, response_class=Response, openapi_extra=json_body(views_people.NewPassword))
async def change_password(request: Request, gateway: Door, principal: Caller) -> Response:
    """Change one's own password. All other sessions end."""
    sent = await json_of(request, views_people.NewPassword)
    change = PasswordChange(user_id=principal.user_id, old=sent.old, new=sent.new, keep_token=bearer(request))
    await gateway.ask(PASSWORD_CHANGE, change)
    return Response(status_code=204)


@router.get("/webhook-secret", response_model=views_people.SecretDocument)
async def webhook_secret(gateway: Door, principal: Caller) -> Response:
    """Show the secret that one's own webhooks are signed with, unless they name another."""
    kept = await gateway.ask(SECRET_GET, SecretRef(owner_id=principal.user_id))
    return answer(views_people.SecretDocument(secret=kept.value))
