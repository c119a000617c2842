"""Users, their sessions and their secrets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.people import SessionTimes, name_key
from services.storage.core.projections import Document, microseconds, moment_of
from shared.errors import Conflict
from shared.requests.accounts import User


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A user and the hash of the password."""

    user: User
    password: str


@dataclass(frozen=True, slots=True)
class StoredSession:
    """Whose session it is, and its times."""

    user_id: str
    times: SessionTimes


class PeopleStore:
    """Collections ``users``, ``sessions`` and ``secrets``. Of a token only the SHA-256 is known here."""

    def __init__(self, mongo: Mongo) -> None:
        self._users = mongo["users"]
        self._sessions = mongo["sessions"]
        self._secrets = mongo["secrets"]

    # --- users -------------------------------------------------------------------------------------------------

    async def add_user(self, user: User, password: str) -> None:
        """Add a user.

        Raises:
            Conflict: there is one of this name, however it is spelt.
        """
        document: Document = {
            "_id": user.id,
            "name": user.name,
            "name_key": name_key(user.name),
            "role": user.role,
            "email": user.email,
            "disabled": user.disabled,
            "created_us": microseconds(user.created_at),
            "password": password,
        }
        try:
            await self._users.insert_one(document)
        except DuplicateKeyError as error:
            raise Conflict(f"There is a user {user.name} already.") from error

    async def user_by_name(self, name: str) -> StoredUser | None:
        """Return a user by any spelling of the name."""
        document = await self._users.find_one({"name_key": name_key(name)})
        return _user(document) if document else None

    async def user_by_id(self, user_id: str) -> StoredUser | None:
        """Return a user."""
        document = await self._users.find_one({"_id": user_id})
        return _user(document) if document else None

    async def users(self, after: str, limit: int) -> list[User]:
        """Return users whose key is behind *after*, by name."""
        found = self._users.find({"name_key": {"$gt": after}}).sort("name_key", 1).limit(limit)
        return [_user(document).user async for document in found]

    async def change_user(self, user_id: str, changes: dict[str, Any]) -> None:
        """Set fields of a user."""
        if changes:
            await self._users.update_one({"_id": user_id}, {"$set": changes})

    async def delete_user(self, user_id: str) -> None:
        """Remove a user."""
        await self._users.delete_one({"_id": user_id})

    async def other_admins(self, user_id: str) -> int:
        """Return how many enabled admins there are besides this user."""
        return await self._users.count_documents({"_id": {"$ne": user_id}, "role": "admin", "disabled": False})

    # --- sessions ----------------------------------------------------------------------------------------------

    async def add_session(self, token_sha256: str, user_id: str, times: SessionTimes) -> None:
        """Keep a session. MongoDB itself removes it some time after it expires."""
        await self._sessions.insert_one({"_id": token_sha256, "user_id": user_id, **_times(times)})

    async def session(self, token_sha256: str) -> StoredSession | None:
        """Return a session."""
        document = await self._sessions.find_one({"_id": token_sha256})
        if document is None:
            return None
        times = SessionTimes(moment_of(document["begun_us"]), moment_of(document["used_us"]))
        return StoredSession(document["user_id"], times)

    async def use_session(self, token_sha256: str, times: SessionTimes) -> None:
        """Note that a session was used."""
        await self._sessions.update_one({"_id": token_sha256}, {"$set": _times(times)})

    async def end_session(self, token_sha256: str) -> None:
        """Remove a session."""
        await self._sessions.delete_one({"_id": token_sha256})

    async def end_sessions(self, user_id: str, keep: Sequence[str] = ()) -> None:
        """Remove a user's sessions but those in *keep*."""
        await self._sessions.delete_many({"user_id": user_id, "_id": {"$nin": list(keep)}})

    # --- secrets -----------------------------------------------------------------------------------------------

    async def add_secret(self, ref: str, owner_id: str, value: str, now: datetime) -> None:
        """Keep a secret."""
        await self._secrets.insert_one({"_id": ref, "owner_id": owner_id, "value": value, "at": now.astimezone(UTC)})

    async def secret(self, ref: str, owner_id: str) -> str | None:
        """Return an owner's secret."""
        document = await self._secrets.find_one({"_id": ref, "owner_id": owner_id})
        return document["value"] if document else None

    async def own_secret(self, owner_id: str, new_value: str, now: datetime) -> str:
        """Return the owner's signing secret; *new_value* becomes it if there is none yet."""
        document = await self._secrets.find_one_and_update(
            {"_id": f"own:{owner_id}"},
            {"$setOnInsert": {"owner_id": owner_id, "value": new_value, "at": now.astimezone(UTC)}},
            upsert=True,
            return_document=True,
        )
        return document["value"]


def _user(document: Document) -> StoredUser:
    user = User(
        id=document["_id"],
        name=document["name"],
        role=document["role"],
        email=document["email"],
        disabled=document["disabled"],
        created_at=moment_of(document["created_us"]),
    )
    return StoredUser(user, document["password"])


def _times(times: SessionTimes) -> Document:
    return {
        "begun_us": microseconds(times.begun_at),
        "used_us": microseconds(times.used_at),
        "expires_at": times.expires_at,  # a BSON date: what the TTL index needs
    }
