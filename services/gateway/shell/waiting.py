"""How many jobs of an owner wait, for owners who may have only so many of them."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.clock import monotonic
from shared.errors import WherryError
from shared.requests.accounts import Principal

#: Seconds for which a count is believed; what is let in meanwhile is added to it here.
COUNT_LASTS_S = 1.0
_OWNERS_REMEMBERED = 10_000


@dataclass(slots=True)
class _Owner:
    """`waiting` is what storage counted, what was let in since, and what is `under_way`: not on the log yet."""

    waiting: int = 0
    under_way: int = 0
    counted_at: float = float("-inf")
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Waiting:
    """The limit of waiting jobs. Gateways count for themselves, so several at once may let in a few more.

    Args:
        count: asks how many jobs of somebody wait.
    """

    def __init__(self, count: Callable[[Principal], Awaitable[int]]) -> None:
        self._count = count
        self._owners: OrderedDict[str, _Owner] = OrderedDict()

    @asynccontextmanager
    async def place(self, principal: Principal) -> AsyncGenerator[None, None]:
        """Hold a place in the queue for a job that the block records; who has no limit always gets one.

        Raises:
            WherryError: ``quota_queued``: as many wait as may.
        """
        most = principal.queued_max
        if most is None:
            yield
            return
        owner = await self._counted(principal)
        if owner.waiting >= most:
            raise WherryError(
                "quota_queued",
                f"{owner.waiting} of your jobs wait, and your quota lets {most} wait: try again when some started.",
                retryable=True,
            )
        owner.waiting += 1
        owner.under_way += 1
        try:
            yield
        except BaseException:
            owner.waiting -= 1
            raise
        finally:
            owner.under_way -= 1

    async def _counted(self, principal: Principal) -> _Owner:
        owner = self._owners.setdefault(principal.user_id, _Owner())
        self._owners.move_to_end(principal.user_id)
        while len(self._owners) > _OWNERS_REMEMBERED:
            self._owners.popitem(last=False)
        async with owner.counting:
            if monotonic() - owner.counted_at > COUNT_LASTS_S:
                count = await self._count(principal)
                owner.waiting, owner.counted_at = count + owner.under_way, monotonic()
        return owner
