"""What passes through the bus, as values: records, received messages, and how both are written and read. No IO."""

import base64
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from shared.channels import CHANNELS, Channel
from shared.errors import Conflict, ErrorBody, FieldProblem, NotFound, Unavailable, WherryError
from shared.events import Event
from shared.model import Message

M = TypeVar("M", bound=Message)

MSG_ID = "Nats-Msg-Id"
EXPECT_SEQ = "Nats-Expected-Last-Subject-Sequence"
EXPECT_FILTER = "Nats-Expected-Last-Subject-Sequence-Subject"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQ = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
TTL = "Nats-TTL"
#: In an answer: the body is an ErrorBody.
ERROR = "Wherry-Error"
#: Messages of one atomic batch. The server takes 1000; above 500 nothing is won.
BATCH_MAX = 500
#: Bytes that one batch is filled up to, so that it fits the connection's buffer.
BATCH_BYTES_MAX = 6 * 1024 * 1024


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
    """Where a record stands on its stream. `duplicate`: it had been stored before, by an earlier try."""

    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """A body with headers, for channels with raw bodies or answers."""

    body: bytes
    headers: Mapping[str, str]


_KINDS = {"not_found": NotFound, "conflict": Conflict, "unavailable": Unavailable}

#: Settles a delivered message: the verb to send, and whether to wait until the server has taken it.
Settle = Callable[[bytes, bool], Awaitable[None]]


