"""The connection: opened again whenever it is lost, with calls that are answered on one inbox."""

import asyncio
import itertools
import json
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import nats.errors
from nats.aio.client import Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from shared import observe, wire
from shared.bus.answers import Backoff, Unanswered, api_answer, checked
from shared.channels import Service
from shared.errors import Forbidden, Unavailable, WherryError
from shared.lane import LaneClient
from shared.settings import ServiceSettings
from shared.wire import Entry, Received

TRY_S = 5.0  # for one try of what is repeated; a lost connection ends it at once
_SWEEP_S = 0.1
_PENDING_BYTES = 8 * 1024 * 1024
_AUTH_REFUSALS_MAX = 3
_CLOSE_S = 5.0

_VIOLATION = re.compile(
    r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"\s]+)', re.IGNORECASE
)
# An "authentication timeout" is none: the server heard nothing in time, as on a line that carries one way only.
_REFUSED = re.compile(r"authorization violation|authentication (?:expired|revoked)", re.IGNORECASE)

_log = observe.logger("bus")


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


@dataclass(slots=True, eq=False)
class Mailbox:
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


class Connection:
    """A connection of one service, and questions to whatever listens there: `shared.bus.Bus` is made of it."""

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
        self._mailboxes: set[Mailbox] = set()

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
                call.answer.set_exception(Unanswered("the connection was lost", sent=True))

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
        try:
            # A flush that is cancelled leaves its ping behind, and the late answer to it ends nats-py's reading.
            await asyncio.shield(self._spawn(self._flush_surely(), "flush"))
        except asyncio.CancelledError:  # nobody else could ever stop it
            await Handle(subscription).stop()
            raise
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
            raise Unanswered("no connection yet", sent=False)
        cancels = _cancels()
        try:
            await self._nc.publish(subject, body, reply=reply, headers=dict(headers) if headers else None)
        except nats.errors.OutboundBufferLimitError:
            raise Unanswered("no connection, and the buffer is full", sent=False) from None
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
            raise Unavailable("The bus is closed for good.") from None
        if _cancels() > cancels:  # nats-py keeps it to itself while it waits for room
            raise asyncio.CancelledError

    async def _on_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call and not call.answer.done():
            call.answer.set_result(message)

    def _sweep(self) -> None:
        now = self._loop.time()
        for call in tuple(self._calls.values()):
            if call.deadline <= now and not call.answer.done():
                call.answer.set_exception(Unanswered("no answer in time", sent=True))
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._calls else None

    def _fail_calls(self, error: Exception) -> None:
        for call in tuple(self._calls.values()):
            if not call.answer.done():
                call.answer.set_exception(error)

    async def api(self, call: str, body: Mapping[str, Any], *, retry_s: float = 10) -> dict[str, Any]:
        """Ask JetStream's own API, e.g. ``STREAM.INFO.<stream>``, and return its answer.

        Raises:
            NotFound: no such stream, consumer or message.
            WherryError: code ``stream_refused``, with JetStream's words.
        """
        end = self._loop.time() + retry_s
        backoff = Backoff(0.1, 1.0)
        while True:
            left = max(0.0, end - self._loop.time())
            try:
                await self.until_online(left)
                answer = await self._call(f"$JS.API.{call}", json.dumps(body).encode(), None, min(left, TRY_S))
                return checked(call, api_answer(answer))
            except Unanswered as why:
                delay = backoff.next_s()
                if self._loop.time() + delay >= end:
                    raise Unavailable(f"JetStream does not answer {call}: {why}.") from None
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def mailbox(self, under: str = "") -> AsyncGenerator[Mailbox, None]:
        """Hold an inbox for a reader; *under* widens it. A push consumer finds plain subjects only."""
        mailbox = Mailbox(self._nc.new_inbox())
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
                    await self._call(message.reply, verb, None, TRY_S)
                else:
                    await self.send(message.reply, verb, None)
            except Unanswered as why:
                if wait:
                    raise Unavailable(f"{message.subject}: not settled: {why}.") from None

        return wire.received(
            message.subject, message.data, message.headers, delivery=delivery, settle=settle if settles else None
        )


def _cancels() -> int:
    """Return how often the running task has been told to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel *task* and wait until it has ended; its outcome is not wanted."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CLOSE_S)
