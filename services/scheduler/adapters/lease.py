"""Who leads: a lease on one subject. It is for efficiency; expected sequences are what correctness rests on."""

import asyncio

from services.scheduler.settings import NOBODY
from shared import observe
from shared.bus import Bus
from shared.channels import LEADER
from shared.clock import monotonic
from shared.errors import Conflict, Unavailable

SUBJECT = "wherry.leader.scheduler"
#: How far an epoch that somebody else has seen can be above one's own and is believed.
EPOCH_LEAP_MAX = 2**32
#: What every number on an epoch's way can hold.
EPOCH_MAX = 2**53
#: For the answer to a release; without it the next leader waits for the end of the lease.
_RELEASE_S = 3.0
_FREE = NOBODY.encode()
_log = observe.logger("lease")


class DeposedError(Exception):
    """Somebody else leads now, or may."""


class Lease:
    """The lease of one scheduler.

    Nobody's clock is compared with another's: a standby takes over when it has itself seen no renewal for the length
    of the lease, and a leader gives up when it has itself not renewed for as long. A scheduler that has just been
    started and finds the lease under its own name does not wait: whoever had it is no more. Once only, should two of
    one name run after all: they would take it from each other for ever.

    The epoch of a time of leading is the sequence under which the lease was won, plus a base that the lease's body
    carries on from holder to holder. Sequences only rise, and so do epochs. The base is 0, until a node or the log
    knows of an epoch that is higher than the leader's, because the broker's data was lost or set back: then the leader
    writes a base into its next renewal that lifts its epoch above. What it is told is believed only so far: a node that
    lies costs at most `EPOCH_LEAP_MAX` a renewal.
    """

    def __init__(self, bus: Bus, holder: str, length_s: float, renew_s: float) -> None:
        self._bus = bus
        self._holder = holder.encode()
        self._length_s = length_s
        self._renew_s = renew_s
        self._seq = 0  # of the last renewal; 0 while not held
        self._base = 0
        self._claimed = 0
        self._epoch = 0
        self._is_new = True

    @property
    def epoch(self) -> int:
        """Return the epoch under which this scheduler leads, or led last. It can rise while it leads, never fall."""
        return self._epoch

    def claim(self, epoch: int) -> None:
        """Take note that somebody has seen *epoch*: the next renewal lifts this lease's own above it."""
        if epoch <= self._epoch:
            return
        if epoch > min(self._epoch + EPOCH_LEAP_MAX, EPOCH_MAX):
            _log.error("epoch_claim_refused", epoch=self._epoch, claimed=epoch)
            return
        self._claimed = max(self._claimed, epoch)

    async def acquire(self) -> int:
        """Wait until this scheduler leads, and return its epoch."""
        self._seq = 0
        seen, since = -1, monotonic()
        while True:
            found = await self._look()
            seq, body = found or (0, _FREE)
            holder, base = _read(body)
            if seq != seen:
                seen, since = seq, monotonic()
            is_over = holder == _FREE or monotonic() - since > self._length_s
            is_over = is_over or (self._is_new and holder == self._holder)
            if is_over and await self._take(seq, base):
                self._is_new = False
                _log.info("leading", epoch=self._epoch)
                return self._epoch
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
                await self._renew(left_s)
            except Conflict as conflict:
                raise DeposedError("another scheduler leads") from conflict
            except Unavailable as problem:
                raise DeposedError("the lease could not be renewed") from problem
            renewed = started

    async def release(self) -> None:
        """Let the next one lead at once, if this one still does."""
        if not self._seq:
            return
        try:
            await self._give_up(self._seq)
        except (Conflict, Unavailable):
            _log.info("lease_not_released")
        self._seq = 0

    async def _give_up(self, seq: int) -> None:
        try:
            await self._bus.put(SUBJECT, _body(_FREE, self._base), expect_seq=seq, deadline_s=_RELEASE_S)
        except Conflict:
            # Perhaps by a renewal of one's own, which was cancelled while it was on its way.
            found_seq, body = await self._bus.get_last(LEADER, SUBJECT) or (0, _FREE)
            holder, base = _read(body)
            if holder != self._holder:
                raise
            await self._bus.put(SUBJECT, _body(_FREE, base), expect_seq=found_seq, deadline_s=_RELEASE_S)

    async def _renew(self, left_s: float) -> None:
        # The new sequence is above the present one, and so the new epoch above what was claimed.
        base = self._base if self._claimed <= self._epoch else max(self._base, self._claimed - self._seq)
        body = _body(self._holder, base)
        self._seq = await self._bus.put(SUBJECT, body, expect_seq=self._seq, deadline_s=left_s)
        if base != self._base:
            before, self._base, self._epoch = self._epoch, base, base + self._seq
            _log.warning("epoch_lifted", before=before, epoch=self._epoch, claimed=self._claimed)

    async def _look(self) -> tuple[int, bytes] | None:
        while True:
            try:
                return await self._bus.get_last(LEADER, SUBJECT)
            except Unavailable:
                await asyncio.sleep(self._renew_s)

    async def _take(self, seq: int, base: int) -> bool:
        body = _body(self._holder, base)
        try:
            won = await self._bus.put(SUBJECT, body, expect_seq=seq, deadline_s=self._length_s / 2)
        except (Conflict, Unavailable):
            return False
        self._seq, self._base, self._epoch = won, base, base + won
        return True


def _body(holder: bytes, base: int) -> bytes:
    return holder + b" %d" % base if base else holder


def _read(body: bytes) -> tuple[bytes, int]:
    holder, _, base = body.partition(b" ")
    return holder, int(base) if base.isdigit() else 0