@dataclass(slots=True)
class Received(Generic[M]):
    """A message from a stream or a subscription.

    `event` and `data` are None when the body is not what the channel says; `problem` then tells why.
    """

    subject: str
    params: dict[str, str]
    body: bytes
    channel: Channel[M, Any] | None
    event: Event[M] | None  # for channels with event_type
    data: M | None  # the event's data, or the plain message
    problem: str | None
    seq: int = 0  # stream sequence, also of republished messages; 0 for others from core NATS
    time: datetime | None = None
    num_delivered: int = 1
    num_pending: int = 0  # behind this one on the stream, for this reader
    headers: Mapping[str, str] | None = None
    settle: Settle | None = field(default=None, repr=False, compare=False)

    async def ack(self) -> None:
        """Say that it is done; not waiting for the server to know."""
        await self._settle(b"+ACK")

    async def ack_sync(self) -> None:
        """Say that it is done, and wait until the server knows.

        Raises:
            Unavailable: no answer; the message may come again.
        """
        await self._settle(b"+ACK", wait=True)

    async def nak(self, delay_s: float | None = None) -> None:
        """Ask for the message again, after *delay_s* seconds if given."""
        await self._settle(b"-NAK" if delay_s is None else b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def in_progress(self) -> None:
        """Ask for the whole ack wait once more."""
        await self._settle(b"+WPI")

    async def _settle(self, verb: bytes, *, wait: bool = False) -> None:
        if self.settle is None:
            raise TypeError(f"{self.subject}: this message does not come from a consumer, there is nothing to settle")
        await self.settle(verb, wait)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the server says about a message that a consumer delivered."""

    num_delivered: int
    seq: int
    consumer_seq: int
    time: datetime
    num_pending: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A message ready to be stored."""

    subject: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def expects(self) -> str | None:
        """Return the filter that the write compares, or None."""
        return self.headers.get(EXPECT_FILTER, self.subject) if EXPECT_SEQ in self.headers else None

    def unconditional(self) -> "Entry":
        """Return the same message without its expectation."""
        kept = {key: value for key, value in self.headers.items() if key not in (EXPECT_SEQ, EXPECT_FILTER)}
        return Entry(self.subject, self.body, kept)


def entry(record: Record) -> Entry:
    """Return *record* as it is published.

    Raises:
        ValueError: a parameter cannot be part of a subject.
    """
    headers = {MSG_ID: record.event.id}
    if record.expect is not None:
        headers[EXPECT_FILTER], headers[EXPECT_SEQ] = record.expect[0], str(record.expect[1])
    return Entry(record.channel.subject(**record.params), record.event.to_bytes(), headers)


def parse_ack(reply: str) -> Delivery | None:
    """Read the reply subject of a delivered message, in its old and its new form (with domain and account)."""
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[:2] != ["$JS", "ACK"]:
        return None
    delivered, seq, consumer_seq, nanoseconds, pending = tokens[4:9] if len(tokens) == 9 else tokens[6:11]
    when = datetime.fromtimestamp(int(nanoseconds) / 1e9, UTC)
    return Delivery(int(delivered), int(seq), int(consumer_seq), when, int(pending))


def parse_headers(raw: bytes) -> dict[str, str]:
    """Read a block of NATS headers."""
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def received(
    subject: str,
    body: bytes,
    headers: Mapping[str, str] | None,
    *,
    channel: Channel[Any, Any] | None = None,
    delivery: Delivery | None = None,
    settle: Settle | None = None,
) -> Received[Any]:
    """Return a message, read as *channel* says, or the table's channel for its subject."""
    params = channel.parse(subject) if channel else None
    if params is None:
        channel, params = find_channel(subject)
    event, data, problem = _read(channel, body)
    message = Received(subject, params, body, channel, event, data, problem, headers=headers, settle=settle)
    if delivery is not None:
        message.seq, message.time = delivery.seq, delivery.time
        message.num_delivered, message.num_pending = delivery.num_delivered, delivery.num_pending
    elif headers and (seq := headers.get("Nats-Sequence", "")).isdigit():
        message.seq = int(seq)
    return message


def stored_message(found: Mapping[str, Any]) -> Received[Any]:
    """Return a message that the stream API gave as JSON."""
    headers = parse_headers(base64.b64decode(found.get("hdrs", "")))
    message = received(found["subject"], base64.b64decode(found.get("data", "")), headers)
    message.seq, message.time = int(found["seq"]), datetime.fromisoformat(found["time"])
    return message


def find_channel(subject: str) -> tuple[Channel[Any, Any] | None, dict[str, str]]:
    """Return the table's channel for *subject* and its parameters; the most fixed template wins."""
    tokens = subject.split(".")
    for channel in _index().get((len(tokens), tokens[1] if len(tokens) > 1 else ""), ()):
        if (params := channel.parse(subject)) is not None:
            return channel, params
    return None, {}


def error_from(body: bytes) -> WherryError:
    """Return the error that an answer carries, as the class that its code has here."""
    try:
        said = ErrorBody.from_bytes(body)
    except ValidationError:
        return WherryError("internal", "The answer was an error that cannot be read.")
    kind = _KINDS.get(said.code)
    return kind(said.message) if kind and not said.fields else WherryError.from_body(said)


def invalid(problem: ValidationError) -> WherryError:
    """Return the refusal of a body that is not its channel's message."""
    fields = tuple(
        FieldProblem(field=".".join(str(part) for part in item["loc"]), message=item["msg"])
        for item in problem.errors(include_url=False, include_input=False, include_context=False)
    )
    return WherryError("invalid", "The request is not valid.", fields=fields)


@cache
def event_model(message: type[M]) -> type[Event[M]]:
    """Return the envelope of *message*; made once, as pydantic takes long over it."""
    return Event[message]


def _freedom(channel: Channel[Any, Any]) -> int:
    return len(channel.params)


@cache
def _index() -> Mapping[tuple[int, str], list[Channel[Any, Any]]]:
    found: defaultdict[tuple[int, str], list[Channel[Any, Any]]] = defaultdict(list)
    channels: list[Channel[Any, Any]] = sorted(CHANNELS, key=_freedom)
    for channel in channels:
        tokens = channel.template.split(".")
        found[len(tokens), tokens[1]].append(channel)
    return found


def _read(channel: Channel[Any, Any] | None, body: bytes) -> tuple[Event[Any] | None, Message | None, str | None]:
    if channel is None:
        return None, None, "no channel has this subject"
    if channel.raw_body:
        return None, None, None
    try:
        if channel.event_type is None:
            return None, channel.message.from_bytes(body), None
        event = event_model(channel.message).from_bytes(body)
    except ValidationError as problem:
        return None, None, str(problem)
    return event, event.data, None
