"""Snapshots kept and found again, and the log read from there on until it is caught up with."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from services.scheduler.core import snapshot
from services.scheduler.core.facts import Fact, read_fact
from services.scheduler.core.replay import Replay
from shared import observe
from shared.bus import Bus, Received
from shared.channels import JOBS, SNAPSHOT
from shared.job import Job

#: Everything that a scheduler reads of the log.
LOG = ("wherry.job.>", "wherry.attempt.>", "wherry.request.>")

_SLOTS = ("a", "b")  # the last two snapshots; one is written while the other is whole
_log = observe.logger("recovery")


def facts_of(messages: Iterable[Received[Any]]) -> list[Fact]:
    """Return what *messages* of the log mean; one that cannot be read is logged and changes nothing."""
    facts: list[Fact] = []
    for message in messages:
        fact = read_fact(message.subject, message.seq, message.event) if message.event is not None else None
        if fact is None:
            _log.error("log_entry_ignored", subject=message.subject, seq=message.seq, problem=message.problem)
        else:
            facts.append(fact)
    return facts


class Snapshots:
    """The two last snapshots in their stream."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._next = 0

    async def save(self, position: int, jobs: list[tuple[Job, int]]) -> None:
        """Keep a snapshot in place of the older one. The head goes last: without it the parts are nothing."""
        slot = _SLOTS[self._next]
        head, parts = await asyncio.to_thread(snapshot.encode, position, jobs)
        for number, part in enumerate(parts):
            await self._bus.put(_part(slot, number), part, deadline_s=15)
        await self._bus.put(_head(slot), head, deadline_s=15)
        self._next = 1 - self._next
        _log.debug("snapshot_saved", position=position, jobs=len(jobs), parts=len(parts))

    async def load(self) -> snapshot.Snapshot | None:
        """Return the newest whole snapshot that the log reaches, or None."""
        found = [(slot, kept[1]) for slot in _SLOTS if (kept := await self._bus.get_last(SNAPSHOT, _head(slot)))]
        heads = [(read[0], read[1], slot, head) for slot, head in found if (read := snapshot.read_head(head))]
        last_seq = await self._bus.stream_last_seq(JOBS)
        for position, count, slot, head in sorted(heads, reverse=True):
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


async def replay(bus: Bus, snapshots: Snapshots) -> tuple[Replay, AsyncIterator[list[Received[Any]]]]:
    """Return what the log says, caught up, and the reader that goes on from there."""
    replayed = Replay()
    if found := await snapshots.load():
        replayed = Replay(found.position, {job.id: (job, seq) for job, seq in found.jobs})
    reader = bus.follow(JOBS, LOG, start_seq=replayed.position + 1)
    count = 0
    async for messages in reader:
        if not messages:
            break
        count += len(messages)
        for fact in facts_of(messages):
            replayed.feed(fact)
    _log.info("recovered", position=replayed.position, jobs=len(replayed.jobs), replayed=count)
    return replayed, reader


def _head(slot: str) -> str:
    return f"wherry.snapshot.scheduler.{slot}.head"


def _part(slot: str, number: int) -> str:
    return f"wherry.snapshot.scheduler.{slot}.{number}"
