"""The log of the fleet: followed from its beginning, for it is short, and written when nodes have changed."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, QuotaGiven, Wish, read_fleet_fact
from services.scheduler.core.membership import NodeDecision
from services.scheduler.core.quarantine import Quarantine
from shared import observe
from shared.bus import Bus, Received, Record
from shared.channels import FLEET, NODE_CHANGED
from shared.deadletters import DeadLetters
from shared.fleet import NodeChanged

#: Everything on it: nodes, wishes and quotas.
LOG = ("wherry.fleet.>",)
_LOOK_AGAIN_S = 1.0
_log = observe.logger("fleet")


class FleetLog:
    """Keeps what has arrived until it is taken: of each node the last record and the wishes after it.

    Attributes:
        epoch: the highest that any record has.
    """

    def __init__(self, bus: Bus, letters: DeadLetters, some: asyncio.Event, quarantine: Quarantine) -> None:
        """Set *some* whenever there is something to take."""
        self.epoch = 0
        self._quarantine = quarantine
        self._bus = bus
        self._letters = letters
        self._some = some
        self._records: dict[str, NodeRecorded] = {}
        self._wishes: dict[str, list[Wish]] = {}
        self._quotas: dict[str, QuotaGiven] = {}
        self._seen = 0
        self._moved = asyncio.Event()
        self._caught_up = asyncio.Event()

    async def follow(self) -> None:
        """Take in the log, for ever."""
        async for messages in self._bus.follow(FLEET, LOG, start_seq=1):
            if not messages:
                self._caught_up.set()
                _log.info("fleet_caught_up", position=self._seen, nodes=len(self._records))
                continue
            self._feed(messages)
            self._seen = messages[-1].seq
            self._moved.set()

    async def caught_up(self) -> None:
        """Return once all has been taken in that the log had at the start."""
        await self._caught_up.wait()

    async def reach_end(self) -> None:
        """Return once all has been taken in that the log has now."""
        while self._seen < await self._last_seq():
            self._moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._moved.wait()

    def take(self) -> tuple[FleetFact, ...]:
        """Return what has arrived since the last time, in the log's order."""
        wishes = (wish for waiting in self._wishes.values() for wish in waiting)
        facts = sorted([*self._records.values(), *wishes, *self._quotas.values()], key=lambda fact: fact.seq)
        self._records, self._wishes, self._quotas = {}, {}, {}
        return tuple(facts)

    def put_back(self, wishes: Iterable[Wish]) -> None:
        """Hand *wishes* out again: what was decided about them could not be recorded."""
        for wish in wishes:
            self._wishes.setdefault(wish.node_id, []).append(wish)
            self._some.set()

    async def last(self, node_id: str) -> tuple[int, NodeRecorded | None]:
        """Return the last sequence under a node's subject (0: none), and its record if that can be read."""
        found = await self._bus.last(FLEET, NODE_CHANGED.subject(node_id=node_id))
        fact = read_fleet_fact(found.subject, found.seq, found.event) if found and found.event is not None else None
        return (found.seq if found else 0), (fact if isinstance(fact, NodeRecorded) else None)

    def to_record(self, decision: NodeDecision, epoch: int) -> Record:
        """Return what is to be written, if nobody has written about the node meanwhile."""
        node_id = decision.record.id
        data = NodeChanged(node=decision.record, epoch=epoch)
        event = self._bus.event(NODE_CHANGED, data, subject=node_id, causedby=decision.cause, node_id=node_id)
        expect = (NODE_CHANGED.subject(node_id=node_id), decision.expect_seq)
        return Record(NODE_CHANGED, {"node_id": node_id}, event, expect=expect)

    def replay(self, message: Received[Any]) -> str | None:
        """Take in a dead letter as if it had just come; return why that still cannot be, or None."""
        self._quarantine.release("fleet", str(message.seq))
        return next((why for _, why in self._read([message])), None)

    def _feed(self, messages: list[Received[Any]]) -> None:
        if unreadable := self._read(messages):
            self._letters.begin(FLEET, unreadable)

    def _read(self, messages: list[Received[Any]]) -> list[tuple[Received[Any], str]]:
        unreadable: list[tuple[Received[Any], str]] = []
        for message in messages:
            if str(message.seq) in self._quarantine.fleet:
                continue
            fact = read_fleet_fact(message.subject, message.seq, message.event) if message.event is not None else None
            match fact:
                case NodeRecorded():
                    self._records[fact.record.id] = fact
                    self.epoch = max(self.epoch, fact.epoch)
                    self._settle(fact)
                case Wish():
                    self._wishes.setdefault(fact.node_id, []).append(fact)
                case QuotaGiven():
                    self._quotas[fact.owner] = fact
                case None:
                    unreadable.append((message, message.problem or "it contradicts its subject"))
        self._some.set()
        return unreadable

    def _settle(self, fact: NodeRecorded) -> None:
        """Drop the wishes that the record holds already."""
        left = [wish for wish in self._wishes.pop(fact.record.id, ()) if wish.seq > fact.record.input_seq]
        if left:
            self._wishes[fact.record.id] = left

    async def _last_seq(self) -> int:
        last = await self._bus.last(FLEET, ">")
        return last.seq if last else 0
