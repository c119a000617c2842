"""Replicas of services: whether they are well, and the requests that gateways send them over the bus."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from services.node_agent.adapters.container_http import Answered, ContainerHttp
from services.node_agent.core import facts as f
from services.node_agent.core.attempt import Held, Phase
from services.node_agent.core.container import Key
from services.node_agent.core.serving import Budget, Door, Health, News
from services.node_agent.ports import Runtime
from shared import observe
from shared.bus import Bus, Raw
from shared.channels import SERVE
from shared.clock import monotonic
from shared.errors import Unavailable, WherryError
from shared.fleet import HeldAttempt
from shared.requests.blobs import CHUNK_BYTES
from shared.requests.serving import SERVE_HEADER, ServeAnswer, ServeStep

#: Seconds for which a step is held until the program has answered; then the gateway asks again.
HOLD_S = 5.0
#: Seconds that a request waits for another to leave a replica that has as many as it takes.
WAIT_S = 1.0
#: Seconds after which what nobody asks for any more is dropped.
_FORGET_S = 30.0
_PROBE_S = 5.0
#: Bodies in memory, of all requests together, as a multiple of the largest.
_BODIES = 4
_STEPS_MAX = 2048  # under way at once
_PAUSE_S = 2.0
#: Of the grace of a stop, what is left for the program itself to end: at most so many seconds, and such a part.
_TERM_S, _TERM_SHARE = 5.0, 0.25
_log = observe.logger("serving")


@dataclass(slots=True)
class _Replica:
    """One replica on this node."""

    held: Held
    door: Door
    health: Health
    places: asyncio.Semaphore
    http: ContainerHttp | None = None
    stirred: asyncio.Event = field(default_factory=asyncio.Event)  # something has left it
    attending: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request: what has come of its body, then what is left of its answer.

    Attributes:
        parts: of the body, by their offset.
        is_asked: the program may have got it.
    """

    job_id: str
    touched_at: float
    parts: dict[int, bytes] = field(default_factory=dict[int, bytes])
    reserved: int = 0
    work: asyncio.Task[Answered] | None = None
    is_asked: bool = False
    took_s: float = 0.0


