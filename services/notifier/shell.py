"""From job ends to deliveries, and from deliveries to people: two durable consumers.

Nothing is acknowledged before it is recorded, so a crash at any point repeats a step and loses none. Whoever is told
twice because of that is told under the same id.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import prometheus_client

from services.notifier.core.delivery import Decision, Outcome, Verdict, decide
from services.notifier.core.rules import deliveries
from services.notifier.ports import Sender
from shared import observe
from shared.bus import Bus
from shared.channels import DELIVERY_REQUESTED, DELIVERY_TRIED, JOBS, NOTIFY, TELL
from shared.clock import utc_now
from shared.deadletters import DeadLetters
from shared.errors import Unavailable, WherryError
from shared.events import DeliveryRequested, DeliveryTried, Event, JobChanged
from shared.ids import new_id
from shared.model import Empty
from shared.wire import Received, Record

TRIES = prometheus_client.Counter("wherry_notifier_tries_total", "Tries of deliveries.", ["kind", "state"])
UNDER_WAY = prometheus_client.Gauge("wherry_notifier_under_way", "Deliveries that are tried or wait for their turn.")
TRY_TIME = prometheus_client.Histogram("wherry_notifier_try_seconds", "How long a try took.", ["kind"])

#: Deliveries that may wait here for one host. More are left with the broker for a while, which is no try of theirs:
#: they fill no memory, and nobody else waits for them.
WAITING_PER_HOST = 200
CROWDED_PAUSE_S = 5.0
#: Pause after what was not tried for a fault of our own (storage, which has the secret, is away), in seconds.
POSTPONED_PAUSE_S = 3.0
#: How often the broker is told that a delivery is still under way, in seconds; well below the consumer's ack wait.
STILL_HERE_S = 10.0
#: Pause after a fault of our own, in seconds.
BROKEN_PAUSE_S = 30.0

_log = observe.logger("notifier")


class Notifier:
    """Turns the ends of jobs into deliveries and tries these until they are done or given up.

    Args:
        bus: the notifier's connection.
        senders: by kind of delivery.
        at_once: deliveries that are tried at the same time.
        per_host: the same, for one receiver.

    """

    def __init__(self, bus: Bus, senders: Mapping[str, Sender], *, at_once: int, per_host: int) -> None:
        self._bus = bus
        self._letters = DeadLetters(bus)
        self._senders = senders
        self._all = asyncio.Semaphore(at_once)
        self._per_host = per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str] = Counter()
        self._under_way: set[str] = set()
        self._passed_over: Counter[str] = Counter()  # arrivals that were no tries, by delivery

    async def run(self) -> None:
        """Work until cancelled."""
        await self._letters.listen(self._replay)
        await self._bus.serve(TELL, self._tell, queue="notifier")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._request_deliveries())
            tasks.create_task(self._deliver())

    # --- ends become deliveries ----------------------------------------------------------------------------------

    async def _request_deliveries(self) -> None:
        async for batch in self._bus.consume(JOBS, "notifier"):
            unreadable = [one for one in batch if one.event is None]
            await self._give_up(JOBS, [(one, one.problem or "no event") for one in unreadable])
            for received in batch:
                if received.event is not None:
                    await self._request(received, received.event)

    async def _request(self, received: Received[JobChanged], event: Event[JobChanged]) -> None:
        try:
            await self._record_deliveries(received, event)
        except (ValueError, TypeError) as problem:  # it will be no better the next time
            await self._give_up(JOBS, [(received, repr(problem))])
        except Exception as error:  # noqa: BLE001 - whatever it was, the event comes again
            _log.warning("deliveries_not_recorded", subject=received.subject, error=str(error))
            await received.nak(2.0)
        else:
            await received.ack()

    async def _record_deliveries(self, received: Received[JobChanged], event: Event[JobChanged]) -> None:
        job = event.data.job
        wanted = deliveries(job, received.params.get("event", ""), event.id, event.time)
        await asyncio.gather(*[self._bus.record_grouped(self._requested(request, event.id)) for request in wanted])
        for request in wanted:
            _log.info("delivery_requested", job_id=job.id, delivery_id=request.delivery_id, kind=request.kind)

    async def _give_up(self, stream: str, messages: Sequence[tuple[Received[Any], str]]) -> None:
        """Keep what can never be taken in as dead letters, then let the broker forget it for this reader."""
        if messages:
            await self._letters.keep(stream, messages)
            for message, _ in messages:
                await message.ack()

    async def _tell(self, _params: dict[str, str], request: DeliveryRequested) -> Empty:
        """Take in what storage wants somebody to be told of. The same request again is the same delivery.

        Raises:
            WherryError: ``invalid``: nothing is sent in this way.
        """
        if request.kind not in self._senders:
            raise WherryError("invalid", f"Nothing is sent by {request.kind!r}.")
        await self._bus.record_grouped(self._requested(request, request.event_id))
        return Empty()

    async def _replay(self, message: Received[Any]) -> str | None:
        """Take in a dead letter that an admin wants replayed; a delivery goes back to those that wait."""
        match message.event:
            case Event(data=JobChanged()) as event:
                await self._record_deliveries(message, event)
            case Event(data=DeliveryRequested() as request) if request.kind in self._senders:
                record = self._requested(request, message.event.id)
                await self._bus.record(replace(record, event=record.event.model_copy(update={"id": new_id("e")})))
            case _:
                return message.problem or "the notifier reads nothing of this kind"
        return None

    def _requested(self, request: DeliveryRequested, cause: str) -> Record:
        params = {"owner": request.owner_id, "job_id": request.job_id}
        event = self._bus.event(DELIVERY_REQUESTED, request, subject=request.job_id, causedby=cause, **params)
        return Record(DELIVERY_REQUESTED, params, event.model_copy(update={"id": request.delivery_id}))

    # --- deliveries become tries ---------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for batch in self._bus.consume(NOTIFY, "deliver"):
                for received in batch:
                    tasks.create_task(self._take(received))

    async def _take(self, received: Received[DeliveryRequested]) -> None:
        event = received.event
        if event is None or event.data.kind not in self._senders:
            await self._give_up(NOTIFY, [(received, received.problem or "no sender for this kind of delivery")])
            return
        delivery_id = event.data.delivery_id
        if delivery_id in self._under_way:
            return  # the broker grew impatient; the first copy's end settles both
        host = self._senders[event.data.kind].host(event.data)
        if self._waiting[host] >= WAITING_PER_HOST + self._per_host:
            await self._pass_over(received, delivery_id, CROWDED_PAUSE_S)
            return
        self._under_way.add(delivery_id)
        UNDER_WAY.inc()
        try:
            async with _kept_alive(received):
                outcome = await self._in_turn(event.data, host)
                if outcome.verdict is Verdict.POSTPONED:
                    _log.warning("delivery_postponed", delivery_id=delivery_id, detail=outcome.detail)
                    await self._pass_over(received, delivery_id, POSTPONED_PAUSE_S)
                    return
                tries = received.num_delivered - self._passed_over[delivery_id]
                decision = await self._record_try(event, outcome, tries)
            await _settle(received, decision)
            if decision.again_in_s is None:
                del self._passed_over[delivery_id]
        except Exception as error:  # noqa: BLE001 - one delivery must not end the others
            _log.exception("delivery_broke", job_id=event.data.job_id, delivery_id=delivery_id, error=str(error))
            await received.nak(BROKEN_PAUSE_S)
        finally:
            UNDER_WAY.dec()
            self._under_way.discard(delivery_id)

    async def _pass_over(self, received: Received[DeliveryRequested], delivery_id: str, pause_s: float) -> None:
        """Leave a delivery with the broker for a while; that it came was no try of it."""
        self._passed_over[delivery_id] += 1
        await received.nak(pause_s * (1 + _seed(delivery_id, received.num_delivered)))

    async def _record_try(self, event: Event[DeliveryRequested], outcome: Outcome, tries: int) -> Decision:
        """Decide what follows from a try, record that, and return it."""
        request = event.data
        decision = decide(request.kind, outcome, tries, _seed(request.delivery_id, tries))
        now = utc_now()
        pause = decision.again_in_s
        tried = DeliveryTried(
            delivery_id=request.delivery_id,
            job_id=request.job_id,
            owner_id=request.owner_id,
            tries=tries,
            state=decision.state,
            detail=decision.detail,
            at=now,
            next_at=None if pause is None else now + timedelta(seconds=pause),
        )
        params = {"owner": request.owner_id, "job_id": request.job_id}
        record = self._bus.event(DELIVERY_TRIED, tried, subject=request.job_id, causedby=event.id, **params)
        await self._bus.record(Record(DELIVERY_TRIED, params, record), deadline_s=None)
        TRIES.labels(request.kind, decision.state).inc()
        _log.info(
            "delivery_tried",
            job_id=request.job_id,
            delivery_id=request.delivery_id,
            kind=request.kind,
            state=decision.state,
            tries=tries,
            detail=decision.detail,
        )
        return decision

    async def _in_turn(self, request: DeliveryRequested, host: str) -> Outcome:
        """Send when it is the request's turn, waiting for its host first: a slow one holds only its own places."""
        slots = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        self._waiting[host] += 1
        try:
            async with slots, self._all:
                with TRY_TIME.labels(request.kind).time():
                    return await self._senders[request.kind].send(request)
        finally:
            self._waiting[host] -= 1
            if not self._waiting[host]:
                del self._waiting[host], self._hosts[host]


@asynccontextmanager
async def _kept_alive(received: Received[DeliveryRequested]) -> AsyncGenerator[None]:
    """Tell the broker every few seconds that the message is being worked on."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(STILL_HERE_S)
            await received.in_progress()

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling


async def _settle(received: Received[DeliveryRequested], decision: Decision) -> None:
    if decision.again_in_s is not None:
        await received.nak(decision.again_in_s)
        return
    try:
        await received.ack_sync()  # a lost acknowledgement would be a second mail
    except Unavailable:
        _log.warning("delivery_not_settled", state=decision.state)


def _seed(delivery_id: str, tries: int) -> float:
    """Return a number from 0 to 1 that is always the same for this try, and another for each."""
    digest = hashlib.sha256(f"{delivery_id}.{tries}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32
