"""Group commit: whoever waits for a record hears how it went, whatever happens meanwhile."""

import asyncio
from collections.abc import Sequence

from shared import wire
from shared.bus.group import Group
from shared.errors import Conflict, Unavailable
from shared.wire import Entry, Stored


def entry(number: int) -> Entry:
    return Entry("wherry.request.o1.j1.cancel", b"", {wire.MSG_ID: f"e{number}"})


async def test_a_bus_that_is_closed_while_each_of_a_refused_batch_is_stored_alone_tells_all_of_them():
    alone = asyncio.Event()

    async def write(entries: Sequence[Entry], stream: str, *, suspect: bool = False) -> list[Stored]:
        if len(entries) > 1:
            raise Conflict("one of them came too late")
        alone.set()
        return await asyncio.Future()

    group = Group(write, "S")
    running = asyncio.create_task(group.run())
    waiting = [asyncio.create_task(group.add(entry(number))) for number in range(2)]
    async with asyncio.timeout(60):
        await alone.wait()
        running.cancel()
        await asyncio.wait([running])
    done, _ = await asyncio.wait(waiting, timeout=1)
    assert [type(one.exception()) for one in done] == [Unavailable, Unavailable]