class Serving:
    """All replicas of this node.

    Args:
        connect: opens the connection that requests come over, once there is a replica.
        node: the node's id.
        runtimes: by name.
        post: takes facts.
        body_max: bytes of one body, of a request or an answer.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Bus]],
        node: str,
        runtimes: Mapping[str, Runtime],
        post: Callable[[f.Fact], None],
        body_max: int,
    ) -> None:
        self._connect, self._node, self._runtimes, self._post = connect, node, runtimes, post
        self._body_max = body_max
        self._replicas: dict[str, _Replica] = {}
        self._exchanges: dict[str, _Exchange] = {}
        self._budget = Budget(_BODIES * body_max)
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Answer requests until cancelled, from the first replica on."""
        await self._wanted.wait()
        async with self._connect() as bus:
            while True:
                try:
                    await bus.until_online()
                    await bus.serve(SERVE, self._step, queue=None, concurrency=_STEPS_MAX, node_id=self._node)
                    break
                except Unavailable as error:
                    _log.warning("not_serving", error=error.message)
                    await asyncio.sleep(_PAUSE_S)
            while True:
                await asyncio.sleep(_FORGET_S / 2)
                self._forget_old()

    def attend(self, held: Held) -> None:
        """Look after a replica from now on: it is asked once it is well."""
        service = held.order.service
        known = self._replicas.get(held.order.job_id)
        if service is None or (known is not None and known.held.key == held.key):
            return
        if known is not None:
            self.leave(known.held.key)
        health = Health(is_ready=held.phase is Phase.RUNNING)
        replica = _Replica(held, Door(), health, asyncio.Semaphore(service.concurrency))
        self._replicas[held.order.job_id] = replica
        replica.attending = asyncio.create_task(self._attend(replica), name=f"attend {held.order.job_id}")
        self._wanted.set()

    def leave(self, key: Key) -> None:
        """Look after a replica no more: it has ended, or goes."""
        replica = self._replicas.get(key.job_id)
        if replica is not None and replica.held.key == key:
            del self._replicas[key.job_id]
            if replica.attending is not None:
                replica.attending.cancel()
            for exchange in self._exchanges.values():
                if exchange.job_id == key.job_id and exchange.work is not None:
                    exchange.work.cancel()  # a connection to an address that is gone takes seconds to fail

    async def drain(self, key: Key, grace_s: float) -> float:
        """Take no new request, and return once those within are answered: how many seconds of *grace_s* are left.

        A part of them is for the program to end.
        """
        replica = self._replicas.get(key.job_id)
        if replica is None or replica.held.key != key:
            return grace_s
        began = monotonic()
        replica.door.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s - min(_TERM_S, grace_s * _TERM_SHARE)):
                while self._has_work(key.job_id, replica.door):
                    replica.stirred.clear()
                    await replica.stirred.wait()
        return max(0.0, grace_s - (monotonic() - began))

    def counted(self, held: HeldAttempt) -> HeldAttempt:
        """Return what a heartbeat says of an attempt, with what it has served."""
        replica = self._replicas.get(held.job_id)
        if replica is None or replica.held.key != (held.job_id, held.attempt):
            return held
        return held.model_copy(update={"served": replica.door.served, "in_flight": replica.door.inside})

    async def close(self) -> None:
        """Stop everything; programs run on."""
        tasks: list[asyncio.Task[Any]] = [one.attending for one in self._replicas.values() if one.attending is not None]
        tasks += [one.work for one in self._exchanges.values() if one.work is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- health ---

    async def _attend(self, replica: _Replica) -> None:
        """Look at a replica again and again, until it is given up. Whatever breaks is a look that has found nothing."""
        key, served = replica.held.key, 0
        try:
            while True:
                # What it has answered since the last look says as much as a look.
                why = "" if replica.door.served > served else await self._look(replica)
                served = replica.door.served
                match replica.health.seen(is_well=not why):
                    case News.READY:
                        self._post(f.Ready(key))
                    case News.UNHEALTHY:
                        _log.warning("replica_unhealthy", job_id=key.job_id, attempt=key.attempt, why=why)
                        self._post(f.Unhealthy(key, f"It stopped answering: {why}."))
                    case News.NOTHING:
                        pass
                replica.door.is_open = replica.http is not None and replica.health.is_ready
                await asyncio.sleep(replica.health.pause_s)
        finally:
            if replica.http is not None:
                await replica.http.close()

    async def _look(self, replica: _Replica) -> str:
        order, held = replica.held.order, replica.held
        assert order.service is not None  # noqa: S101 - attended only with one
        try:
            if replica.http is None:
                runtime = self._runtimes[order.spec.runtime]
                host, port = await runtime.address(held.key, held.handle, order.service.port)
                # One more for the looks: requests that hang must not make it seem unwell.
                replica.http = ContainerHttp(host, port, order.service.concurrency + 1)
            return await replica.http.is_well(order.service.health, _PROBE_S)
        except WherryError as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - a program may answer anything
            return repr(error)

    # --- requests ---

    async def _step(self, params: dict[str, str], raw: Raw) -> Raw:
        step = ServeStep.from_bytes(raw.headers.get(SERVE_HEADER, "").encode())
        match step.step:
            case "part":
                return self._take_part(params["job_id"], step, raw.body)
            case "ask":
                return await self._take(params["job_id"], step, raw.body)
            case "more":
                return await self._give(self._exchange(step), step.request_id, step.offset)
            case "drop":
                self._forget(step.request_id)
                return _raw(ServeAnswer())

    def _take_part(self, job_id: str, step: ServeStep, body: bytes) -> Raw:
        self._replica(job_id)
        exchange = self._exchanges.get(step.request_id) or self._open(job_id, step)
        exchange.touched_at = monotonic()
        if step.offset + len(body) > exchange.reserved:
            raise WherryError("invalid", "There is more of the body than was announced.")
        exchange.parts[step.offset] = body
        return _raw(ServeAnswer())

    async def _take(self, job_id: str, step: ServeStep, body: bytes) -> Raw:
        replica = self._replica(job_id)
        exchange = self._exchanges.get(step.request_id) or self._open(job_id, step)
        exchange.touched_at = monotonic()
        if exchange.work is None:
            whole = body or b"".join(exchange.parts[offset] for offset in sorted(exchange.parts))
            exchange.parts.clear()
            if len(whole) != step.size:
                self._forget(step.request_id)
                raise WherryError("replica_gone", "Parts of the body are missing.", retryable=True)
            exchange.work = asyncio.create_task(self._ask(replica, exchange, step, whole))
            exchange.work.add_done_callback(_seen)
        return await self._give(exchange, step.request_id, 0)

    async def _give(self, exchange: _Exchange, request_id: str, offset: int) -> Raw:
        """Return the answer from *offset* on, or that there is none yet."""
        exchange.touched_at = monotonic()
        assert exchange.work is not None  # noqa: S101 - only what was asked can be found
        done, _ = await asyncio.wait({exchange.work}, timeout=HOLD_S)
        if not done:
            return _raw(ServeAnswer())
        exchange.touched_at = monotonic()
        try:
            answered = exchange.work.result()
        except WherryError:
            self._forget(request_id)
            raise
        except asyncio.CancelledError:  # its replica has left, or the gateway dropped it
            self._forget(request_id)
            raise (_lost() if exchange.is_asked else _gone()) from None
        piece = answered.body[offset : offset + CHUNK_BYTES]
        if len(answered.body) <= CHUNK_BYTES:  # what is longer is dropped by the gateway, when it has all of it
            self._forget(request_id)
        head = ServeAnswer(
            status=answered.status,
            headers=answered.headers if offset == 0 else (),
            size=len(answered.body),
            took_s=exchange.took_s,
        )
        return _raw(head, piece)

    async def _ask(self, replica: _Replica, exchange: _Exchange, step: ServeStep, body: bytes) -> Answered:
        async with self._inside(replica):
            assert replica.http is not None  # noqa: S101 - the door is open only with it
            began, exchange.is_asked = monotonic(), True
            answered = await replica.http.ask(
                step.method, step.path, step.headers, body, step.timeout_s, partial(self._hold, exchange, step),
                repeatable=step.repeatable,
            )  # fmt: skip
            exchange.took_s = monotonic() - began
            replica.door.served += 1
        return answered

    def _hold(self, exchange: _Exchange, step: ServeStep, size: int) -> None:
        """Set room aside for an answer of which there are *size* bytes.

        Raises:
            WherryError: ``answer_too_large``; ``replica_busy``, or ``replica_lost`` of what may not be asked again.
        """
        if size > self._body_max:
            raise WherryError("answer_too_large", f"The answer has more than {self._body_max} bytes.")
        more = max(0, size - exchange.reserved)
        if not self._budget.take(more):
            code = "replica_busy" if step.repeatable else "replica_lost"
            raise WherryError(code, "This node holds too many large answers.", retryable=True)
        exchange.reserved += more

    @asynccontextmanager
    async def _inside(self, replica: _Replica) -> AsyncGenerator[None]:
        """Hold a place in the replica while the block runs, waiting a moment for one.

        Raises:
            WherryError: ``replica_busy``.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await replica.places.acquire()
        except TimeoutError:
            raise WherryError("replica_busy", "The replica has as many requests as it takes.", retryable=True) from None
        replica.door.inside += 1
        try:
            yield
        finally:
            replica.door.inside -= 1
            replica.places.release()
            replica.stirred.set()

    def _replica(self, job_id: str) -> _Replica:
        """Return a replica that takes requests.

        Raises:
            WherryError: ``replica_gone``, ``replica_draining``, ``replica_starting``: another one has to be asked.
        """
        replica = self._replicas.get(job_id)
        if replica is None:
            raise _gone()
        if code := replica.door.refusal():
            raise WherryError(code, "The replica takes no requests now.", retryable=True)
        return replica

    def _open(self, job_id: str, step: ServeStep) -> _Exchange:
        if step.size > self._body_max:
            raise WherryError("too_large", f"A request may have {self._body_max} bytes here.")
        if not self._budget.take(step.size):
            raise WherryError("replica_busy", "This node holds too many large requests.", retryable=True)
        exchange = self._exchanges[step.request_id] = _Exchange(job_id, monotonic(), reserved=step.size)
        return exchange

    def _exchange(self, step: ServeStep) -> _Exchange:
        exchange = self._exchanges.get(step.request_id)
        if exchange is None or exchange.work is None:
            raise _lost()
        return exchange

    def _forget(self, request_id: str) -> None:
        exchange = self._exchanges.pop(request_id, None)
        if exchange is None:
            return
        self._budget.give_back(exchange.reserved)
        exchange.reserved = 0
        if exchange.work is not None and not exchange.work.done():
            exchange.work.cancel()
        replica = self._replicas.get(exchange.job_id)
        if replica is not None:
            replica.stirred.set()

    def _forget_old(self) -> None:
        now = monotonic()
        for request_id, exchange in list(self._exchanges.items()):
            if now - exchange.touched_at > _FORGET_S:
                self._forget(request_id)

    def _has_work(self, job_id: str, door: Door) -> bool:
        return door.inside > 0 or any(one.job_id == job_id and one.work is not None for one in self._exchanges.values())


def _raw(answer: ServeAnswer, body: bytes = b"") -> Raw:
    return Raw(body, {SERVE_HEADER: answer.model_dump_json(exclude_defaults=True, ensure_ascii=True)})


def _gone() -> WherryError:
    return WherryError("replica_gone", "The replica is not here.", retryable=True)


def _lost() -> WherryError:
    return WherryError("replica_lost", "The node does not know the request (any more).", retryable=True)


def _seen(work: asyncio.Task[Answered]) -> None:
    """Look at what became of a request that nobody may ask for any more."""
    if not work.cancelled():
        work.exception()
