"""Snapshots kept and found again, and the log read from there on until it is caught up with."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from services.scheduler.adapters import metrics
from services.scheduler.core import snapshot
from services.scheduler.core.facts import Fact, Recorded, read_fact
from services.scheduler.core.quarantine import Quarantine
from services.scheduler.core.replay import Replay
from shared import observe
from shared.bus import Bus, Received
from shared.channels import JOBS, SNAPSHOT
from shared.deadletters import DeadLetters
from shared.job import Job

#: Everything that a scheduler reads of the log.
LOG = ("wherry.job.>", "wherry.attempt.>", "wherry.request.>")

_LOOK_AGAIN_S = 1.0
_READ_AHEAD = 16  # lists of messages that are read before the leader takes them

_SLOTS = ("a", "b")  # the last two snapshots; one is written while the other is whole
_log = observe.logger("recovery")


def read_facts(
    messages: Iterable[Received[Any]], quarantine: Quarantine
) -> tuple[list[Fact], list[tuple[Received[Any], str]]]:
    """Return what *messages* of the log mean, and those that cannot be read, with the reason.

    What is about jobs that were set aside is passed over.
    """
    facts: list[Fact] = []
    unreadable: list[tuple[Received[Any], str]] = []
    for message in messages:
        fact = read_fact(message.subject, message.seq, message.event) if message.event is not None else None
        if fact is None:
            unreadable.append((message, message.problem or "it contradicts its subject, or has no place in the log"))
        elif _job_id(fact) not in quarantine.jobs:
            facts.append(fact)
        elif isinstance(fact, Recorded):
            quarantine.pass_over(fact.job, fact.seq)
    return facts, unreadable


def _job_id(fact: Fact) -> str:
    return fact.job.id if isinstance(fact, Recorded) else fact.job_id


class Snapshots:
    """The two last snapshots in their stream."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._next = 0

    async def save(
        self,
        position: int,
        jobs: list[tuple[Job, int]],
        carried: snapshot.Carried,
        items: dict[str, list[bytes]] | None = None,
    ) -> None:
        """Keep a snapshot in place of the older one. The head goes last: without it the parts are nothing."""
        slot = _SLOTS[self._next]
        head, parts = await asyncio.to_thread(snapshot.encode, position, jobs, carried, items)
        for number, part in enumerate(parts):
            await self._bus.put(_part(slot, number), part, deadline_s=15)
        await self._bus.put(_head(slot), head, deadline_s=15)
        self._next = 1 - self._next
        _log.debug("snapshot_saved", position=position, jobs=len(jobs), parts=len(parts))

    async def aim(self) -> None:
        """Write the next snapshot in place of the older one, also if others have written some since `load`."""
        if heads := await self._heads():
            self._next = 1 - _SLOTS.index(heads[0][2])

    async def newest(self) -> tuple[int, snapshot.Carried]:
        """Return the newest snapshot's position, and what it carries beside the jobs; 0 and nothing without one."""
        heads = await self._heads()
        return (heads[0][0], snapshot.read_carried(heads[0][3])) if heads else (0, snapshot.Carried())

    async def load(self) -> snapshot.Snapshot | None:
        """Return the newest whole snapshot that the log reaches, or None."""
        last_seq = await self._bus.stream_last_seq(JOBS)
        for position, count, slot, head in await self._heads():
            if position > last_seq:
                _log.error("snapshot_ahead_of_log", position=position, last_seq=last_seq)
                continue
            kept = [await self._bus.get_last(SNAPSHOT, _part(slot, number)) for number in range(count)]
            whole = snapshot.decode(head, [part[1] for part in kept if part is not None])
            if whole is not None:
                self._next = 1 - _SLOTS.index(slot)
                return whole
            _log.error("snapshot_broken", slot=slot, position=position)
        return None

    async def _heads(self) -> list[tuple[int, int, str, bytes]]:
        """Return position, number of parts, slot and head of each snapshot, the newest first."""
        found = [(slot, kept[1]) for slot in _SLOTS if (kept := await self._bus.get_last(SNAPSHOT, _head(slot)))]
        heads = [(read[0], read[1], slot, head) for slot, head in found if (read := snapshot.read_head(head))]
        return sorted(heads, reverse=True)


class Standby:
    """Follows the log while somebody else leads: taking over then costs no more than the last moment's events.

    One task reads all the time, so that nothing is read twice and nothing is missed when this scheduler begins to lead.
    """

    def __init__(self, bus: Bus, quarantine: Quarantine) -> None:
        self.snapshots = Snapshots(bus)
        self.letters = DeadLetters(bus)
        self._bus = bus
        self._quarantine = quarantine
        self._replayed = Replay()
        self._seen = 0
        self._moved = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._rest: asyncio.Queue[list[Received[Any]]] | None = None  # from the take-over on

    async def follow(self) -> None:
        """Take in the log from the newest snapshot on, for ever."""
        if found := await self.snapshots.load():
            jobs = {job.id: (job, seq) for job, seq in found.jobs}
            for job_id in self._quarantine.jobs & jobs.keys():
                self._quarantine.pass_over(*jobs.pop(job_id))
            self._replayed = Replay(found.position, jobs, books=found.books)
        self._seen = self._replayed.position
        async for messages in self._bus.follow(JOBS, LOG, start_seq=self._seen + 1):
            if not messages:
                self._caught_up.set()
                _log.info("caught_up", position=self._seen, jobs=len(self._replayed.jobs))
            elif self._rest is not None:
                await self._rest.put(messages)
            else:
                self._feed(messages)

    async def caught_up(self) -> None:
        """Return once all has been taken in that the log had at the start."""
        await self._caught_up.wait()

    async def take_over(self) -> Replay:
        """Return what the log says, with all that it has now; what comes after is in `rest`."""
        await self.snapshots.aim()
        while self._seen < await self._last_seq():
            self._moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._moved.wait()
        self._rest = asyncio.Queue(_READ_AHEAD)
        _log.info("taken_over", position=self._seen, jobs=len(self._replayed.jobs))
        return self._replayed

    async def rest(self) -> AsyncIterator[list[Received[Any]]]:
        """Yield what the log holds after `take_over`, for ever."""
        if self._rest is None:
            raise RuntimeError("nobody has taken over")
        while True:
            yield await self._rest.get()

    def _feed(self, messages: list[Received[Any]]) -> None:
        facts, unreadable = read_facts(messages, self._quarantine)
        if unreadable:
            self.letters.begin(JOBS, unreadable)
        for fact in facts:
            self._replayed.feed(fact)
        self._seen = messages[-1].seq
        metrics.POSITION.set(self._seen)
        self._moved.set()

    async def _last_seq(self) -> int:
        last = await self._bus.last(JOBS, ">")  # the stream's own last sequence may be of a message that has expired
        return last.seq if last else 0


def _head(slot: str) -> str:
    return f"wherry.snapshot.scheduler.{slot}.head"


def _part(slot: str, number: int) -> str:
    return f"wherry.snapshot.scheduler.{slot}.{number}"
