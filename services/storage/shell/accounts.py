"""Users, sessions and secrets."""

import base64
import secrets
from collections import OrderedDict
from hashlib import sha256
from typing import Any

from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.passwords import Passwords
from services.storage.adapters.people_store import PeopleStore, StoredUser
from services.storage.core import queries as q
from services.storage.core.people import PASSWORD_MOST, SessionTimes, Tries, check_user, name_key
from shared import observe
from shared.bus import Bus
from shared.channels import TOKEN_REVOKED
from shared.clock import monotonic, utc_now
from shared.errors import Conflict, NotFound, WherryError
from shared.events import TokenRevoked
from shared.ids import new_id, new_token
from shared.requests.accounts import (
    Login,
    PasswordChange,
    Principal,
    Role,
    SecretPut,
    SecretRef,
    SecretValue,
    Session,
    TokenQuery,
    User,
    UserCreate,
    UserListQuery,
    UserName,
    Users,
    UserUpdate,
)

SESSION_PREFIX = "whr_s"
SECRET_BYTES = 32
#: A session's last use is written down at most this often, in seconds.
USE_EVERY_S = 60.0
#: Places from which guesses are counted.
COUNTED_MOST = 10_000
_USERS_MOST = 1000
#: Characters of a name and of a place that tell guesses apart.
NAME_COUNTED = 128

log = observe.logger("storage.accounts")


