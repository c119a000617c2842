"""Places and bytes of requests to services: each owner holds as much as is left for the others."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core.shares import Shares, Wish
from services.gateway.shell.fair_places import FairPlaces
from shared.errors import WherryError


def held(shares: Shares, owner: str, count: int) -> list[Wish]:
    """Return what *owner* has got of *count* wishes; it waits for the others."""
    wishes = [Wish(owner, 1) for _ in range(count)]
    return [wish for wish in wishes if shares.take(wish)]


def test_who_wants_everything_gets_half_and_the_next_one_half_of_the_rest_at_once() -> None:
    shares = Shares(8)
    assert [len(held(shares, owner, 8)) for owner in "abc"] == [4, 2, 1]


def test_who_comes_late_waits_for_nobody_who_holds_more_and_in_the_end_all_hold_the_same() -> None:
    shares = Shares(8)
    has = {owner: held(shares, owner, 8) for owner in "ab"}
    for _ in range(4):  # one ends of whoever holds the most, and the freed place goes to whoever holds the least
        most = max(has.values(), key=len)
        for wish in shares.leave(most.pop()):
            has[wish.owner].append(wish)
    assert {owner: len(mine) for owner, mine in has.items()} == {"a": 3, "b": 3}  # two are left for a third


def test_large_wishes_are_given_whole_when_there_is_room_and_small_ones_of_others_pass() -> None:
    shares = Shares(100)
    large, small = Wish("a", 60), Wish("b", 20)
    assert shares.take(large)
    assert shares.take(small)
    again, other = Wish("a", 60), Wish("c", 15)
    assert not shares.take(again)
    assert shares.take(other)
    assert shares.leave(small) == []
    assert shares.leave(large) == [again]


@given(st.integers(1, 20), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8), st.booleans()), max_size=80))
def test_never_is_more_given_than_there_is_and_whoever_can_be_served_does_not_wait(
    total: int, moves: list[tuple[str, int, bool]]
) -> None:
    shares, given_, waiting = Shares(total), list[Wish](), list[Wish]()
    for owner, amount, goes in moves:
        if goes and (given_ or waiting):
            mine = given_ or waiting
            served = shares.leave(mine.pop(0))
            waiting = [one for one in waiting if one not in served]
            given_ += served
        else:
            wish = Wish(owner, min(amount, total))
            (given_ if shares.take(wish) else waiting).append(wish)
        assert shares.free == total - sum(one.amount for one in given_) >= 0
        for queue in shares.waiting.values():
            assert shares.held.get(queue[0].owner, 0) + queue[0].amount > shares.free
    for one in [*waiting, *given_]:
        shares.leave(one)
    assert (shares.free, shares.held, shares.waiting) == (total, {}, {})


async def test_slow_requests_of_one_owner_leave_room_for_others() -> None:
    places = FairPlaces(8, 0.05, "requests")
    end = asyncio.Event()

    async def slow() -> None:
        async with places.taken("slow"):
            await end.wait()

    asking = [asyncio.create_task(slow()) for _ in range(20)]
    await asyncio.sleep(0)
    async with places.taken("quick"), places.taken("quick"):
        with pytest.raises(WherryError, match="Too many requests at once"):
            async with places.taken("slow"):
                pass
    end.set()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(one) for one in ended].count(type(None)) >= 4


async def take(places: FairPlaces) -> None:
    async with places.taken("a"):
        pass


async def test_who_stops_waiting_keeps_nothing_and_hinders_nobody() -> None:
    places = FairPlaces(1, 10, "requests")

    async with places.taken("a"):
        first, second = asyncio.create_task(take(places)), asyncio.create_task(take(places))
        await asyncio.sleep(0)
        first.cancel()
        # The place comes free at the very moment at which the first is cancelled.
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(60), places.taken("b"):
        pass


async def test_a_place_that_was_given_to_who_is_cancelled_before_it_wakes_goes_on_to_the_next() -> None:
    places = FairPlaces(1, 10, "requests")

    async with places.taken("a"):
        first, second = asyncio.create_task(take(places)), asyncio.create_task(take(places))
        await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(60):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_more_than_there_is_is_all_that_there_is_and_nothing_needs_no_place() -> None:
    bytes_ = FairPlaces(10, 0.01, "bodies")
    async with bytes_.taken("a", 1000), bytes_.taken("b", 0):
        with pytest.raises(WherryError):
            async with bytes_.taken("b"):
                pass
