"""One request to one replica, in steps over the bus: what is larger than a chunk goes in several, both ways."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from shared.bus import Bus, Raw
from shared.channels import SERVE
from shared.clock import monotonic
from shared.errors import NoAnswer, Unavailable, WherryError
from shared.ids import new_id
from shared.requests.blobs import CHUNK_BYTES
from shared.requests.serving import SERVE_HEADER, ServeAnswer, ServeStep

T = TypeVar("T")
Room = Callable[[int], Awaitable[object]]

#: Bytes of an answer, where nothing else is said.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
#: Of an answer that is one: what is below is not the last, and what is above is not HTTP.
_STATUS_MIN, _STATUS_MAX = 200, 599
#: Chunks of one body under way.
_WINDOW = 4
#: Seconds for the answer to one step: a node holds it for five, until the program has answered.
STEP_TIMEOUT_S = 9.0
#: The node or its answer is lost: the request may have been answered, or not.
LOST = "replica_lost"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be asked of a program: an HTTP request."""

    method: str
    path: str  # with its query
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program has answered. `took_s`: the seconds that it had for it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    took_s: float


async def ask(
    bus: Bus, node: str, job_id: str, wish: Wish, timeout_s: float, bytes_max: int = ANSWER_BYTES_MAX,
    *, repeatable: bool = True, room: Room | None = None,
) -> Answer:  # fmt: skip
    """Ask a replica.

    Args:
        bus: the connection that the request goes over.
        node: where the replica runs.
        job_id: the replica.
        wish: what is asked.
        timeout_s: for all of it.
        bytes_max: of the answer.
        repeatable: it may be done twice.
        room: waits until there is room for an answer of so many bytes; what it raises ends the request.

    Raises:
        WherryError: ``replica_lost``: the program may have worked on it; ``replica_…``, ``unavailable``: it never got
            it, and another may answer;
            ``replica_timeout``, ``too_large``, ``answer_too_large``; ``model_failed``: it answers what is no HTTP.
    """
    exchange = _Exchange(bus, node, job_id, new_id("q"), monotonic() + timeout_s, bytes_max)
    try:
        return await exchange.run(wish, room, repeatable=repeatable)
    except BaseException:
        await exchange.drop()
        raise


class _Exchange:
    def __init__(self, bus: Bus, node: str, job_id: str, request_id: str, give_up_at: float, bytes_max: int) -> None:
        self._bus, self._params, self._bytes_max = bus, {"node_id": node, "job_id": job_id}, bytes_max
        self._id, self._give_up_at = request_id, give_up_at
        self._is_known = False  # to the node, which would keep it for a while
        self._is_asked = False  # all of it may have reached the node, and from there the program

    async def run(self, wish: Wish, room: Room | None, *, repeatable: bool) -> Answer:
        size = len(wish.body)
        pieces = [] if size <= CHUNK_BYTES else range(0, size, CHUNK_BYTES)
        await _windowed([partial(self._part, wish.body, offset) for offset in pieces])
        head, body = await self._step(
            ServeStep(
                request_id=self._id,
                method=wish.method,
                path=wish.path,
                headers=wish.headers,
                size=size,
                timeout_s=max(0.1, self._left_s),
                repeatable=repeatable,
            ),
            b"" if pieces else wish.body,
        )
        while head.status is None:
            if self._left_s <= 0:
                raise WherryError("replica_timeout", "The replica has not answered in time.")
            head, body = await self._more(0)
        if not _STATUS_MIN <= head.status <= _STATUS_MAX:
            raise WherryError("model_failed", f"The replica answers {head.status}, which is no status of an answer.")
        if head.size > self._bytes_max:
            raise WherryError("answer_too_large", f"The answer has more than {self._bytes_max} bytes.")
        if len(body) < head.size:
            if room is not None:
                await room(head.size)
            rest = [partial(self._more, offset) for offset in range(len(body), head.size, CHUNK_BYTES)]
            body += b"".join([piece for _, piece in await _windowed(rest)])
            await self.drop()
        if len(body) != head.size:
            raise WherryError(LOST, "The answer came in parts that do not fit.", retryable=True)
        return Answer(head.status, head.headers, body, head.took_s)

    async def drop(self) -> None:
        """Tell the node that nobody waits any more, where it may keep something."""
        if self._is_known:
            self._is_known = False
            step = ServeStep(request_id=self._id, step="drop")
            with suppress(Exception):  # the node forgets by itself what nobody asks for
                await self._bus.send(SERVE.subject(**self._params), b"", _headers(step))

    @property
    def _left_s(self) -> float:
        return self._give_up_at - monotonic()

    async def _part(self, body: bytes, offset: int) -> None:
        step = ServeStep(request_id=self._id, step="part", size=len(body), offset=offset)
        await self._step(step, body[offset : offset + CHUNK_BYTES])

    async def _more(self, offset: int) -> tuple[ServeAnswer, bytes]:
        return await self._step(ServeStep(request_id=self._id, step="more", offset=offset), b"")

    async def _step(self, step: ServeStep, body: bytes) -> tuple[ServeAnswer, bytes]:
        was_asked, self._is_known = self._is_asked, True
        self._is_asked = was_asked or step.step == "ask"
        try:
            answer: Raw = await self._bus.ask_raw(
                SERVE, body, _headers(step), timeout_s=STEP_TIMEOUT_S, retry_s=0, **self._params
            )
        except Unavailable as error:
            # That nobody listens is told at once: then the node has not got even the first step that asks.
            if was_asked or (self._is_asked and isinstance(error, NoAnswer)):
                raise WherryError(LOST, error.message, retryable=True) from error
            raise
        try:
            return ServeAnswer.from_bytes(answer.headers.get(SERVE_HEADER, "").encode()), answer.body
        except ValueError as error:
            raise WherryError(LOST, "The node answers what cannot be understood.", retryable=True) from error


async def _windowed(steps: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Return what *steps* give, in order, some of them under way at a time; the first error ends all."""
    room = asyncio.Semaphore(_WINDOW)

    async def one(step: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await step()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(step)) for step in steps]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _headers(step: ServeStep) -> dict[str, str]:
    return {SERVE_HEADER: step.model_dump_json(exclude_defaults=True, ensure_ascii=True)}
