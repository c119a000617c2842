import asyncio
import hashlib

import pytest

from services.gateway.adapters.tokens import Tokens
from shared.errors import WherryError
from shared.events import TokenRevoked
from shared.requests.accounts import Principal

ANNA = Principal(user_id="u1", name="anna")


class Storage:
    """Answers for one token, counts, and can be held up."""

    def __init__(self) -> None:
        self.asked = 0
        self.free = asyncio.Event()
        self.free.set()
        self.held = asyncio.Event()

    async def verify(self, token: str) -> Principal:
        self.asked += 1
        self.held.set()
        await self.free.wait()
        if token != "good":
            raise WherryError("unauthenticated", "No.")
        return ANNA


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def tokens(storage: Storage) -> Tokens:
    return Tokens(storage.verify, lifetime_s=60, size=3)


async def test_an_answer_is_remembered(tokens: Tokens, storage: Storage) -> None:
    assert await tokens.principal("good") == ANNA
    assert await tokens.principal("good") == ANNA
    assert storage.asked == 1


async def test_a_login_needs_no_question(tokens: Tokens, storage: Storage) -> None:
    tokens.remember("good", ANNA)
    assert await tokens.principal("good") == ANNA
    assert storage.asked == 0


async def test_a_refusal_is_not_remembered(tokens: Tokens, storage: Storage) -> None:
    for _ in range(2):
        with pytest.raises(WherryError):
            await tokens.principal("bad")
    assert storage.asked == 2


@pytest.mark.parametrize("revoked", [TokenRevoked(token_sha256=digest("good")), TokenRevoked(user_id="u1")])
async def test_a_revoked_token_is_asked_about_again(tokens: Tokens, storage: Storage, revoked: TokenRevoked) -> None:
    await tokens.principal("good")
    tokens.revoke(revoked)
    await tokens.principal("good")
    assert storage.asked == 2


async def test_the_revocation_of_others_changes_nothing(tokens: Tokens, storage: Storage) -> None:
    await tokens.principal("good")
    tokens.revoke(TokenRevoked(user_id="u2"))
    tokens.revoke(TokenRevoked(token_sha256=digest("other")))
    await tokens.principal("good")
    assert storage.asked == 1


async def test_a_revocation_that_overtakes_the_answer_is_not_forgotten(tokens: Tokens, storage: Storage) -> None:
    storage.free.clear()
    asking = asyncio.create_task(tokens.principal("good"))
    await storage.held.wait()
    tokens.revoke(TokenRevoked(token_sha256=digest("good")))
    storage.free.set()
    await asking
    await tokens.principal("good")
    assert storage.asked == 2


async def test_an_answer_grows_old() -> None:
    storage = Storage()
    tokens = Tokens(storage.verify, lifetime_s=-1, size=3)
    await tokens.principal("good")
    await tokens.principal("good")
    assert storage.asked == 2


async def test_only_so_many_are_remembered(tokens: Tokens, storage: Storage) -> None:
    for token in ("a", "b", "c", "d"):
        tokens.remember(token, ANNA)
    with pytest.raises(WherryError):
        await tokens.principal("a")
    assert await tokens.principal("d") == ANNA


@pytest.mark.parametrize("token", ["", "x" * 600, "töken"])
async def test_what_cannot_be_a_token_is_not_asked_about(tokens: Tokens, storage: Storage, token: str) -> None:
    with pytest.raises(WherryError) as caught:
        await tokens.principal(token)
    assert caught.value.code == "unauthenticated"
    assert storage.asked == 0