class Accounts:
    """Who may come in. Passwords are kept as Argon2id hashes, tokens as SHA-256."""

    def __init__(self, bus: Bus, store: PeopleStore, fleet: FleetStore, passwords: Passwords) -> None:
        self._bus = bus
        self._store = store
        self._fleet = fleet
        self._passwords = passwords
        self._tries: OrderedDict[tuple[str, str], Tries] = OrderedDict()

    # --- sessions ------------------------------------------------------------------------------------------------

    async def login(self, login: Login) -> Session:
        """Give a session for a name and password.

        Raises:
            WherryError: ``unauthenticated``, the same in word and time whether the name or the password is wrong;
                ``throttled``.
        """
        place = name_key(login.user[:NAME_COUNTED]), login.client[:NAME_COUNTED]
        self._count_try(place)
        found = await self._store.user_by_name(login.user)
        kept = found.password if found and not found.user.disabled else None
        if not await self._matches(kept, login.password) or found is None:
            log.warning("login_refused", client=login.client)
            raise WherryError("unauthenticated", "Wrong user name or password.")
        self._tries.pop(place, None)
        if self._passwords.is_outdated(found.password):
            await self._store.change_user(found.user.id, {"password": await self._passwords.hash(login.password)})
        token, now = new_token(SESSION_PREFIX), utc_now()
        times = SessionTimes(now, now)
        await self._store.add_session(_digest(token), found.user.id, times)
        log.info("login", user_id=found.user.id, client=login.client)
        return Session(principal=await self._principal(found.user), token=token, expires_at=times.expires_at)

    async def logout(self, query: TokenQuery) -> None:
        """End a session; one that is unknown has ended before."""
        digest = _digest(query.token)
        await self._store.end_session(digest)
        await self._bus.publish(TOKEN_REVOKED, TokenRevoked(token_sha256=digest))

    async def verify(self, query: TokenQuery) -> Principal:
        """Tell whose token it is.

        Raises:
            WherryError: ``unauthenticated``: nobody's, or no more.
        """
        digest, now = _digest(query.token), utc_now()
        session = await self._store.session(digest)
        if session is None or not session.times.is_alive(now):
            raise _no_session()
        found = await self._store.user_by_id(session.user_id)
        if found is None or found.user.disabled:
            raise _no_session()
        if (now - session.times.used_at).total_seconds() > USE_EVERY_S:
            await self._store.use_session(digest, SessionTimes(session.times.begun_at, now))
        return await self._principal(found.user)

    async def change_password(self, change: PasswordChange) -> None:
        """Change one's own password; all other sessions end.

        Raises:
            WherryError: ``unauthenticated`` for a wrong old one, ``throttled``, ``invalid``.
        """
        found = await self._store.user_by_id(change.user_id)
        if found is None:
            raise NotFound("There is no such user.")
        place = change.user_id, "password"
        self._count_try(place)
        if not await self._matches(found.password, change.old):
            raise WherryError("unauthenticated", "The old password is wrong.")
        self._tries.pop(place, None)
        check_user(password=change.new)
        await self._store.change_user(change.user_id, {"password": await self._passwords.hash(change.new)})
        await self._revoke(change.user_id, keep=change.keep_token)

    async def _principal(self, user: User) -> Principal:
        queued_max = await self._fleet.queued_max(user.id)
        return Principal(user_id=user.id, name=user.name, role=user.role, email=user.email, queued_max=queued_max)

    def _count_try(self, place: tuple[str, str]) -> None:
        self._tries[place] = self._tries.get(place, Tries()).begin(monotonic())
        self._tries.move_to_end(place)
        while len(self._tries) > COUNTED_MOST:
            self._tries.popitem(last=False)

    async def _matches(self, kept: str | None, password: str) -> bool:
        # Longer ones are nobody's; hashing them would only cost time.
        return await self._passwords.matches(kept, password[: PASSWORD_MOST + 1])

    async def _revoke(self, user_id: str, keep: str | None = None) -> None:
        await self._store.end_sessions(user_id, [_digest(keep)] if keep else [])
        await self._bus.publish(TOKEN_REVOKED, TokenRevoked(user_id=user_id))

    # --- users ---------------------------------------------------------------------------------------------------

    async def ensure_admin(self, name: str, password: str, email: str | None) -> None:
        """Make the first admin unless there is a user of this name."""
        if await self._store.user_by_name(name) is not None:
            return
        try:
            user = await self.create_user(UserCreate(name=name, password=password, role="admin", email=email))
        except Conflict:
            return  # another storage was faster
        log.info("admin_made", user_id=user.id)

    async def create_user(self, wanted: UserCreate) -> User:
        """Add a user.

        Raises:
            WherryError: ``conflict``: the name is taken; ``invalid``.
        """
        check_user(name=wanted.name, password=wanted.password, email=wanted.email)
        user = User(
            id=new_id("u"), name=wanted.name, role=wanted.role, email=wanted.email or None, created_at=utc_now()
        )
        await self._store.add_user(user, await self._passwords.hash(wanted.password))
        return user

    async def list_users(self, query: UserListQuery) -> Users:
        """Return a page of users, by name.

        Raises:
            WherryError: ``invalid``: the cursor is none.
        """
        limit = q.bounded(query.limit, _USERS_MOST)
        found = await self._store.users(q.text_behind(query.cursor), limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        return Users(users=tuple(found[:limit]), cursor=q.cursor_text(name_key(last.name)) if last else None)

    async def get_user(self, query: UserName) -> User:
        """Return a user.

        Raises:
            NotFound: there is none of this name.
        """
        return (await self._find(query.name)).user

    async def update_user(self, update: UserUpdate) -> User:
        """Change a user. A new password or disabling ends all of the user's sessions.

        Raises:
            WherryError: ``not_found``, ``invalid``; ``conflict``: it would leave no admin.
        """
        user = (await self._find(update.name)).user
        check_user(password=update.password, email=update.email)
        if update.disabled or update.role not in (None, "admin"):
            await self._keep_an_admin(user)
        changes = _changes(update)
        if update.password is not None:
            changes["password"] = await self._passwords.hash(update.password)
        await self._store.change_user(user.id, changes)
        if update.disabled or update.password is not None:
            await self._revoke(user.id)
        elif update.role is not None:  # sessions go on, but gateways must not go on with the old role
            await self._bus.publish(TOKEN_REVOKED, TokenRevoked(user_id=user.id))
        return (await self._find(update.name)).user

    async def delete_user(self, query: UserName) -> None:
        """Remove a user and end all sessions.

        Raises:
            WherryError: ``not_found``; ``conflict``: it would leave no admin.
        """
        user = (await self._find(query.name)).user
        await self._keep_an_admin(user)
        await self._store.delete_user(user.id)
        await self._revoke(user.id)

    async def _find(self, name: str) -> StoredUser:
        found = await self._store.user_by_name(name)
        if found is None:
            raise NotFound(f"There is no user {name!r}.")
        return found

    async def _keep_an_admin(self, user: User) -> None:
        if user.role == "admin" and not user.disabled and not await self._store.other_admins(user.id):
            raise Conflict(f"{user.name} is the last admin.")

    # --- secrets -------------------------------------------------------------------------------------------------

    async def put_secret(self, put: SecretPut) -> SecretRef:
        """Keep a webhook secret of an owner."""
        ref = new_id("k")
        await self._store.add_secret(ref, put.owner_id, put.value, utc_now())
        return SecretRef(owner_id=put.owner_id, ref=ref)

    async def get_secret(self, query: SecretRef) -> SecretValue:
        """Return a secret; without a `ref` the owner's own signing secret, made when it is first wanted.

        Raises:
            NotFound: this owner has no such secret.
        """
        if query.ref is not None:
            value = await self._store.secret(query.ref, query.owner_id)
            if value is None:
                raise NotFound("This owner has no such secret.")
            return SecretValue(value=value)
        fresh = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        return SecretValue(value=await self._store.own_secret(query.owner_id, fresh, utc_now()))


def _changes(update: UserUpdate) -> dict[str, Any]:
    wanted: dict[str, Role | bool | str | None] = {"role": update.role, "disabled": update.disabled}
    changes: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    if update.email is not None:
        changes["email"] = update.email or None  # empty: no address any more
    return changes


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _no_session() -> WherryError:
    return WherryError("unauthenticated", "The token is unknown or has expired: log in again.")
