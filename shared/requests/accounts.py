"""Users, sessions and secrets, as storage keeps them."""

from datetime import datetime
from typing import Literal

from shared.model import Message

Role = Literal["admin", "expert", "user"]


class Principal(Message):
    """Who is calling."""

    user_id: str
    name: str
    role: Role = "user"
    email: str | None = None
    queued_max: int | None = None  # by the quota: more waiting jobs than these are refused; None: no limit


class Login(Message):
    """A user's name and password, against a session token."""

    user: str
    password: str
    client: str = ""  # address, for the throttle


class Session(Message):
    """A fresh session token. It is shown once; only its hash is kept."""

    principal: Principal
    token: str
    expires_at: datetime


class TokenQuery(Message):
    """A bearer token as the caller sent it."""

    token: str


class UserCreate(Message):
    """A new user."""

    name: str
    password: str
    role: Role = "user"
    email: str | None = None


class UserUpdate(Message):
    """Changes to a user; what is None stays."""

    name: str
    password: str | None = None
    role: Role | None = None
    email: str | None = None
    disabled: bool | None = None


class UserName(Message):
    """A user by name."""

    name: str


class PasswordChange(Message):
    """One's own new password. It revokes all sessions but the one named."""

    user_id: str
    old: str
    new: str
    keep_token: str | None = None


class User(Message):
    """A user without anything secret."""

    id: str
    name: str
    role: Role
    email: str | None = None
    disabled: bool = False
    created_at: datetime


class UserListQuery(Message):
    """Some users, by name; `cursor` is the page's before."""

    limit: int = 500
    cursor: str | None = None


class Users(Message):
    """Users by name."""

    users: tuple[User, ...] = ()
    cursor: str | None = None


class SecretPut(Message):
    """A webhook secret to be kept for one owner's job."""

    owner_id: str
    value: str


class SecretRef(Message):
    """A secret's id, or with `owner_id` alone that owner's own signing secret."""

    owner_id: str
    ref: str | None = None


class SecretValue(Message):
    """A secret in clear. Only the notifier and the owner see it."""

    value: str
