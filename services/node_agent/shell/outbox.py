"""Reports on their way to the log: in order for each attempt, repeated until acknowledged."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from services.node_agent.adapters.journal import Journal, Outgoing
from services.node_agent.core.container import Key
from services.node_agent.core.effects import Report
from shared import observe
from shared.bus import Bus
from shared.channels import (
    ATTEMPT_FINISHED,
    ATTEMPT_FINISHING,
    ATTEMPT_ITEMS,
    ATTEMPT_RUNNING,
    ATTEMPT_STARTING,
    Channel,
)
from shared.clock import utc_now
from shared.errors import Unavailable, WherryError
from shared.events import AttemptItems, ItemEnd
from shared.ids import new_id
from shared.states import AttemptEventName
from shared.wire import Record, event_model

CHANNELS: Mapping[AttemptEventName, Channel[Any, Any]] = {
    AttemptEventName.STARTING: ATTEMPT_STARTING,
    AttemptEventName.RUNNING: ATTEMPT_RUNNING,
    AttemptEventName.FINISHING: ATTEMPT_FINISHING,
    AttemptEventName.FINISHED: ATTEMPT_FINISHED,
    AttemptEventName.ITEMS: ATTEMPT_ITEMS,
}
_UNANSWERED_PAUSE_S = 0.2
_REFUSED_PAUSE_S = _BROKEN_PAUSE_S = 5.0
_log = observe.logger("outbox")


def event_of(bus: Bus, node: str, report: Report) -> Outgoing:
    """Return *report* as the event that every try will send; its id is the same after a restart."""
    event = bus.event(CHANNELS[report.name], report.data, subject=report.key.job_id)
    event = event.model_copy(update={"id": f"{node}-{report.id}"})
    return Outgoing(report.id, report.key, report.name, event.to_bytes())


def items_event(bus: Bus, node: str, key: Key, ends: tuple[ItemEnd, ...]) -> Outgoing:
    """Return what has become of items as an event, under an id of its own: an item may end twice, in two tries."""
    id_ = f"{key.job_id}-{key.attempt}-{AttemptEventName.ITEMS.value}-{new_id('r')}"
    data = AttemptItems(attempt=key.attempt, ends=ends, at=utc_now())
    event = bus.event(ATTEMPT_ITEMS, data, subject=key.job_id).model_copy(update={"id": f"{node}-{id_}"})
    return Outgoing(id_, key, AttemptEventName.ITEMS, event.to_bytes())


class Outbox:
    """Sends what is added. One worker for each attempt that has something to say.

    Args:
        bus: where to.
        node: in the subject of every report.
        journal: forgets what was acknowledged.
        delivered: hears of each acknowledged report.
    """

    def __init__(
        self, bus: Bus, node: str, journal: Journal, delivered: Callable[[Outgoing], Awaitable[None] | None]
    ) -> None:
        self._bus = bus
        self._node = node
        self._journal = journal
        self._delivered = delivered
        self._waiting: dict[Key, deque[Outgoing]] = {}
        self._workers: dict[Key, asyncio.Task[None]] = {}

    def add(self, outgoing: Outgoing) -> None:
        """Send *outgoing* after what was added before for the same attempt."""
        self._waiting.setdefault(outgoing.key, deque()).append(outgoing)
        if outgoing.key not in self._workers:
            self._workers[outgoing.key] = asyncio.create_task(self._work(outgoing.key))

    def drop(self, key: Key) -> None:
        """Send nothing more about an attempt."""
        self._waiting.pop(key, None)
        if (worker := self._workers.pop(key, None)) is not None:
            worker.cancel()

    def __len__(self) -> int:
        """Return how many reports wait."""
        return sum(map(len, self._waiting.values()))

    async def close(self) -> None:
        """Stop; the journal has what is left."""
        workers = list(self._workers.values())
        for key in list(self._workers):
            self.drop(key)
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, key: Key) -> None:
        waiting = self._waiting[key]
        while waiting:
            outgoing = waiting[0]
            try:
                await self._send(outgoing)
                await self._journal.sent(outgoing)
            except Exception:  # noqa: BLE001 - a report that nobody sends any more is a job that never ends
                _log.exception("report_broke", job_id=key.job_id, report=outgoing.id)
                await asyncio.sleep(_BROKEN_PAUSE_S)
                continue
            waiting.popleft()
            self._delivered(outgoing)
        self._waiting.pop(key, None)
        self._workers.pop(key, None)

    async def _send(self, outgoing: Outgoing) -> None:
        channel = CHANNELS[outgoing.name]
        event = event_model(channel.message).from_bytes(outgoing.body)
        record = Record(channel, {"node_id": self._node, "job_id": outgoing.key.job_id}, event)
        while True:
            try:
                await self._bus.record_grouped(record)
            except Unavailable:
                await asyncio.sleep(_UNANSWERED_PAUSE_S)  # it has waited, unless the bus is closed for good
            except WherryError as error:
                _log.error("report_refused", job_id=outgoing.key.job_id, report=outgoing.id, error=error.message)
                await asyncio.sleep(_REFUSED_PAUSE_S)
            else:
                return
