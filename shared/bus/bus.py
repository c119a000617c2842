"""What services do on their connection: durable writes, requests and answers, reading of streams.

A publish that was not answered may still have happened. Durable writes are therefore repeated under one message id
until they are answered. A repeated write with an expectation goes out as an atomic batch of one: for a batch the server
looks for known ids first and compares sequences second, so that the writer's own earlier write shows as a duplicate and
not as a conflict (a plain publish does it the other way round).
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from inspect import isawaitable
from typing import Any, TypeVar

from nats.aio.msg import Msg
from pydantic import ValidationError

from shared import observe, wire
from shared.bus.answers import Backoff, LateConflict, Unanswered, api_answer, status_of
from shared.bus.connection import TRY_S, Connection, Handle
from shared.bus.group import Group
from shared.bus.readers import Follower, Puller
from shared.channels import Channel, Service
from shared.clock import utc_now
from shared.errors import Conflict, NoAnswer, NotFound, Unavailable, WherryError
from shared.events import Event
from shared.ids import new_id
from shared.model import Empty, Message
from shared.settings import ServiceSettings
from shared.wire import BATCH_MAX, Entry, Raw, Received, Record, Stored

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
T = TypeVar("T")

#: Answers a request: parameters of the subject and the message (or Raw) in, the answer out.
Handler = Callable[[dict[str, str], Any], Awaitable[Message | Raw | None]]
Listener = Callable[[Received[Any]], Awaitable[None] | None]

_IN_FLIGHT_MAX = 1024
_BATCHES_IN_FLIGHT_MAX = 16  # the server takes 50 a stream, of all clients together

_WRONG_LAST_SEQUENCE = 10071
_DUPLICATE_IN_BATCH = 10201
_INCOMPLETE_BATCH = 10176
_NO_MESSAGE = 10037

_log = observe.logger("bus")


class Bus(Connection):
    """A connection of one service. Use as ``async with Bus.connect(settings, Service.STORAGE) as bus:``.

    Every call raises `Unavailable` when no answer came in its time, and `Forbidden` at once when the broker does not
    let this credential use the subject.
    """

    def __init__(self, settings: ServiceSettings, service: Service, peer: str | None, purpose: str) -> None:
        """Use `connect`."""
        super().__init__(settings, service, peer, purpose)
        self._window = asyncio.Semaphore(_IN_FLIGHT_MAX)
        self._batches = asyncio.Semaphore(_BATCHES_IN_FLIGHT_MAX)
        self._groups: dict[str, Group] = {}

    # --- sending -----------------------------------------------------------------------------------------------------

    def event(
        self, channel: Channel[M, Any], data: M, *, subject: str, causedby: str | None = None, **params: str
    ) -> Event[M]:
        """Return a new event of *channel* with an id, this service as its source, and the time.

        Args:
            channel: must have an event type; *params* fill it.
            data: what happened.
            subject: the job's id.
            causedby: id of the event that led to this one.
            params: the channel's parameters; those that the type does not name are ignored.
        """
        if channel.event_type is None:
            raise ValueError(f"{channel.name} does not carry events")
        agent = self.service is Service.NODE_AGENT and self.peer
        return wire.event_model(channel.message)(
            id=new_id("e"),
            source=f"/wherry/{self.service.value}" + (f"/{self.peer}" if agent else ""),
            type=channel.event_type.format(**params),
            time=utc_now(),
            subject=subject,
            causedby=causedby,
            data=data,
        )

    async def publish(self, channel: Channel[M, Any], message: M, **params: str) -> None:
        """Send a message that may be lost: without a connection and with the buffer full it is dropped, and counted."""
        try:
            await self.send(channel.subject(**params), message.to_bytes(), None)
        except Unanswered:
            observe.DROPPED.inc()

    async def record(self, record: Record, *, deadline_s: float | None = 15) -> Stored:
        """Keep *record* in its stream; return once it is on disk. Repeated under one id until answered.

        Raises:
            Conflict: the expectation does not hold, and the newer message is not this record.
            Unavailable: no answer within *deadline_s* seconds (None: never). It may have been stored: repeat it with
                the same event.
        """
        return (await self.write([wire.entry(record)], record.channel.stream or "", deadline_s))[0]

    async def record_grouped(self, record: Record) -> Stored:
        """Keep *record* together with whatever else waits at this moment: one fsync for all of them.

        Each record stands for itself: if one is refused, the others are sent again without it.

        Raises:
            Conflict, Unavailable: as with `record`.
        """
        stream = record.channel.stream or ""
        if self._leaving:
            raise Unavailable("The bus was closed.")
        if stream not in self._groups:
            self._groups[stream] = group = Group(self.write, stream)
            self._spawn(group.run(), f"group {stream}")
        return await self._groups[stream].add(wire.entry(record))

    async def put(
        self,
        subject: str,
        body: bytes,
        *,
        expect_seq: int | None = None,
        ttl_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = 5,
    ) -> int:
        """Keep *body* as the latest under *subject* and return its sequence.

        Args:
            subject: must be one that a stream keeps.
            body: what is kept.
            expect_seq: sequence of the latest message of this very subject, 0 for none; None: no expectation.
            ttl_s: seconds after which the stream forgets it.
            headers: kept with it.
            deadline_s: seconds to go on trying; None: for ever.

        Raises:
            Conflict: *expect_seq* is not the latest.
            Unavailable: no answer; it may have been stored.
        """
        sent = {**(headers or {}), wire.MSG_ID: new_id("w")}
        if expect_seq is not None:
            sent[wire.EXPECT_SEQ] = str(expect_seq)
        if ttl_s is not None:
            sent[wire.TTL] = f"{max(1, round(ttl_s))}s"
        return (await self.write([Entry(subject, body, sent)], _family(subject), deadline_s))[0].seq

    async def write(
        self, entries: Sequence[Entry], stream: str, deadline_s: float | None = 15, *, suspect: bool = False
    ) -> list[Stored]:
        """Store *entries*, all or none. *suspect*: an earlier try of the same may have been stored."""
        if len(entries) > BATCH_MAX:
            raise ValueError(f"{len(entries)} messages; a batch has at most {BATCH_MAX}")
        end = None if deadline_s is None else self._loop.time() + deadline_s
        backoff = Backoff(0.1, 2.0)
        while True:
            why: Exception
            try:
                await self.until_online(None if end is None else end - self._loop.time())
                try_s = TRY_S if end is None else min(TRY_S, end - self._loop.time())
                return await self._try_write(entries, stream, try_s, suspect=suspect)
            except Unanswered as unanswered:
                why, suspect = unanswered, suspect or unanswered.sent
            delay = backoff.next_s()
            if end is not None and self._loop.time() + delay >= end:
                raise Unavailable(f"Not recorded within {deadline_s:g} s: {why}.")
            observe.RETRIES.labels(stream).inc()
            await asyncio.sleep(delay)

    async def _try_write(
        self, entries: Sequence[Entry], stream: str, timeout_s: float, *, suspect: bool
    ) -> list[Stored]:
        async with self._window:
            if len(entries) > 1 or (suspect and entries[0].expects):
                async with self._batches:
                    answer = await self._send_batch(entries, timeout_s)
            else:
                only = entries[0]
                answer = await self._call(only.subject, only.body, only.headers, timeout_s)
        said = api_answer(answer)
        problem = said.get("error")
        if problem is None:
            observe.PUBLISHED.labels(stream).inc(len(entries))
            first = int(said["seq"]) - len(entries) + 1
            return [Stored(first + i, bool(said.get("duplicate"))) for i in range(len(entries))]
        match int(problem.get("err_code", 0)):
            case code if code == _WRONG_LAST_SEQUENCE:
                observe.CONFLICTS.labels(stream).inc()
                kind = LateConflict if suspect else Conflict
                raise kind(f"{entries[0].subject}: {problem.get('description')}")
            case code if code == _DUPLICATE_IN_BATCH:
                return await self._find_own(entries, stream, timeout_s)
            case code if code == _INCOMPLETE_BATCH or int(problem.get("code", 0)) in (429, 500, 503):
                raise Unanswered(str(problem.get("description")), sent=False)
            case code:
                raise WherryError(
                    "log_refused", f"{stream} refused {entries[0].subject}: {problem.get('description')} ({code})"
                )

    async def _send_batch(self, entries: Sequence[Entry], timeout_s: float) -> Msg:
        batch = f"{self._inbox.rpartition('.')[2]}-{next(self._tokens)}"
        numbered = [
            Entry(one.subject, one.body, {**one.headers, wire.BATCH_ID: batch, wire.BATCH_SEQ: str(number)})
            for number, one in enumerate(entries, 1)
        ]
        last = numbered[-1]
        headers = {**last.headers, wire.BATCH_COMMIT: "1"}
        return await self._call(last.subject, last.body, headers, timeout_s, ahead=numbered[:-1])

    async def _find_own(self, entries: Sequence[Entry], stream: str, timeout_s: float) -> list[Stored]:
        """Return where *entries* stand, some id of which the stream knows already.

        One entry alone: publishing its id once more, without an expectation, is answered with its place. Several: if
        first and last stand as far apart as in the batch, the batch as such was stored; else each is sent for itself.
        """
        if len(entries) == 1:
            return await self._try_write([entries[0].unconditional()], stream, timeout_s, suspect=False)
        [first] = await self.write([entries[0]], stream, timeout_s, suspect=True)
        [last] = await self.write([entries[-1]], stream, timeout_s, suspect=True)
        if first.duplicate and last.duplicate and last.seq - first.seq == len(entries) - 1:
            return [Stored(first.seq + i, duplicate=True) for i in range(len(entries))]
        between = [(await self.write([one], stream, timeout_s, suspect=True))[0] for one in entries[1:-1]]
        return [first, *between, last]

    # --- requests ----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        channel: Channel[M, R],
        message: M,
        *,
        timeout_s: float | None = None,
        retry_s: float = 10,
        **params: str,
    ) -> R:
        """Send a request and return its answer.

        Args:
            channel: where; it says what the answer is.
            message: the question.
            timeout_s: seconds to wait for the answer (None: the setting); a request that was heard is never repeated.
            retry_s: seconds to go on trying while nobody listens or there is no connection.
            params: the subject's parameters.

        Raises:
            WherryError: what the other side refused, with its code.
            Unavailable: nobody there, or no answer.
        """
        if channel.reply is None:
            raise ValueError(f"{channel.name} has no answer")
        raw = await self.ask_raw(channel, message.to_bytes(), None, timeout_s=timeout_s, retry_s=retry_s, **params)
        try:
            return channel.reply.from_bytes(raw.body)
        except ValidationError as problem:
            raise WherryError("internal", f"The answer on {channel.name} cannot be read: {problem}") from problem

    async def ask_raw(
        self,
        channel: Channel[Any, Any],
        body: bytes,
        headers: Mapping[str, str] | None,
        *,
        timeout_s: float | None = None,
        retry_s: float = 10,
        **params: str,
    ) -> Raw:
        """Send a request with a raw body and return the raw answer. Otherwise as `ask`."""
        timeout_s = self._settings.request_timeout_s if timeout_s is None else timeout_s
        try:
            answer = await self._ask(channel.subject(**params), body, headers, timeout_s, retry_s)
            if answer.headers and answer.headers.get(wire.ERROR):
                raise wire.error_from(answer.data)
        except WherryError as error:
            observe.ASKED.labels(channel.name, error.code).inc()
            raise
        observe.ASKED.labels(channel.name, "ok").inc()
        return Raw(answer.data, answer.headers or {})

    async def _ask(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, timeout_s: float, retry_s: float
    ) -> Msg:
        end = self._loop.time() + retry_s
        backoff = Backoff(0.1, 2.0)
        while True:
            await self.until_online(max(0.0, end - self._loop.time()))
            try:
                answer = await self._call(subject, body, headers, timeout_s)
            except Unanswered as why:
                if why.sent:
                    raise NoAnswer(f"No answer on {subject}: {why}.") from None
            else:
                if status_of(answer) != 503:
                    return answer
            delay = backoff.next_s()
            if self._loop.time() + delay >= end:
                raise Unavailable(f"Nobody answers on {subject}.")
            await asyncio.sleep(delay)

    async def serve(
        self,
        channel: Channel[Any, Any],
        handler: Handler,
        *,
        queue: str | None,
        concurrency: int = 64,
        **params: str,
    ) -> Handle:
        """Answer the requests on *channel*, at most *concurrency* at a time.

        Args:
            channel: where.
            handler: gets the subject's parameters and the message (`Raw` for raw bodies); its `WherryError` becomes
                the answer, any other exception is logged and answered with the code ``internal``.
            concurrency: requests that are worked on at a time; the others wait.
            queue: of the instances that share a queue name one gets the request; None: every one gets it.
            params: narrow the subject.
        """
        places = asyncio.Semaphore(concurrency)

        async def answer(request: Msg) -> None:
            try:
                await self._answer(channel, handler, request)
            finally:
                places.release()

        async def take(request: Msg) -> None:
            await places.acquire()
            if not self._leaving:  # else it would outlive the bus, and could not answer
                self._spawn(answer(request), f"serve {channel.name}")

        return Handle(await self._subscribe(channel.wildcard(**params), queue or "", take))

    async def _answer(self, channel: Channel[Any, Any], handler: Handler, request: Msg) -> None:
        outcome, headers = "ok", None
        try:
            reply = await handler(channel.parse(request.subject) or {}, _question(channel, request))
            body, headers = _reply_bytes(channel, reply, self._nc.max_payload)
        except ValidationError as problem:
            outcome, body, headers = "invalid", wire.invalid(problem).body().to_bytes(), {wire.ERROR: "1"}
        except WherryError as error:
            outcome, body, headers = error.code, error.body().to_bytes(), {wire.ERROR: "1"}
        except Exception:  # noqa: BLE001 - logged with its traceback; one bad message stops nobody
            _log.exception("request_failed", channel=channel.name, subject=request.subject)
            failure = WherryError("internal", "Something went wrong inside; the log of the service says what.")
            outcome, body, headers = "internal", failure.body().to_bytes(), {wire.ERROR: "1"}
        observe.ANSWERED.labels(channel.name, outcome).inc()
        if request.reply:
            with suppress(Unanswered, Unavailable):
                await self.send(request.reply, body, headers)

    async def listen(
        self, channel: Channel[Any, Any], handler: Listener, *, queue: str | None = None, **params: str
    ) -> Handle:
        """Call *handler* with each message on *channel*, one after the other, in order; messages may be lost.

        Args:
            channel: where.
            handler: an exception of it is logged, and the next message taken.
            queue: of the listeners that share a queue name one gets each message; None: every one gets it.
            params: narrow the subject.

        Raises:
            Forbidden: this credential may not listen there.
        """

        async def hear(message: Msg) -> None:
            try:
                result = handler(wire.received(message.subject, message.data, message.headers, channel=channel))
                if isawaitable(result):
                    await result
            except Exception:  # noqa: BLE001 - logged with its traceback; one bad message stops nobody
                _log.exception("listener_failed", channel=channel.name, subject=message.subject)

        return Handle(await self._subscribe(channel.wildcard(**params), queue or "", hear))

    # --- reading streams ---------------------------------------------------------------------------------------------

    async def last(self, stream: str, subject_filter: str) -> Received[Any] | None:
        """Return the last message under *subject_filter*, as the stream's leader knows it, or None."""
        return await self._get(stream, {"last_by_subj": subject_filter})

    async def read(self, stream: str, seq: int) -> Received[Any] | None:
        """Return the message at *seq*, or None if it is not there (any more)."""
        return await self._get(stream, {"seq": seq})

    async def get_last(self, stream: str, subject: str) -> tuple[int, bytes] | None:
        """Return sequence and body of the latest message under *subject*, or None."""
        found = await self.last(stream, subject)
        return (found.seq, found.body) if found else None

    async def stream_last_seq(self, stream: str) -> int:
        """Return the sequence of the last message that *stream* has taken in.

        Raises:
            NotFound: there is no such stream.
        """
        info = await self.api(f"STREAM.INFO.{stream}", {})
        return int(info["state"]["last_seq"])

    async def _get(self, stream: str, which: Mapping[str, Any]) -> Received[Any] | None:
        try:
            found = await self.api(f"STREAM.MSG.GET.{stream}", which)
        except NotFound as problem:
            if str(_NO_MESSAGE) in problem.message:
                return None
            raise
        return wire.stored_message(found["message"])

    def follow(
        self, stream: str, filters: Sequence[str], *, start_seq: int
    ) -> AsyncGenerator[list[Received[Any]], None]:
        """Read *stream* from *start_seq* on and never end: in order, each message once, also over lost connections.

        Yields:
            What has arrived, at most 500 at a time. Once, when all that was there at the start has been given, an
            empty list.

        Raises:
            NotFound: the stream has been removed.
        """
        return Follower(self, stream, tuple(filters), max(1, start_seq)).run()

    def consume(
        self, stream: str, durable: str, *, batch: int = 256, wait_s: float = 5
    ) -> AsyncGenerator[list[Received[Any]], None]:
        """Read through a consumer that exists; each message comes again until it is settled. Never ends.

        Yields:
            What has arrived, at least one message and at most *batch*. A quiet stream yields nothing.

        Raises:
            NotFound: the consumer or its stream has been removed.
        """
        return Puller(self, stream, durable, batch, wait_s).run()


def _family(subject: str) -> str:
    """Return what a subject without a channel is counted under, e.g. ``wherry.leader``."""
    return ".".join(subject.split(".")[:2])


def _question(channel: Channel[Any, Any], request: Msg) -> Message | Raw:
    if channel.raw_body:
        return Raw(request.data, request.headers or {})
    return channel.message.from_bytes(request.data)


def _reply_bytes(channel: Channel[Any, Any], reply: Message | Raw | None, most: int) -> tuple[bytes, Mapping[str, str]]:
    if reply is None and channel.reply is not Empty:
        raise TypeError(f"the handler of {channel.name} returned nothing")
    raw = reply if isinstance(reply, Raw) else Raw((reply or Empty()).to_bytes(), {})
    if len(raw.body) > most:  # it could not be sent, and whoever asked would wait for it
        raise ValueError(f"the handler of {channel.name} returned {len(raw.body)} bytes; the broker takes {most}")
    return raw.body, raw.headers
