"""Places that several users share, so that nobody's slow requests keep all others waiting."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from services.gateway.core.shares import Shares, Wish
from shared.errors import WherryError

#: Requests of one owner that wait at a time.
_WAITING_MAX = 256


class FairPlaces:
    """How much there is at once of something; each owner may hold as much as is left for the others (`core.shares`).

    Args:
        total: how much there is.
        wait_s: seconds to wait for a part.
        what: for the sentence that sends away.
    """

    def __init__(self, total: int, wait_s: float, what: str) -> None:
        self._shares = Shares(total)
        self._wait_s, self._what = wait_s, what
        self._turns: dict[Wish, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def taken(self, owner: str, amount: int = 1) -> AsyncGenerator[None, None]:
        """Hold *amount*, or all that there is if it is less, while the block runs.

        Raises:
            WherryError: ``busy``.
        """
        if not amount:
            yield
            return
        wish = Wish(owner, min(amount, self._shares.total))
        await self._take(wish)
        try:
            yield
        finally:
            self._tell(self._shares.leave(wish))

    async def _take(self, wish: Wish) -> None:
        if len(self._shares.waiting.get(wish.owner, ())) >= _WAITING_MAX:
            raise self._busy()
        if self._shares.take(wish):
            return
        turn = self._turns[wish] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            self._tell(self._shares.leave(wish))  # it may have been given at this very moment
            if isinstance(error, TimeoutError):
                raise self._busy() from None
            raise
        finally:
            self._turns.pop(wish, None)

    def _tell(self, served: list[Wish]) -> None:
        for wish in served:
            if not (turn := self._turns[wish]).done():  # else whoever waited is about to leave
                turn.set_result(None)

    def _busy(self) -> WherryError:
        return WherryError("busy", f"Too many {self._what} at once; try again.", retryable=True)
