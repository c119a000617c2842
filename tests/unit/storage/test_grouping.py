import asyncio
from collections.abc import Sequence

import pytest

from services.storage.shell.grouping import Grouped
from shared.errors import Unavailable


class Writer:
    """Writes when it is let; remembers the groups."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.let = asyncio.Event()

    async def write(self, things: Sequence[str]) -> list[str]:
        self.groups.append(list(things))
        await self.let.wait()
        if "bad" in things:
            raise ValueError("bad")
        return [thing.upper() for thing in things]


def grouped(writer: Writer, *, at_once: int = 1, waiting_bytes: int = 1000) -> Grouped[str, str]:
    return Grouped(writer.write, len, at_once=at_once, group_most=3, group_bytes=10, waiting_bytes=waiting_bytes)


async def test_what_arrives_during_a_write_goes_together_in_the_next() -> None:
    writer = Writer()
    group = grouped(writer)
    calls = [asyncio.create_task(group.do(thing)) for thing in "abcde"]
    await asyncio.sleep(0)
    writer.let.set()
    assert await asyncio.gather(*calls) == list("ABCDE")
    assert writer.groups == [["a", "b", "c"], ["d", "e"]]


async def test_a_group_has_no_more_bytes_than_it_may_but_at_least_one_thing() -> None:
    writer = Writer()
    group = grouped(writer)
    writer.let.set()
    things = ["x" * 20, "y" * 6, "z" * 6]
    assert await asyncio.gather(*(group.do(thing) for thing in things)) == [thing.upper() for thing in things]
    assert [len(one) for one in writer.groups] == [1, 1, 1]


async def test_a_failure_reaches_everyone_in_the_group_and_the_next_goes_on() -> None:
    writer = Writer()
    group = grouped(writer)
    writer.let.set()
    results = await asyncio.gather(*(group.do(thing) for thing in ("a", "bad", "c", "d")), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError, ValueError, str]
    assert await group.do("e") == "E"


async def test_when_too_much_waits_callers_are_told_to_come_back() -> None:
    writer = Writer()
    group = grouped(writer, waiting_bytes=4)
    calls = [asyncio.create_task(group.do("xx")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await group.do("x")
    writer.let.set()
    await asyncio.gather(*calls)
    assert await group.do("x") == "X"


async def test_a_caller_that_gives_up_does_not_disturb_the_others() -> None:
    writer = Writer()
    group = grouped(writer)
    first, second = (asyncio.create_task(group.do(thing)) for thing in "ab")
    await asyncio.sleep(0)
    first.cancel()
    writer.let.set()
    assert await second == "B"
