"""Group commit: what arrives while a write is under way goes together in the next one."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Grouped(Generic[T, R]):
    """Does things in groups.

    Args:
        act: does a group and returns an outcome for each, in order. If it raises, each caller gets that.
        size: bytes of one thing.
        at_once: groups under way at any time.
        group_most: things in a group.
        group_bytes: bytes in a group (one thing may have more).
        waiting_bytes: when this much waits, callers are told to come back.
    """

    def __init__(
        self,
        act: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        size: Callable[[T], int],
        *,
        at_once: int,
        group_most: int,
        group_bytes: int,
        waiting_bytes: int,
    ) -> None:
        self._act = act
        self._size = size
        self._at_once = at_once
        self._group_most = group_most
        self._group_bytes = group_bytes
        self._waiting_bytes = waiting_bytes
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._bytes = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def do(self, thing: T) -> R:
        """Do *thing* with others and return its outcome.

        Raises:
            Unavailable: too much waits already.
        """
        if self._bytes >= self._waiting_bytes:
            raise Unavailable("Storage has more to write than it can hold: send it again in a moment.")
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((thing, outcome))
        self._bytes += self._size(thing)
        if len(self._workers) < self._at_once:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await outcome

    async def _work(self) -> None:
        while self._waiting:
            await self._do_group(self._next_group())

    def _next_group(self) -> list[tuple[T, asyncio.Future[R]]]:
        group = [self._waiting.popleft()]
        total = self._size(group[0][0])
        while self._waiting and len(group) < self._group_most:
            total += self._size(self._waiting[0][0])
            if total > self._group_bytes:
                break
            group.append(self._waiting.popleft())
        return group

    async def _do_group(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            outcomes = await self._act([thing for thing, _ in group])
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), outcome in zip(group, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)
        finally:
            self._bytes -= sum(self._size(thing) for thing, _ in group)
