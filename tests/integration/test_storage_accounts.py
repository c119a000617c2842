"""Users, sessions and secrets, over a real broker and mongod."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from shared import channels as c
from shared.bus import Bus, Received
from shared.channels import Service
from shared.errors import WherryError
from shared.events import TokenRevoked
from shared.requests.accounts import (
    Login,
    PasswordChange,
    SecretPut,
    SecretRef,
    Session,
    TokenQuery,
    UserCreate,
    UserListQuery,
    UserName,
    UserUpdate,
)

PASSWORD = "correct horse"


@pytest.fixture
async def gateway(storage: Any) -> AsyncIterator[Bus]:
    async with storage.bus(Service.GATEWAY, "g1") as bus:
        yield bus


@pytest.fixture
async def revoked(gateway: Bus) -> "asyncio.Queue[TokenRevoked]":
    heard: asyncio.Queue[TokenRevoked] = asyncio.Queue()

    def hear(message: Received[TokenRevoked]) -> None:
        assert message.data
        heard.put_nowait(message.data)

    await gateway.listen(c.TOKEN_REVOKED, hear)
    return heard


async def add(gateway: Bus, name: str = "ann", **fields: Any) -> str:
    return (await gateway.ask(c.USER_CREATE, UserCreate(name=name, password=PASSWORD, **fields))).id


async def login(gateway: Bus, name: str = "ann", password: str = PASSWORD) -> Session:
    return await gateway.ask(c.LOGIN, Login(user=name, password=password, client="127.0.0.1"))


async def refused(call: Any) -> str:
    with pytest.raises(WherryError) as caught:
        await call
    return caught.value.code


async def test_a_user_logs_in_is_known_by_the_token_and_logs_out(
    gateway: Bus, storage: Any, revoked: "asyncio.Queue[TokenRevoked]"
) -> None:
    user_id = await add(gateway, role="expert", email="ann@example.org")
    session = await login(gateway, "ANN")
    assert session.token.startswith("whr_s_")
    principal = await gateway.ask(c.VERIFY, TokenQuery(token=session.token))
    assert principal == session.principal
    assert (principal.user_id, principal.role, principal.email) == (user_id, "expert", "ann@example.org")
    kept = [str(document) for document in storage.database["sessions"].find()]
    assert kept
    assert not any(session.token in document for document in kept)
    users = [str(document) for document in storage.database["users"].find()]
    assert users
    assert not any(PASSWORD in document for document in users)
    assert all("$argon2id$v=19$m=19456,t=2,p=1$" in document for document in users)
    await gateway.ask(c.LOGOUT, TokenQuery(token=session.token))
    assert (await revoked.get()).token_sha256
    assert await refused(gateway.ask(c.VERIFY, TokenQuery(token=session.token))) == "unauthenticated"
    await gateway.ask(c.LOGOUT, TokenQuery(token=session.token))


async def test_the_admin_of_the_settings_is_made_once(gateway: Bus, storage: Any) -> None:
    session = await login(gateway, "admin", "the admin's password")
    assert session.principal.role == "admin"
    await storage.stop()
    storage.extra["WHERRY_ADMIN_PASSWORD"] = "another password"
    await storage.start()
    await storage.ready()
    assert (await gateway.ask(c.VERIFY, TokenQuery(token=session.token))).name == "admin"
    assert await refused(login(gateway, "admin", "another password")) == "unauthenticated"
    assert len((await gateway.ask(c.USER_LIST, UserListQuery())).users) == 1


async def test_wrong_passwords_unknown_and_disabled_users_look_the_same(gateway: Bus) -> None:
    await add(gateway)
    await add(gateway, "bob")
    await gateway.ask(c.USER_UPDATE, UserUpdate(name="bob", disabled=True))
    problems = []
    for name, password in (("ann", "wrong"), ("nobody", PASSWORD), ("bob", PASSWORD), ("$ne", PASSWORD)):
        with pytest.raises(WherryError) as caught:
            await login(gateway, name, password)
        problems.append((caught.value.code, caught.value.message))
    assert set(problems) == {("unauthenticated", "Wrong user name or password.")}


async def test_guessing_is_slowed_down_for_one_account_from_one_place(gateway: Bus) -> None:
    await add(gateway)
    codes = [await refused(login(gateway, "ann", "wrong")) for _ in range(6)]
    assert codes == ["unauthenticated"] * 5 + ["throttled"]
    assert await refused(login(gateway, "ann", PASSWORD)) == "throttled"
    elsewhere = Login(user="ann", password=PASSWORD, client="10.0.0.1")
    assert (await gateway.ask(c.LOGIN, elsewhere)).principal.name == "ann"


async def test_many_guesses_at_once_are_no_way_around(gateway: Bus) -> None:
    await add(gateway)
    codes = await asyncio.gather(*(refused(login(gateway, "ann", f"guess {number}")) for number in range(12)))
    assert codes.count("unauthenticated") == 5
    assert codes.count("throttled") == 7


async def test_an_idle_session_ends(gateway: Bus, storage: Any) -> None:
    await add(gateway)
    token = (await login(gateway)).token
    twelve_hours = int(timedelta(hours=12).total_seconds() * 1e6)
    storage.database["sessions"].update_many({}, {"$inc": {"used_us": -twelve_hours, "begun_us": -twelve_hours}})
    assert await refused(gateway.ask(c.VERIFY, TokenQuery(token=token))) == "unauthenticated"


async def test_a_new_password_ends_all_sessions_but_the_one_it_was_changed_in(
    gateway: Bus, revoked: "asyncio.Queue[TokenRevoked]"
) -> None:
    user_id = await add(gateway)
    mine, other = (await login(gateway)).token, (await login(gateway)).token
    change = PasswordChange(user_id=user_id, old="wrong", new="new password", keep_token=mine)
    assert await refused(gateway.ask(c.PASSWORD_CHANGE, change)) == "unauthenticated"
    short = change.model_copy(update={"old": PASSWORD, "new": "short"})
    assert await refused(gateway.ask(c.PASSWORD_CHANGE, short)) == "invalid"
    await gateway.ask(c.PASSWORD_CHANGE, change.model_copy(update={"old": PASSWORD}))
    assert (await revoked.get()).user_id == user_id
    assert (await gateway.ask(c.VERIFY, TokenQuery(token=mine))).user_id == user_id
    assert await refused(gateway.ask(c.VERIFY, TokenQuery(token=other))) == "unauthenticated"
    assert await refused(login(gateway)) == "unauthenticated"
    assert (await login(gateway, "ann", "new password")).principal.user_id == user_id


async def test_disabling_and_deleting_a_user_ends_all_sessions(
    gateway: Bus, revoked: "asyncio.Queue[TokenRevoked]"
) -> None:
    user_id = await add(gateway)
    token = (await login(gateway)).token
    assert (await gateway.ask(c.USER_UPDATE, UserUpdate(name="ann", disabled=True))).disabled
    assert (await revoked.get()).user_id == user_id
    assert await refused(gateway.ask(c.VERIFY, TokenQuery(token=token))) == "unauthenticated"
    await gateway.ask(c.USER_UPDATE, UserUpdate(name="ann", disabled=False, email="new@example.org"))
    token = (await login(gateway)).token
    await gateway.ask(c.USER_DELETE, UserName(name="Ann"))
    assert (await revoked.get()).user_id == user_id
    assert await refused(gateway.ask(c.VERIFY, TokenQuery(token=token))) == "unauthenticated"
    assert await refused(gateway.ask(c.USER_GET, UserName(name="ann"))) == "not_found"


async def test_the_last_admin_stays(gateway: Bus) -> None:
    for change in (UserUpdate(name="admin", disabled=True), UserUpdate(name="admin", role="user")):
        assert await refused(gateway.ask(c.USER_UPDATE, change)) == "conflict"
    assert await refused(gateway.ask(c.USER_DELETE, UserName(name="admin"))) == "conflict"
    await add(gateway, "second", role="admin")
    await gateway.ask(c.USER_DELETE, UserName(name="admin"))


async def test_a_name_belongs_to_one_user_and_bad_fields_are_named(gateway: Bus) -> None:
    await add(gateway, "ann")
    assert await refused(add(gateway, "ANN")) == "conflict"
    with pytest.raises(WherryError) as caught:
        await gateway.ask(c.USER_CREATE, UserCreate(name="a b", password="x", email="y"))
    assert {problem.field for problem in caught.value.fields} == {"name", "password", "email"}
    names = [user.name for user in (await gateway.ask(c.USER_LIST, UserListQuery())).users]
    assert names == ["admin", "ann"]


async def test_users_come_in_pages_by_name(gateway: Bus) -> None:
    for name in ("Cleo", "ann", "bert"):
        await add(gateway, name)
    first = await gateway.ask(c.USER_LIST, UserListQuery(limit=3))
    rest = await gateway.ask(c.USER_LIST, UserListQuery(limit=3, cursor=first.cursor))
    assert [one.name for one in first.users + rest.users] == ["admin", "ann", "bert", "Cleo"]
    assert rest.cursor is None
    assert await refused(gateway.ask(c.USER_LIST, UserListQuery(cursor="nonsense"))) == "invalid"


async def test_secrets_are_their_owners_and_only_gateway_and_notifier_get_them(gateway: Bus, storage: Any) -> None:
    ref = await gateway.ask(c.SECRET_PUT, SecretPut(owner_id="u1", value="whsec_" + "A" * 32))
    async with storage.bus(Service.NOTIFIER) as notifier:
        assert (await notifier.ask(c.SECRET_GET, ref)).value == "whsec_" + "A" * 32
        foreign = ref.model_copy(update={"owner_id": "u2"})
        assert await refused(notifier.ask(c.SECRET_GET, foreign)) == "not_found"
        own = await asyncio.gather(*(notifier.ask(c.SECRET_GET, SecretRef(owner_id="u1")) for _ in range(4)))
        assert len({one.value for one in own}) == 1
        assert own[0].value.startswith("whsec_")
        assert own[0] != await notifier.ask(c.SECRET_GET, SecretRef(owner_id="u2"))
    async with storage.bus(Service.NODE_AGENT, "n1") as node:
        assert await refused(node.ask(c.SECRET_GET, ref)) == "bus_forbidden"
