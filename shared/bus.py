"""The one door to NATS: connection, durable publishes, expected sequences, atomic batches, requests, consumers.

A publish that was not answered may still have happened. Durable writes are therefore repeated under one message id
until they are answered. A repeated write with an expectation goes out as an atomic batch of one: for a batch the server
looks for known ids first and compares sequences second, so that the writer's own earlier write shows as a duplicate and
not as a conflict (a plain publish does it the other way round).
"""

import asyncio
import itertools
import json
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Self, TypeVar

import nats.errors
from nats.aio.client import Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from shared import observe, wire
from shared.channels import Channel, Service
from shared.clock import utc_now
from shared.errors import Conflict, Forbidden, NoAnswer, NotFound, Unavailable, WherryError
from shared.events import Event
from shared.ids import new_id
from shared.lane import LaneClient
from shared.model import Empty, Message
from shared.settings import ServiceSettings
from shared.wire import BATCH_BYTES_MAX, BATCH_MAX, Entry, Raw, Received, Record, Stored

__all__ = ["Bus", "Handle", "Raw", "Received", "Record", "Stored", "job_filter"]

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
T = TypeVar("T")

#: Answers a request: parameters of the subject and the message (or Raw) in, the answer out.
Handler = Callable[[dict[str, str], Any], Awaitable[Message | Raw | None]]
Listener = Callable[[Received[Any]], Awaitable[None] | None]

EXIT_RESTART_ME = 75

_TRY_S = 5.0  # for one try of a durable write; a lost connection ends it at once
_SWEEP_S = 0.1
_PENDING_BYTES = 8 * 1024 * 1024
_IN_FLIGHT_MAX = 1024
_BATCHES_IN_FLIGHT_MAX = 16  # the server takes 50 a stream, of all clients together
_GONE_S = 8.0  # a stream or consumer that is missing for so long has been removed
_HEARTBEAT_S = 2.0  # of a followed stream; three missed mean that the reader is cut off
_AUTH_REFUSALS_MAX = 3
_CLOSE_S = 5.0

_WRONG_LAST_SEQUENCE = 10071
_DUPLICATE_IN_BATCH = 10201
_INCOMPLETE_BATCH = 10176
_NO_MESSAGE = 10037

_VIOLATION = re.compile(
    r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"\s]+)', re.IGNORECASE
)
# An "authentication timeout" is none: the server heard nothing in time, as on a line that carries one way only.
_REFUSED = re.compile(r"authorization violation|authentication (?:expired|revoked)", re.IGNORECASE)

_log = observe.logger("bus")


