"""Who leads: a lease on one subject. It is for efficiency; expected sequences are what correctness rests on."""

import asyncio

from shared import observe
from shared.bus import Bus
from shared.channels import LEADER
from shared.clock import monotonic
from shared.errors import Conflict, Unavailable

SUBJECT = "wherry.leader.scheduler"
_FREE = b"free"
_log = observe.logger("lease")


class DeposedError(Exception):
    """Somebody else leads now, or may."""


class Lease:
    """The lease of one scheduler.

    Nobody's clock is compared with another's: a standby takes over when it has itself seen no renewal for the length
    of the lease, and a leader gives up when it has itself not renewed for as long.
    """

    def __init__(self, bus: Bus, holder: str, length_s: float, renew_s: float) -> None:
        self._bus = bus
        self._holder = holder.encode()
        self._length_s = length_s
        self._renew_s = renew_s
        self._seq = 0

    async def acquire(self) -> int:
        """Wait until this scheduler leads, and return its epoch."""
        seen, since = -1, monotonic()
        while True:
            found = await self._look()
            seq, body = found or (0, _FREE)
            if seq != seen:
                seen, since = seq, monotonic()
            if (body == _FREE or monotonic() - since > self._length_s) and await self._take(seq):
                _log.info("leading", epoch=self._seq)
                return self._seq
            await asyncio.sleep(self._renew_s / 2)

    async def keep(self) -> None:
        """Renew for ever.

        Raises:
            DeposedError: somebody else has taken over, or could have.
        """
        renewed = monotonic()
        while True:
            await asyncio.sleep(self._renew_s)
            started = monotonic()
            try:
                left_s = self._length_s - (started - renewed)
                if left_s <= 0:
                    raise DeposedError("the lease ran out")
                self._seq = await self._bus.put(SUBJECT, self._holder, expect_seq=self._seq, deadline_s=left_s)
            except Conflict as conflict:
                raise DeposedError("another scheduler leads") from conflict
            except Unavailable as problem:
                raise DeposedError("the lease could not be renewed") from problem
            renewed = started

    async def release(self) -> None:
        """Let the next one lead at once, if this one still does."""
        try:
            await self._bus.put(SUBJECT, _FREE, expect_seq=self._seq, deadline_s=1)
        except (Conflict, Unavailable):
            _log.info("lease_not_released")

    async def _look(self) -> tuple[int, bytes] | None:
        while True:
            try:
                return await self._bus.get_last(LEADER, SUBJECT)
            except Unavailable:
                await asyncio.sleep(self._renew_s)

    async def _take(self, seq: int) -> bool:
        try:
            self._seq = await self._bus.put(SUBJECT, self._holder, expect_seq=seq, deadline_s=self._length_s / 2)
        except (Conflict, Unavailable):
            return False
        return True
