"""The one door to NATS: connection options, durable publishes, expected sequences, atomic batches, requests, consumers.

INTERFACE DRAFT - signatures below are what the services code against.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from shared.channels import Channel
from shared.events import Event
from shared.model import Message

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class Record:
    """Something to be kept by a stream.

    Attributes:
        channel, params: what and where.
        event: the CloudEvent; its id is the message id for deduplication and the writer's operation id.
        expect: (subject filter, last sequence): the write is refused with `Conflict` unless that is still the last
            sequence under the filter. None: no expectation.
    """

    channel: Channel[Any, Any]
    params: Mapping[str, str]
    event: Event[Any]
    expect: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a record stands on its stream."""

    seq: int
    duplicate: bool = False


@dataclass(slots=True)
class Received(Generic[M]):
    """A message from a stream or a subscription. `event` is None when the body is not what the channel says (`problem` tells)."""

    subject: str
    params: dict[str, str]
    body: bytes
    channel: Channel[M, Any] | None
    event: Event[M] | None  # for channels with event_type
    data: M | None  # the event's data, or the plain message
    problem: str | None
    seq: int = 0  # stream sequence; 0 for core NATS
    time: datetime | None = None
    num_delivered: int = 1
    num_pending: int = 0  # behind this one on the stream, for this reader
    headers: Mapping[str, str] | None = None

    async def ack(self) -> None: ...
    async def ack_sync(self) -> None: ...
    async def nak(self, delay_s: float | None = None) -> None: ...
    async def term(self, reason: str) -> None: ...
    async def in_progress(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Raw:
    """A body with headers, for channels with raw bodies or answers."""

    body: bytes
    headers: Mapping[str, str]


class Bus:
    """A connection of one service. Use as ``async with Bus.connect(settings, Service.STORAGE) as bus:``."""

    # Bus.connect(settings: ServiceSettings, service: Service, *, peer: str | None = None, purpose: str = "main") -> AsyncContextManager[Bus]
    #   peer: the node id for agents, instance id for gateways (goes into inbox prefix and names)
    # bus.is_connected -> bool ; bus.closed: asyncio.Event (set when the client is closed for good -> exit 75)

    # publish(channel, message, **params): core NATS, no answer; for OUTPUT, WAKE, TOKEN_REVOKED.
    # record(record, *, deadline_s: float | None = 15) -> Stored: durable; same id until answered; None = for ever.
    #     On 10071 reads nothing back itself: raises Conflict (caller compares `last(...)`.event.id with its own).
    #     Unavailable after the deadline.
    # record_batch(records, *, deadline_s=15) -> list[Stored]: ONE atomic batch (<= 500), all or nothing; Conflict if any is stale.
    # record_grouped(record) -> Stored: queued with whatever else is waiting and sent as one atomic batch
    #     (one alone is a plain publish); a batch refused for one stale record is sent again one by one, so only
    #     the stale one gets Conflict.
    # ask(channel, message, *, timeout_s=None, retry_s=10, **params) -> R: request/reply; 503 no responders is retried with back-off
    #     for retry_s, then Unavailable. An error answer raises WherryError with its code.
    # ask_raw(channel, body: bytes, headers, *, timeout_s, retry_s, **params) -> Raw
    # serve(channel, handler, *, queue: str | None, concurrency: int = 64): handler(params, message) -> R | raises WherryError
    #     (raw channels: handler(params, Raw) -> R | Raw). Errors answer with header Wherry-Error: 1 and an ErrorBody.
    # listen(channel, handler, *, queue=None, **params): core subscription; handler(Received) -> None; params narrow the wildcard.
    #     returns an object with `await .stop()`.
    # follow(stream, filters, *, start_seq: int) -> AsyncIterator[list[Received]]: ordered, from start_seq on, no acks, in lists of
    #     what has arrived (<= 500); yields an empty list once when caught up (nothing pending). Survives reconnects without gaps.
    # consume(stream, durable, *, batch=256, wait_s=5) -> AsyncIterator[list[Received]]: pre-created durable pull consumer, explicit acks.
    # last(stream, subject_filter) -> Received | None ; read(stream, seq) -> Received | None
    # put(subject, body: bytes, *, expect_seq: int | None, ttl_s=None, headers=None) -> int: raw durable publish for KV-like subjects (leader lease, snapshots); Conflict.
    # put_batch(items: Sequence[tuple[str, bytes]]) -> int ; get_last(stream, subject) -> tuple[int, bytes] | None ; purge(stream, subject)
    # stream_last_seq(stream) -> int


def job_filter(job_id: str) -> str:
    """Return the filter under which a job's events are compared and set: ``wherry.job.*.<job_id>.>``."""
    return f"wherry.job.*.{job_id}.>"
