"""Live messages for one reader, bounded: whoever reads too slowly is told so and let go."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from shared.bus import Bus, Received
from shared.channels import Channel
from shared.errors import WherryError


class TooSlowError(WherryError):
    """The reader left more lying than it may."""

    def __init__(self) -> None:
        super().__init__("throttled", "The reader was too slow.")


class Inbox:
    """What arrived and was not taken yet, up to *bytes_max*."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[Received[Any]] = deque()
        self._bytes = 0
        self._overflown = False
        self._arrived = asyncio.Event()

    def put(self, message: Received[Any]) -> None:
        """Take a message in; from the first that is too much on, none."""
        self._overflown = self._overflown or self._bytes + len(message.body) > self._bytes_max
        if not self._overflown:
            self._waiting.append(message)
            self._bytes += len(message.body)
        self._arrived.set()

    def wake(self) -> None:
        """Let a waiting reader look around."""
        self._arrived.set()

    async def get(self, wait_s: float) -> Received[Any] | None:
        """Return the next message, or None after *wait_s* seconds of silence or when woken.

        Raises:
            TooSlowError: messages had to be thrown away.
        """
        if not self._waiting and not self._overflown:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if self._overflown:
            raise TooSlowError
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._bytes -= len(message.body)
        return message


@asynccontextmanager
async def listening(
    bus: Bus, bytes_max: int, *wanted: tuple[Channel[Any, Any], dict[str, str]]
) -> AsyncGenerator[Inbox, None]:
    """Give an inbox that receives every channel in *wanted*, narrowed by its parameters, while the block runs."""
    inbox = Inbox(bytes_max)
    async with AsyncExitStack() as stack:
        for channel, params in wanted:
            subscription = await bus.listen(channel, inbox.put, **params)
            stack.push_async_callback(subscription.stop)
        yield inbox
