"""Answers in pieces, and what they hold meanwhile."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest
from starlette.types import Message

from services.gateway.routes.http import Stream


class Reader:
    """A client that takes no more after the first piece, and goes away."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.has_some = asyncio.Event()

    async def receive(self) -> Message:
        """Tell that the client is gone, once it has something."""
        await self.has_some.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message in."""
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_some.set()
            await asyncio.Event().wait()


async def unclean() -> AsyncGenerator[bytes, None]:
    try:
        yield b"one"
    finally:
        raise ConnectionError("the other side is gone too")


async def test_a_place_is_given_back_whatever_goes_wrong_when_its_stream_ends() -> None:
    held, reader = AsyncExitStack(), Reader()
    given_back = asyncio.Event()
    held.callback(given_back.set)
    with pytest.raises(ConnectionError):
        await Stream(unclean(), held)({"type": "http"}, reader.receive, reader.send)
    assert given_back.is_set()