class _NoAnswerError(Exception):
    """No answer came; `sent` tells whether the message may have arrived."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class _LateConflict(Conflict):
    """A conflict found only after a try that was not answered."""


class _Backoff:
    """Delays that double from *first_s* to *last_s*, with jitter."""

    def __init__(self, first_s: float = 0.2, last_s: float = 5.0) -> None:
        self._first_s, self._last_s, self._next_s = first_s, last_s, first_s

    def next_s(self) -> float:
        delay, self._next_s = self._next_s, min(self._next_s * 2, self._last_s)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        self._next_s = self._first_s


@dataclass(slots=True)
class _Call:
    answer: asyncio.Future[Msg]
    deadline: float
    subjects: frozenset[str]


@dataclass(slots=True)
class Handle:
    """A running subscription."""

    _subscription: Subscription

    async def stop(self) -> None:
        """Hear no more of it. What has arrived already may still be handled."""
        with suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class Bus:
    """A connection of one service. Use as ``async with Bus.connect(settings, Service.STORAGE) as bus:``.

    Every call raises `Unavailable` when no answer came in its time, and `Forbidden` at once when the broker does not
    let this credential use the subject.
    """

    closed: asyncio.Event
    """Set when the client is closed for good (its credential was refused or revoked): exit with `EXIT_RESTART_ME`."""
    reconnects: int
    """How often the connection came back: what a subscription should have heard meanwhile is lost."""

    def __init__(self, settings: ServiceSettings, service: Service, peer: str | None, purpose: str) -> None:
        """Use `connect`."""
        self.service = service
        self.peer = peer
        self.closed = asyncio.Event()
        self.reconnects = 0
        self._settings = settings
        self._name = "/".join(part for part in (service.value, peer, purpose) if part)
        self._nc = LaneClient()
        self._loop = asyncio.get_running_loop()
        self._online = asyncio.Event()
        self._refused: asyncio.Future[None] = self._loop.create_future()
        self._refusals = 0
        self._violations: dict[str, str] = {}
        self._leaving = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._inbox = ""
        self._tokens = itertools.count(1)
        self._calls: dict[str, _Call] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._window = asyncio.Semaphore(_IN_FLIGHT_MAX)
        self._batches = asyncio.Semaphore(_BATCHES_IN_FLIGHT_MAX)
        self._groups: dict[str, _Group] = {}
        self._mailboxes: set[_Mailbox] = set()

    # --- the connection ----------------------------------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: ServiceSettings,
        service: Service,
        *,
        peer: str | None = None,
        purpose: str = "main",
        wait: bool = True,
    ) -> AsyncGenerator[Self, None]:
        """Connect, waiting for a server as long as it takes.

        Args:
            settings: where, and as whom.
            service: what connects; part of its name and of the source of its events.
            peer: the node's id for agents, the instance's id for gateways.
            purpose: what this connection is for, where a service has several.
            wait: for the first connection; else it comes later, as after a loss, and a refusal sets `closed`.

        Raises:
            Forbidden: the credential is refused.
        """
        bus = cls(settings, service, peer, purpose)
        try:
            if wait:
                await bus._open()
            else:
                bus._spawn(bus._open_later(), "open")
            yield bus
        finally:
            await bus._close()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._online.is_set() and self._nc.is_connected

    async def _open(self) -> None:
        user, password = self._settings.nats_user, self._settings.nats_password.get_secret_value()
        connecting = asyncio.ensure_future(
            self._nc.connect(
                [url.strip() for url in self._settings.nats_url.split(",")],
                name=self._name,
                user=user or None,
                password=password or None,
                inbox_prefix=f"_INBOX.{user or self._name.replace('/', '-')}",
                ping_interval=5,
                max_outstanding_pings=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                reconnect_to_server_handler=self._next_server,
                pending_size=_PENDING_BYTES,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )
        )
        try:
            await asyncio.wait({connecting, self._refused}, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
            await connecting
        finally:
            await _end(connecting)
        self._refusals = 0
        self._online.set()
        self._inbox = self._nc.new_inbox()
        await self._subscribe(f"{self._inbox}.*", "", self._on_answer)

    async def _open_later(self) -> None:
        try:
            await self._open()
        except Forbidden as error:
            _log.critical("bus_closed", error=error.message)
            self.closed.set()
            self._online.set()

    def _next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Choose where to reconnect, and after how many seconds: 0.2 to 5, lest a fleet come back all at once."""
        refused = self._nc._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if refused is not None:
            refused.close()  # nats-py leaves the socket of a refused attempt open
        server = random.choice(servers)  # noqa: S311 - spreads load, keeps no secret
        return server, random.uniform(0.2, min(5.0, 0.4 * 2 ** min(server.reconnects, 6)))  # noqa: S311

    async def _close(self) -> None:
        self._leaving = True
        with suppress(nats.errors.Error, OSError, TimeoutError):
            if self.is_connected:
                async with asyncio.timeout(_CLOSE_S):
                    await self._nc.flush()
        for task in tuple(self._tasks):
            await _end(task)
        if self._sweeper:
            self._sweeper.cancel()
        # nats-py asserts, where it never had a server, that there is one to leave; what went wrong before counts.
        with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
            async with asyncio.timeout(_CLOSE_S):
                await self._nc.close()
        self._fail_calls(Unavailable("The bus was closed."))

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if isinstance(error, nats.errors.SlowConsumerError):
            observe.SLOW_CONSUMER.inc()
            _log.error("slow_consumer", subject=error.subject)
        elif violation := _VIOLATION.search(text):
            self._on_violation(violation[2], text)
        elif _REFUSED.search(text):
            self._on_refusal(text)
        elif not self._leaving:
            _log.warning("bus_error", error=text or repr(error))

    def _on_violation(self, subject: str, text: str) -> None:
        """Fail what waits on *subject*. nats-py hands the server's words on in lower case."""
        observe.FORBIDDEN.inc()
        _log.error("bus_forbidden", subject=subject, error=text)
        self._violations[subject.lower()] = text
        for call in tuple(self._calls.values()):
            if not call.answer.done() and any(one.lower() == subject.lower() for one in call.subjects):
                call.answer.set_exception(Forbidden(f"The broker does not let {self._name} use {subject}."))
        self._poke_readers()

    def _on_refusal(self, text: str) -> None:
        self._refusals += 1
        _log.error("bus_refused", error=text, times=self._refusals)
        if not self._online.is_set() and not self._inbox:
            if not self._refused.done():
                self._refused.set_exception(Forbidden(f"The broker refuses the credential of {self._name}: {text}"))
        elif self._refusals >= _AUTH_REFUSALS_MAX:
            self._spawn(self._nc.close(), "close_after_refusal")

    async def _on_disconnected(self) -> None:
        self._online.clear()
        if not self._leaving:
            _log.warning("bus_disconnected")
        for call in tuple(self._calls.values()):
            if not call.answer.done():
                call.answer.set_exception(_NoAnswerError("the connection was lost", sent=True))

    async def _on_reconnected(self) -> None:
        self._refusals = 0
        self._violations.clear()
        self._online.set()
        self.reconnects += 1
        observe.RECONNECTS.inc()
        _log.info("bus_reconnected", server=self._nc.connected_url.netloc if self._nc.connected_url else None)
        self._poke_readers()

    async def _on_closed(self) -> None:
        if self._leaving:
            return
        _log.critical("bus_closed", error=str(self._nc.last_error))
        self.closed.set()
        self._online.set()  # whoever waits for the connection finds that there will be none
        self._fail_calls(Unavailable("The bus is closed for good."))
        self._poke_readers()

    def _poke_readers(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.poke()

    async def until_online(self, timeout_s: float | None = None) -> None:
        if not self._online.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._online.wait()
            except TimeoutError:
                raise Unavailable("There is no connection to NATS.") from None
        if self.closed.is_set() or self._leaving:
            raise Unavailable("The bus is closed for good.")

    def check_allowed(self, subject: str) -> None:
        """Raise `Forbidden` if the broker has refused a publish on *subject* since the last connect."""
        if text := self._violations.get(subject.lower()):
            raise Forbidden(f"The broker does not let {self._name} use {subject}: {text}")

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run *work* beside; the task is kept, and an exception of it logged."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("task_failed", task=task.get_name(), exc_info=error)

    async def _subscribe(self, subject: str, queue: str, callback: Callable[[Msg], Awaitable[None]]) -> Subscription:
        await self.until_online(self._settings.request_timeout_s)
        subscription = await self._nc.subscribe(subject, queue=queue, cb=callback)
        # A flush that is cancelled leaves its ping behind, and the late answer to it ends nats-py's reading.
        await asyncio.shield(self._spawn(self._flush_surely(), "flush"))
        if text := self._violations.get(subject.lower()):
            await Handle(subscription).stop()
            raise Forbidden(f"The broker does not let {self._name} listen to {subject}: {text}")
        return subscription

    async def _flush_surely(self) -> None:
        """Return when the server has answered to all that was sent: its refusals have arrived then.

        nats-py sends a ping ahead of what it still holds, so that only the second one is surely behind.
        """
        with suppress(nats.errors.Error, OSError, TimeoutError):
            await self._nc.flush(5)
            await self._nc.flush(5)

    # --- calls: one inbox for all answers, numbered tokens, one timer ------------------------------------------------

    async def _call(
        self,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        ahead: Sequence[Entry] = (),
    ) -> Msg:
        """Publish *ahead*, then the message, and return its answer; that nobody listens is an answer of status 503."""
        token = str(next(self._tokens))
        subjects = frozenset([subject, *(one.subject for one in ahead)])
        call = _Call(self._loop.create_future(), self._loop.time() + timeout_s, subjects)
        self._calls[token] = call
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        try:
            for one in ahead:
                await self.send(one.subject, one.body, one.headers)
            await self.send(subject, body, headers, reply=f"{self._inbox}.{token}")
            return await call.answer
        finally:
            self._calls.pop(token, None)
            if not call.answer.done():
                call.answer.cancel()
            elif not call.answer.cancelled():
                call.answer.exception()  # seen, also where the publish failed first

    async def send(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        if len(body) > self._nc.max_payload:
            raise WherryError("too_large", f"{len(body)} bytes for {subject}; the broker takes {self._nc.max_payload}.")
        if not self._inbox:
            raise _NoAnswerError("no connection yet", sent=False)
        try:
            await self._nc.publish(subject, body, reply=reply, headers=dict(headers) if headers else None)
        except nats.errors.OutboundBufferLimitError:
            raise _NoAnswerError("no connection, and the buffer is full", sent=False) from None
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
            raise Unavailable("The bus is closed for good.") from None

    async def _on_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call and not call.answer.done():
            call.answer.set_result(message)

    def _sweep(self) -> None:
        now = self._loop.time()
        for call in tuple(self._calls.values()):
            if call.deadline <= now and not call.answer.done():
                call.answer.set_exception(_NoAnswerError("no answer in time", sent=True))
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._calls else None

    def _fail_calls(self, error: Exception) -> None:
        for call in tuple(self._calls.values()):
            if not call.answer.done():
                call.answer.set_exception(error)

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
        except _NoAnswerError:
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
            self._groups[stream] = group = _Group(self, stream)
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
        backoff = _Backoff(0.1, 2.0)
        while True:
            left = _TRY_S if end is None else end - self._loop.time()
            why: Exception
            try:
                await self.until_online(None if end is None else left)
                return await self._try_write(entries, stream, min(left, _TRY_S), suspect=suspect)
            except _NoAnswerError as unanswered:
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
        said = _api_answer(answer)
        problem = said.get("error")
        if problem is None:
            observe.PUBLISHED.labels(stream).inc(len(entries))
            first = int(said["seq"]) - len(entries) + 1
            return [Stored(first + i, bool(said.get("duplicate"))) for i in range(len(entries))]
        match int(problem.get("err_code", 0)):
            case code if code == _WRONG_LAST_SEQUENCE:
                observe.CONFLICTS.labels(stream).inc()
                kind = _LateConflict if suspect else Conflict
                raise kind(f"{entries[0].subject}: {problem.get('description')}")
            case code if code == _DUPLICATE_IN_BATCH:
                return await self._find_own(entries, stream, timeout_s)
            case code if code == _INCOMPLETE_BATCH or int(problem.get("code", 0)) in (429, 500, 503):
                raise _NoAnswerError(str(problem.get("description")), sent=False)
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
        backoff = _Backoff(0.1, 2.0)
        while True:
            await self.until_online(max(0.0, end - self._loop.time()))
            try:
                answer = await self._call(subject, body, headers, timeout_s)
            except _NoAnswerError as why:
                if why.sent:
                    raise NoAnswer(f"No answer on {subject}: {why}.") from None
            else:
                if _status(answer) != 503:
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
            self._spawn(answer(request), f"serve {channel.name}")

        return Handle(await self._subscribe(channel.wildcard(**params), queue or "", take))

    async def _answer(self, channel: Channel[Any, Any], handler: Handler, request: Msg) -> None:
        outcome, headers = "ok", None
        try:
            reply = await handler(channel.parse(request.subject) or {}, _question(channel, request))
            body, headers = _reply_bytes(channel, reply)
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
            with suppress(_NoAnswerError, Unavailable):
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

    async def api(self, call: str, body: Mapping[str, Any], *, retry_s: float = 10) -> dict[str, Any]:
        """Ask JetStream's own API, e.g. ``STREAM.INFO.<stream>``, and return its answer.

        Raises:
            NotFound: no such stream, consumer or message.
            WherryError: code ``stream_refused``, with JetStream's words.
        """
        end = self._loop.time() + retry_s
        backoff = _Backoff(0.1, 1.0)
        while True:
            left = max(0.0, end - self._loop.time())
            try:
                await self.until_online(left)
                answer = await self._call(f"$JS.API.{call}", json.dumps(body).encode(), None, min(left, _TRY_S))
                return _checked(call, _api_answer(answer))
            except _NoAnswerError as why:
                delay = backoff.next_s()
                if self._loop.time() + delay >= end:
                    raise Unavailable(f"JetStream does not answer {call}: {why}.") from None
            await asyncio.sleep(delay)

    async def _get(self, stream: str, which: Mapping[str, Any]) -> Received[Any] | None:
        try:
            found = await self.api(f"STREAM.MSG.GET.{stream}", which)
        except NotFound as problem:
            if problem.__cause__ is None and str(_NO_MESSAGE) in problem.message:
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
        return _Follower(self, stream, tuple(filters), max(1, start_seq)).run()

    def consume(
        self, stream: str, durable: str, *, batch: int = 256, wait_s: float = 5
    ) -> AsyncGenerator[list[Received[Any]], None]:
        """Read through a consumer that exists; each message comes again until it is settled. Never ends.

        Yields:
            What has arrived, at least one message and at most *batch*. A quiet stream yields nothing.

        Raises:
            NotFound: the consumer or its stream has been removed.
        """
        return _Puller(self, stream, durable, batch, wait_s).run()

    @asynccontextmanager
    async def mailbox(self, under: str = "") -> "AsyncGenerator[_Mailbox, None]":
        """Hold an inbox for a reader; *under* widens it. A push consumer finds plain subjects only."""
        mailbox = _Mailbox(self._nc.new_inbox())
        subscription = await self._subscribe(f"{mailbox.inbox}{under}", "", mailbox.take)
        self._mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
            await Handle(subscription).stop()

    def delivered(self, message: Msg, delivery: wire.Delivery, *, settles: bool) -> Received[Any]:
        async def settle(verb: bytes, wait: bool) -> None:  # noqa: FBT001 - the shape of wire.Settle
            try:
                if wait:
                    await self._call(message.reply, verb, None, _TRY_S)
                else:
                    await self.send(message.reply, verb, None)
            except _NoAnswerError as why:
                if wait:
                    raise Unavailable(f"{message.subject}: not settled: {why}.") from None

        return wire.received(
            message.subject, message.data, message.headers, delivery=delivery, settle=settle if settles else None
        )


@dataclass(slots=True, eq=False)
class _Mailbox:
    """Where a reader's messages arrive. None among them means: the connection changed, look around."""

    inbox: str
    heard_at: float = 0.0
    _arrived: asyncio.Queue[Msg | None] = field(default_factory=asyncio.Queue)

    async def take(self, message: Msg) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._arrived.put_nowait(message)

    def poke(self) -> None:
        self._arrived.put_nowait(None)

    async def drain(self, limit: int, wait_s: float) -> list[Msg | None]:
        """Return what is there, waiting at most *wait_s* seconds for the first."""
        try:
            async with asyncio.timeout(wait_s):  # before Python 3.12, `wait_for` can swallow a cancellation
                found = [await self._arrived.get()]
        except TimeoutError:
            return []
        while len(found) < limit and not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        return found


class _Group:
    """Group commit for one stream: what arrives while a batch is under way makes up the next."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self._bus, self._stream = bus, stream
        self._waiting: deque[tuple[Entry, asyncio.Future[Stored]]] = deque()
        self._some = asyncio.Event()

    async def add(self, entry: Entry) -> Stored:
        stored: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, stored))
        self._some.set()
        return await stored

    async def run(self) -> None:
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                await asyncio.sleep(0)  # whoever can run now adds its own
                while batch := self._take():
                    await self._store(batch)
        finally:
            _fail_all(self._waiting, Unavailable("The bus was closed."))

    def _take(self) -> list[tuple[Entry, asyncio.Future[Stored]]]:
        """Take the next batch out of the queue.

        Two writers that expect the same of one filter never share a batch: the server compares all of a batch with the
        stream before it, and both would win.
        """
        taken: list[tuple[Entry, asyncio.Future[Stored]]] = []
        left: list[tuple[Entry, asyncio.Future[Stored]]] = []
        marks: set[str | None] = set()
        size = 0
        while self._waiting and len(taken) < BATCH_MAX and size < BATCH_BYTES_MAX:
            one = self._waiting.popleft()
            entry, stored = one
            mine = {entry.expects, entry.headers[wire.MSG_ID]} - {None}
            if stored.done():
                continue  # whoever waited for it has given up before it was sent
            if mine & marks:
                left.append(one)
                continue
            marks |= mine
            size += len(entry.body)
            taken.append(one)
        self._waiting.extendleft(reversed(left))
        return taken

    async def _store(self, batch: Sequence[tuple[Entry, asyncio.Future[Stored]]]) -> None:
        try:
            found = await self._bus.write([entry for entry, _ in batch], self._stream)
        except WherryError as error:
            if len(batch) == 1 or isinstance(error, Unavailable):
                _fail_all(batch, error)
            else:
                late = isinstance(error, _LateConflict)
                await asyncio.gather(*(self._store_alone(entry, stored, suspect=late) for entry, stored in batch))
        except Exception as error:  # noqa: BLE001 - logged, and handed to whoever waits
            _log.exception("group_failed", stream=self._stream)
            _fail_all(batch, error)
        except asyncio.CancelledError:
            _fail_all(batch, Unavailable("The bus was closed."))
            raise
        else:
            for (_, stored), place in zip(batch, found, strict=True):
                if not stored.done():
                    stored.set_result(place)

    async def _store_alone(self, entry: Entry, stored: asyncio.Future[Stored], *, suspect: bool) -> None:
        try:
            [place] = await self._bus.write([entry], self._stream, suspect=suspect)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for this record
            _fail(stored, error)
        else:
            if not stored.done():
                stored.set_result(place)


class _Missing:
    """How long a stream or consumer has been missing. A server that begins may say so for a moment."""

    def __init__(self) -> None:
        self._since: float | None = None

    def reset(self) -> None:
        self._since = None

    def note(self, gone: NotFound) -> None:
        """Take note that it is missing; raise *gone* when it has been for `_GONE_S` seconds: it will not come back."""
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        _log.warning("missing", error=gone.message)
        if now - self._since >= _GONE_S:
            raise gone


class _Follower:
    """Reads a stream in order through a push consumer with flow control, made anew whenever a message is missed."""

    def __init__(self, bus: Bus, stream: str, filters: tuple[str, ...], start_seq: int) -> None:
        self._bus, self._stream, self._filters = bus, stream, filters
        self._next_seq = start_seq
        self._consumer_seq = 0
        self._intact = True

    async def run(self) -> AsyncGenerator[list[Received[Any]], None]:
        caught_up = False
        while True:
            await self._bus.until_online()
            async with self._bus.mailbox() as mailbox:
                consumer = mailbox.inbox.rpartition(".")[2]
                behind = await self._open(consumer, mailbox)
                try:
                    while self._intact:
                        if behind <= 0 and not caught_up:
                            caught_up = True
                            yield []
                        if messages := await self._next(mailbox):
                            behind -= len(messages)
                            yield messages
                finally:
                    await self._remove(consumer)

    async def _open(self, consumer: str, mailbox: "_Mailbox") -> int:
        """Make a consumer that begins where reading stopped; return how many messages lie before it."""
        backoff, missing = _Backoff(), _Missing()
        while True:
            try:
                made = await self._bus.api(
                    f"CONSUMER.CREATE.{self._stream}.{consumer}", self._request(consumer, mailbox)
                )
            except Forbidden:
                raise
            except NotFound as gone:
                missing.note(gone)
                await asyncio.sleep(backoff.next_s())
            except WherryError as why:
                if self._bus.closed.is_set():
                    raise
                _log.warning("follow_failed", stream=self._stream, error=why.message)
                await asyncio.sleep(backoff.next_s())
            else:
                self._consumer_seq, self._intact = 0, True
                mailbox.heard_at = asyncio.get_running_loop().time()
                return int(made.get("num_pending", 0))

    async def _remove(self, consumer: str) -> None:
        """Remove the consumer where that is quickly done; the server does it by itself a little later."""
        if self._bus.is_connected:
            with suppress(WherryError):
                await self._bus.api(f"CONSUMER.DELETE.{self._stream}.{consumer}", {}, retry_s=1)

    def _request(self, consumer: str, mailbox: "_Mailbox") -> dict[str, Any]:
        config = {
            "name": consumer,
            "deliver_subject": mailbox.inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._next_seq,
            "filter_subjects": self._filters,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
            "inactive_threshold": int(60e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        return {"stream_name": self._stream, "config": config}

    async def _next(self, mailbox: "_Mailbox") -> list[Received[Any]]:
        """Return the messages that have arrived and are next in order, and answer the server's own words among them."""
        messages: list[Received[Any]] = []
        for message in await mailbox.drain(BATCH_MAX, _HEARTBEAT_S):
            if message is None:
                self._intact = False
            elif delivery := wire.parse_ack(message.reply):
                if delivery.consumer_seq != self._consumer_seq + 1:
                    self._missed(delivery.consumer_seq)
                else:
                    self._consumer_seq = delivery.consumer_seq
                    self._next_seq = delivery.seq + 1
                    messages.append(self._bus.delivered(message, delivery, settles=False))
            else:
                await self._heed(message)
            if not self._intact:
                break
        silent_s = asyncio.get_running_loop().time() - mailbox.heard_at
        if silent_s > 3 * _HEARTBEAT_S:
            _log.warning("follow_silent", stream=self._stream, silent_s=round(silent_s, 1))
            self._intact = False
        return messages

    async def _heed(self, message: Msg) -> None:
        """Answer a request for flow control (all that came before has been taken), and see what a heartbeat says."""
        headers = message.headers or {}
        with suppress(_NoAnswerError):
            if reply := message.reply or headers.get("Nats-Consumer-Stalled"):
                await self._bus.send(reply, b"")
        told = headers.get("Nats-Last-Consumer", "")
        if told.isdigit() and int(told) != self._consumer_seq:
            self._missed(int(told))

    def _missed(self, told: int) -> None:
        _log.info("follow_gap", stream=self._stream, had=self._consumer_seq, told=told)
        self._intact = False


class _Puller:
    """Reads through a durable pull consumer, one request for messages at a time."""

    def __init__(self, bus: Bus, stream: str, durable: str, batch: int, wait_s: float) -> None:
        self._bus, self._batch, self._wait_s = bus, batch, wait_s
        self._name = f"{stream}.{durable}"
        self._pulls = 0
        self._left = 0
        self._problem: str | None = None

    async def run(self) -> AsyncGenerator[list[Received[Any]], None]:
        backoff, missing = _Backoff(), _Missing()
        await self._bus.until_online()
        async with self._bus.mailbox(".*") as mailbox:
            while True:
                await self._pull(mailbox)
                while self._left > 0:
                    arrived = await mailbox.drain(self._batch, self._wait_s)
                    if messages := self._sort(arrived):
                        backoff.reset()
                        yield messages
                    if not arrived and asyncio.get_running_loop().time() - mailbox.heard_at > self._wait_s:
                        self._end("nothing heard")
                if self._problem:
                    _log.warning("consume_failed", consumer=self._name, error=self._problem)
                    await self._look_for_it(missing)
                    await asyncio.sleep(backoff.next_s())

    async def _look_for_it(self, missing: "_Missing") -> None:
        try:
            await self._bus.api(f"CONSUMER.INFO.{self._name}", {}, retry_s=1)
        except NotFound as gone:
            missing.note(gone)
        except WherryError:
            missing.reset()  # nobody knows
        else:
            missing.reset()

    async def _pull(self, mailbox: _Mailbox) -> None:
        await self._bus.until_online()
        self._pulls += 1
        self._problem, self._left = None, self._batch
        mailbox.heard_at = asyncio.get_running_loop().time()
        expires = int(self._wait_s * 1e9)
        wanted = {"batch": self._batch, "expires": expires, "idle_heartbeat": expires // 4}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._name}"
        self._bus.check_allowed(subject)
        try:
            await self._bus.send(subject, json.dumps(wanted).encode(), reply=f"{mailbox.inbox}.{self._pulls}")
        except _NoAnswerError as why:
            self._end(str(why))

    def _end(self, problem: str | None) -> None:
        self._left, self._problem = 0, problem

    def _sort(self, arrived: Sequence[Msg | None]) -> list[Received[Any]]:
        messages: list[Received[Any]] = []
        for message in arrived:
            if message is None:
                self._end("the connection changed")
            elif delivery := wire.parse_ack(message.reply):
                self._left -= 1
                messages.append(self._bus.delivered(message, delivery, settles=True))
            elif message.subject.endswith(f".{self._pulls}"):
                self._heed(message)
        return messages

    def _heed(self, message: Msg) -> None:
        status = _status(message)
        if status in (404, 408):  # nothing came in time: normal
            self._end(None)
        elif status != 100:
            self._end(f"{status} {(message.headers or {}).get('Description', '')}")


def job_filter(job_id: str) -> str:
    """Return the filter under which a job's events are compared and set: ``wherry.job.*.<job_id>.>``."""
    return f"wherry.job.*.{job_id}.>"


def _family(subject: str) -> str:
    """Return what a subject without a channel is counted under, e.g. ``wherry.leader``."""
    return ".".join(subject.split(".")[:2])


def _fail_all(batch: Iterable[tuple[Entry, asyncio.Future[Stored]]], error: Exception) -> None:
    for _, stored in batch:
        _fail(stored, error)


def _fail(stored: asyncio.Future[Stored], error: Exception) -> None:
    if not stored.done():
        stored.set_exception(error)


def _status(message: Msg) -> int | None:
    """Return the status of a message that the server itself sent, or None."""
    status = (message.headers or {}).get("Status", "") if not message.data else ""
    return int(status) if status.isdigit() else None


def _api_answer(message: Msg) -> dict[str, Any]:
    """Return the JSON of an answer from JetStream.

    Raises:
        _NoAnswerError: nothing listens (no such stream, or the server is still starting).
    """
    if _status(message) == 503:
        raise _NoAnswerError("no stream listens there", sent=False)
    return json.loads(message.data)


def _checked(call: str, said: dict[str, Any]) -> dict[str, Any]:
    problem = said.get("error")
    if problem is None:
        return said
    text = f"{call}: {problem.get('description')} ({problem.get('err_code')})"
    match int(problem.get("code", 0)):
        case 404:
            raise NotFound(text)
        case 503:
            raise _NoAnswerError(text, sent=False)
        case _:
            raise WherryError("stream_refused", text)


def _question(channel: Channel[Any, Any], request: Msg) -> Message | Raw:
    if channel.raw_body:
        return Raw(request.data, request.headers or {})
    return channel.message.from_bytes(request.data)


def _reply_bytes(channel: Channel[Any, Any], reply: Message | Raw | None) -> tuple[bytes, dict[str, str] | None]:
    if isinstance(reply, Raw):
        return reply.body, dict(reply.headers)
    if reply is None and channel.reply is not Empty:
        raise TypeError(f"the handler of {channel.name} returned nothing")
    return (reply or Empty()).to_bytes(), None


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel *task* and wait until it has ended; its outcome is not wanted."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CLOSE_S)
