"""Readers of streams: one follows in order, one takes what must be settled; both outlive lost connections."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from nats.aio.msg import Msg

from shared import observe, wire
from shared.bus.answers import Backoff, Unanswered, status_of
from shared.bus.connection import Connection, Mailbox
from shared.errors import Forbidden, NotFound, WherryError
from shared.wire import BATCH_MAX, Received

_GONE_S = 8.0  # a stream or consumer that is missing for so long has been removed
_HEARTBEAT_S = 2.0  # of a followed stream; three missed mean that the reader is cut off

_log = observe.logger("bus")


class Missing:
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


class Follower:
    """Reads a stream in order through a push consumer with flow control, made anew whenever a message is missed."""

    def __init__(self, connection: Connection, stream: str, filters: tuple[str, ...], start_seq: int) -> None:
        self._connection, self._stream, self._filters = connection, stream, filters
        self._next_seq = start_seq
        self._consumer_seq = 0
        self._intact = True

    async def run(self) -> AsyncGenerator[list[Received[Any]], None]:
        caught_up = False
        while True:
            await self._connection.until_online()
            async with self._connection.mailbox() as mailbox:
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

    async def _open(self, consumer: str, mailbox: Mailbox) -> int:
        """Make a consumer that begins where reading stopped; return how many messages lie before it."""
        backoff, missing = Backoff(), Missing()
        while True:
            try:
                made = await self._connection.api(
                    f"CONSUMER.CREATE.{self._stream}.{consumer}", self._request(consumer, mailbox)
                )
            except Forbidden:
                raise
            except NotFound as gone:
                missing.note(gone)
                await asyncio.sleep(backoff.next_s())
            except WherryError as why:
                if self._connection.closed.is_set():
                    raise
                _log.warning("follow_failed", stream=self._stream, error=why.message)
                await asyncio.sleep(backoff.next_s())
            else:
                self._consumer_seq, self._intact = 0, True
                mailbox.heard_at = asyncio.get_running_loop().time()
                # One that an unanswered try has made may have sent some of them already.
                return int(made.get("num_pending", 0)) + int(made["delivered"]["consumer_seq"])

    async def _remove(self, consumer: str) -> None:
        """Remove the consumer where that is quickly done; the server does it by itself a little later."""
        if self._connection.is_connected:
            with suppress(WherryError):
                await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{consumer}", {}, retry_s=1)

    def _request(self, consumer: str, mailbox: Mailbox) -> dict[str, Any]:
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

    async def _next(self, mailbox: Mailbox) -> list[Received[Any]]:
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
                    messages.append(self._connection.delivered(message, delivery, settles=False))
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
        with suppress(Unanswered):
            if reply := message.reply or headers.get("Nats-Consumer-Stalled"):
                await self._connection.send(reply, b"")
        told = headers.get("Nats-Last-Consumer", "")
        if told.isdigit() and int(told) != self._consumer_seq:
            self._missed(int(told))

    def _missed(self, told: int) -> None:
        _log.info("follow_gap", stream=self._stream, had=self._consumer_seq, told=told)
        self._intact = False


class Puller:
    """Reads through a durable pull consumer, one request for messages at a time."""

    def __init__(self, connection: Connection, stream: str, durable: str, batch: int, wait_s: float) -> None:
        self._connection, self._batch, self._wait_s = connection, batch, wait_s
        self._name = f"{stream}.{durable}"
        self._pulls = 0
        self._left = 0
        self._problem: str | None = None

    async def run(self) -> AsyncGenerator[list[Received[Any]], None]:
        backoff, missing = Backoff(), Missing()
        await self._connection.until_online()
        async with self._connection.mailbox(".*") as mailbox:
            while True:
                await self._pull(mailbox)
                while self._left > 0:
                    arrived = await mailbox.drain(self._batch, self._wait_s)
                    if messages := self._sort(arrived):
                        backoff.reset()
                        missing.reset()
                        yield messages
                    if not arrived and asyncio.get_running_loop().time() - mailbox.heard_at > self._wait_s:
                        self._end("nothing heard")
                if self._problem:
                    _log.warning("consume_failed", consumer=self._name, error=self._problem)
                    await self._look_for_it(missing)
                    await asyncio.sleep(backoff.next_s())
                else:
                    missing.reset()

    async def _look_for_it(self, missing: Missing) -> None:
        try:
            await self._connection.api(f"CONSUMER.INFO.{self._name}", {}, retry_s=1)
        except NotFound as gone:
            missing.note(gone)
        except WherryError:
            missing.reset()  # nobody knows
        else:
            missing.reset()

    async def _pull(self, mailbox: Mailbox) -> None:
        await self._connection.until_online()
        self._pulls += 1
        self._problem, self._left = None, self._batch
        mailbox.heard_at = asyncio.get_running_loop().time()
        expires = int(self._wait_s * 1e9)
        wanted = {"batch": self._batch, "expires": expires, "idle_heartbeat": expires // 4}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._name}"
        self._connection.check_allowed(subject)
        try:
            await self._connection.send(subject, json.dumps(wanted).encode(), reply=f"{mailbox.inbox}.{self._pulls}")
        except Unanswered as why:
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
                messages.append(self._connection.delivered(message, delivery, settles=True))
            elif message.subject.endswith(f".{self._pulls}"):
                self._heed(message)
        return messages

    def _heed(self, message: Msg) -> None:
        status = status_of(message)
        if status in (404, 408):  # nothing came in time: normal
            self._end(None)
        elif status != 100:
            self._end(f"{status} {(message.headers or {}).get('Description', '')}")
