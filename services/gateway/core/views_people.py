"""What clients see, and say, of users and sessions. Times are UTC."""

from datetime import datetime

from pydantic import BaseModel

from shared.requests.accounts import Role


class SessionView(BaseModel):
    """A login. The token is shown once."""

    user: str
    role: Role
    token: str
    expires_at: datetime


class LogoutView(BaseModel):
    """A logout."""

    logout_message: str


class UserView(BaseModel):
    """A user."""

    id: str
    name: str
    role: Role
    email: str | None
    disabled: bool
    created_at: datetime


class UsersDocument(BaseModel):
    """Some users, by name; `cursor` asks for the next."""

    users: list[UserView]
    cursor: str | None


class Me(BaseModel):
    """Who the token belongs to."""

    id: str
    user: str
    role: Role
    email: str | None


class SecretDocument(BaseModel):
    """A signing secret."""

    secret: str


class Credentials(BaseModel):
    """A name and a password."""

    model_config = {"extra": "forbid"}

    user: str
    password: str


class NewUser(BaseModel):
    """A user to add."""

    model_config = {"extra": "forbid"}

    name: str
    password: str
    role: Role = "user"
    email: str | None = None


class UserChanges(BaseModel):
    """Changes to a user; what is left out stays."""

    model_config = {"extra": "forbid"}

    password: str | None = None
    role: Role | None = None
    email: str | None = None
    disabled: bool | None = None


class NewPassword(BaseModel):
    """One's own new password. All other sessions end."""

    model_config = {"extra": "forbid"}

    old: str
    new: str
