"""Follows the streams and writes what they say into collections; acknowledges after the write."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from prometheus_client import Counter, Gauge

from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.item_store import ItemStore
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import UNWRITABLE, PyMongoError
from services.storage.core import fleet as f
from services.storage.core import projections as p
from services.storage.shell.arrivals import CONSUMER
from services.storage.shell.jobs import ProjectionMark
from shared import observe
from shared.bus import Bus, Received
from shared.channels import DLQ, FLEET, JOBS, LOGS, NOTIFY, TOKEN_REVOKED
from shared.clock import monotonic, utc_now
from shared.deadletters import DeadLetters
from shared.events import DeadLetter, DeliveryRequested, DeliveryTried, JobChanged, OutputBatch, TokenRevoked
from shared.fleet import Heartbeat, NodeChanged, QuotaSet

PROJECTED = Counter("wherry_storage_projected_total", "Messages of streams that were written down.", ["stream"])
SKIPPED = Counter("wherry_storage_skipped_total", "Messages of streams that can never be written.", ["stream"])
BEHIND = Gauge("wherry_storage_behind", "Messages of a stream that wait to be written.", ["stream"])

Messages = Sequence[Received[Any]]
Write = Callable[[Messages], Awaitable[None]]
Skipped = tuple[Received[Any], str]

#: Messages in memory at once. Those of output have up to 128 KiB.
_BATCH, _BATCH_ELSE = {LOGS: 32}, 256
_PAUSE_S, _PAUSE_MAX_S = 0.2, 5.0
#: A node's record is written at most once in this many seconds.
NODE_WRITE_S = 2.0
NODES_MOST = 20_000
#: How long a write that has begun may go on when storage is told to stop.
LAST_WRITE_S = 3.0

log = observe.logger("storage.projection")


class Projection:
    """The streams, each a loop of its own."""

    def __init__(
        self,
        bus: Bus,
        store: JobStore,
        items: ItemStore,
        fleet: FleetStore,
        mark: ProjectionMark,
        output_mark: ProjectionMark,
    ) -> None:
        self._bus = bus
        self._store = store
        self._items = items
        self._fleet = fleet
        self._mark = mark
        self._output_mark = output_mark
        self._letters = DeadLetters(bus)
        self._writes: dict[str, Write] = {}  # by stream

    async def listen_for_replays(self) -> None:
        """Write dead letters again that an admin wants replayed, from now on."""
        await self._letters.listen(self._replay)

    async def _replay(self, message: Received[Any]) -> str | None:
        stream = message.channel.stream if message.channel else None
        write = self._writes.get(stream or "")
        if stream is None or write is None:
            return "storage keeps nothing that comes on this subject"
        return next((why for _, why in await _write_surely(stream, [message], write)), None)

    async def follow_jobs(self) -> None:
        """Project job events, for ever."""
        await self._follow(JOBS, "storage", self._write_jobs)

    async def follow_output(self) -> None:
        """Keep lines, progress and metrics, for ever."""
        await self._follow(LOGS, CONSUMER, self._write_output)

    async def follow_deliveries(self) -> None:
        """Keep notifications and their tries, for ever."""
        await self._follow(NOTIFY, "storage-delivery", self._write_deliveries)

    async def follow_fleet(self) -> None:
        """Keep nodes' records and owners' quotas, for ever."""
        await self._follow(FLEET, "storage-fleet", self._write_fleet)

    async def follow_letters(self) -> None:
        """Keep dead letters, for ever."""
        await self._follow(DLQ, "storage-dlq", self._write_letters)

    async def _follow(self, stream: str, durable: str, write: Write) -> None:
        self._writes[stream] = write
        async for messages in self._bus.consume(stream, durable, batch=_BATCH.get(stream, _BATCH_ELSE)):
            # What has begun is ended when storage is told to stop: else it would come again only after the ack wait.
            await _to_its_end(self._write_and_ack(stream, messages, write))

    async def _write_and_ack(self, stream: str, messages: Messages, write: Write) -> None:
        if skipped := await _write_surely(stream, messages, write):
            SKIPPED.labels(stream).inc(len(skipped))
            await self._letters.keep(stream, skipped)
        for message in messages:
            await message.ack()
        PROJECTED.labels(stream).inc(len(messages))
        BEHIND.labels(stream).set(messages[-1].num_pending)

    async def _write_jobs(self, messages: Messages) -> None:
        changes = [
            (one.seq, one.data, one.body.decode())
            for one in messages
            if isinstance(one.data, JobChanged) and one.data.job.id == one.params["job_id"]
        ]
        await self._items.write([item for seq, change, _ in changes for item in p.item_upserts(seq, change)])
        upserts = [p.job_upsert(seq, change.job) for seq, change, _ in changes]
        events = [p.event_document(seq, change.job, text) for seq, change, text in changes]
        await self._store.write_jobs(upserts, events)
        self._mark.move(max(one.seq for one in messages))

    async def _write_output(self, messages: Messages) -> None:
        keyed = [
            (p.attempt_key(one.params["job_id"], int(one.params["attempt"]), one.params["node_id"]), one.data)
            for one in messages
            if isinstance(one.data, OutputBatch)
        ]
        await self._store.write_output(
            [document for key, batch in keyed if (document := p.log_document(key, batch))],
            [document for key, batch in keyed if (document := p.metric_document(key, batch))],
            [p.progress_upsert(key, batch.progress) for key, batch in keyed if batch.progress],
        )
        self._output_mark.move(max(one.seq for one in messages))

    async def _write_deliveries(self, messages: Messages) -> None:
        requested = {
            one.data.delivery_id: p.delivery_requested(one.data)
            for one in messages
            if isinstance(one.data, DeliveryRequested)
        }
        tried = [p.delivery_tried(one.seq, one.data) for one in messages if isinstance(one.data, DeliveryTried)]
        await self._store.write_deliveries(requested, tried)

    async def _write_fleet(self, messages: Messages) -> None:
        await self._fleet.write_records(
            [
                f.record_upsert(one.seq, one.params["node_id"], one.data.node)
                for one in messages
                if isinstance(one.data, NodeChanged)
            ]
        )
        quotas = [
            f.quota_upsert(one.seq, one.params["owner"], one.data) for one in messages if isinstance(one.data, QuotaSet)
        ]
        await self._fleet.write_quotas(quotas)
        for owner_id in {quota.id for quota in quotas}:  # gateways ask again who it is, and are told the new limit
            await self._bus.publish(TOKEN_REVOKED, TokenRevoked(user_id=owner_id))

    async def _write_letters(self, messages: Messages) -> None:
        letters = [
            f.letter_upsert(one.seq, one.data)
            for one in messages
            # The subject is believed: the broker has checked who may write there.
            if isinstance(one.data, DeadLetter) and one.data.reader == one.params["reader"]
        ]
        await self._fleet.write_letters(letters)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=LAST_WRITE_S)
        task.cancel()
        raise


async def _write_surely(stream: str, messages: Messages, write: Write) -> list[Skipped]:
    """Write *messages*, waiting for MongoDB as long as it takes; return those that can never be written, and why."""
    skipped = [(one, one.problem or "unreadable") for one in messages if one.data is None]
    readable = [one for one in messages if one.data is not None]
    try:
        await _write_when_possible(stream, messages, write)
    except UNWRITABLE:
        for message in readable:
            try:
                await _write_when_possible(stream, [message], write)
            except UNWRITABLE as error:
                skipped.append((message, repr(error)))
    return skipped


async def _write_when_possible(stream: str, messages: Messages, write: Write) -> None:
    pause_s = _PAUSE_S
    while True:
        try:
            return await write(messages)
        except PyMongoError as error:
            log.warning("write_delayed", stream=stream, messages=len(messages), error=str(error))
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


class Heartbeats:
    """What nodes last said, written down in batches: the newest word of each, at most every NODE_WRITE_S seconds."""

    def __init__(self, store: FleetStore) -> None:
        self._store = store
        self._last: dict[str, p.Upsert] = {}
        self._samples: dict[str, p.Document] = {}
        self._sampled: dict[str, float] = {}  # when, by node; others that are storage too may have the next
        self._some = asyncio.Event()

    def hear(self, message: Received[Heartbeat]) -> None:
        """Take in a heartbeat; the node is the subject's."""
        if message.data is None or len(self._last) >= NODES_MOST:
            return
        node_id, now = message.params["node_id"], utc_now()
        self._last[node_id] = f.node_upsert(node_id, message.data, now)
        period_s = f.sample_period_s(len(self._sampled))
        if monotonic() >= self._sampled.get(node_id, 0.0) + period_s:
            self._sampled[node_id] = monotonic()
            self._samples[node_id] = f.sample(node_id, message.data, now, period_s)
        self._some.set()

    async def write(self) -> None:
        """Write what was heard, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            heard, self._last = list(self._last.values()), {}
            samples, self._samples = list(self._samples.values()), {}
            try:
                await self._store.write_nodes(heard)
                await self._store.write_samples(samples)
            except PyMongoError as error:  # the next heartbeat says it again
                log.warning("heartbeats_delayed", nodes=len(heard), error=str(error))
            await asyncio.sleep(NODE_WRITE_S)
