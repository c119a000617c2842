import asyncio
from typing import Any

import pytest

from services.gateway.shell import waiting
from services.gateway.shell.waiting import Waiting
from shared.errors import WherryError
from shared.requests.accounts import Principal

FREE = Principal(user_id="u1", name="anna")
LIMITED = Principal(user_id="u2", name="boris", queued_max=3)


class Storage:
    """Counts how often it is asked, and lets a test say what waits."""

    def __init__(self, count: int = 0) -> None:
        self.count, self.asked = count, 0

    async def __call__(self, _: Principal) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        return self.count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(waiting, "monotonic", lambda: now[0])
    return now


async def hand_in(limit: Waiting, principal: Principal = LIMITED) -> str:
    try:
        async with limit.place(principal):
            await asyncio.sleep(0)
    except WherryError as error:
        return error.code
    return "ok"


async def test_for_an_owner_without_a_limit_nobody_is_asked() -> None:
    storage = Storage(10**6)
    assert [await hand_in(Waiting(storage), FREE) for _ in range(3)] == ["ok"] * 3
    assert storage.asked == 0


async def test_the_queue_fills_up_to_the_limit_with_one_question_however_many_come_at_once(clock: list[float]) -> None:
    storage = Storage(1)
    limit = Waiting(storage)
    told = await asyncio.gather(*(hand_in(limit) for _ in range(50)))
    assert (told.count("ok"), told.count("quota_queued"), storage.asked) == (2, 48, 1)
    clock[0] += waiting.COUNT_LASTS_S + 0.1
    storage.count = 0  # all have started
    assert [await hand_in(limit) for _ in range(4)] == ["ok", "ok", "ok", "quota_queued"]
    assert storage.asked == 2


async def test_what_was_not_recorded_does_not_count(clock: list[float]) -> None:
    limit = Waiting(Storage(2))
    assert clock
    with pytest.raises(ValueError, match="refused"):
        async with limit.place(LIMITED):
            raise ValueError("refused")
    assert [await hand_in(limit) for _ in range(2)] == ["ok", "quota_queued"]


async def test_what_is_under_way_counts_also_after_a_new_count(clock: list[float]) -> None:
    limit = Waiting(Storage(1))
    go_on = asyncio.Event()

    async def slowly() -> None:
        async with limit.place(LIMITED):
            await go_on.wait()

    slow: list[Any] = [asyncio.create_task(slowly()) for _ in range(2)]
    await asyncio.sleep(0.01)
    clock[0] += waiting.COUNT_LASTS_S + 0.1
    assert await hand_in(limit) == "quota_queued"
    go_on.set()
    await asyncio.gather(*slow)


async def test_a_limit_of_nothing_lets_nothing_in() -> None:
    assert await hand_in(Waiting(Storage()), LIMITED.model_copy(update={"queued_max": 0})) == "quota_queued"
