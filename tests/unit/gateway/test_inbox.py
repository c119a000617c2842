import asyncio

import pytest

from services.gateway.adapters.inbox import Inbox, TooSlowError
from shared.bus import Received


def message(size: int) -> Received:
    return Received("s", {}, b"x" * size, None, None, None, None)


async def test_messages_come_in_order_and_silence_is_none() -> None:
    inbox = Inbox(100)
    first, second = message(1), message(2)
    inbox.put(first)
    inbox.put(second)
    assert await inbox.get(1) is first
    assert await inbox.get(1) is second
    assert await inbox.get(0.01) is None


async def test_a_reader_that_leaves_too_much_lying_is_let_go() -> None:
    inbox = Inbox(10)
    inbox.put(message(8))
    inbox.put(message(8))
    with pytest.raises(TooSlowError):
        await inbox.get(1)


async def test_what_was_taken_makes_room() -> None:
    inbox = Inbox(10)
    for _ in range(5):
        inbox.put(message(8))
        assert await inbox.get(1) is not None


async def test_a_waiting_reader_can_be_woken() -> None:
    inbox = Inbox(10)
    waiting = asyncio.create_task(inbox.get(30))
    await asyncio.sleep(0)
    inbox.wake()
    async with asyncio.timeout(60):
        assert await waiting is None
