"""Argon2id, a few at a time and outside the event loop: each hash takes 19 MiB and some 30 ms of a core."""

import asyncio
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.errors import WherryError

P = ParamSpec("P")
R = TypeVar("R")

MEMORY_KIB, ROUNDS, LANES = 19 * 1024, 2, 1
AT_ONCE_MOST = 4
#: Logins that may wait for a turn; a flood of them is refused instead of piled up.
WAITING_MOST = 64


class Passwords:
    """Hashes and checks passwords.

    Args:
        at_once: hashes under way at any time; None is one per core, at most AT_ONCE_MOST.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._hasher = PasswordHasher(time_cost=ROUNDS, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._turn = asyncio.Semaphore(at_once or min(AT_ONCE_MOST, os.cpu_count() or 1))
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash to keep.

        Raises:
            WherryError: ``throttled``: too many are waiting.
        """
        return await self._take_turn(self._hasher.hash, password)

    async def matches(self, kept: str | None, password: str) -> bool:
        """Return whether *password* is the one behind *kept*. No hash at all (no such user) takes the same time.

        Raises:
            WherryError: ``throttled``: too many are waiting.
        """
        if self._nobody is None:
            self._nobody = await self.hash("a password that nobody has")
        ok = await self._take_turn(self._verify, kept or self._nobody, password)
        return ok and kept is not None

    def is_outdated(self, kept: str) -> bool:
        """Return whether the hash was made with weaker settings than today's."""
        return self._hasher.check_needs_rehash(kept)

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _take_turn(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._waiting >= WAITING_MOST:
            raise WherryError("throttled", "Too many are logging in: try again in a moment.", retryable=True)
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work, *args, **kwargs)
        finally:
            self._waiting -= 1
