"""Dead letters: a message that its reader cannot take in is kept, whole, before it is passed over, and can be replayed.

A letter's id is its message's place and the reader: one that is written again, because the reader began anew, is the
same letter. What a reader got wrong is corrected in the reader; then an admin has the letter replayed.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prometheus_client import Counter

from shared import observe
from shared.bus import Bus, Handle, Received, Record
from shared.channels import DEAD_LETTER, DLQ, REPLAY
from shared.clock import utc_now
from shared.errors import Unavailable, WherryError
from shared.events import DeadLetter
from shared.ids import new_id
from shared.model import Empty
from shared.wire import received

KEPT = Counter("wherry_dead_letters_total", "Messages that could not be taken in and were kept.", ["stream"])
NOT_KEPT = Counter("wherry_dead_letters_not_kept_total", "The same, where the broker took no letter.", ["stream"])
REPLAYED = Counter("wherry_dead_letters_replayed_total", "Dead letters handed to this reader again.", ["outcome"])

#: Bytes of a message that a letter can carry: base64 and the envelope make it a third larger. A longer one is left out
#: of its letter, and read from its stream when it is replayed.
BODY_BYTES_MAX = 700_000

#: Takes a replayed message in, as if it had come from the stream. Returns why it still cannot, or None.
TakeIn = Callable[[Received[Any]], Awaitable[str | None]]

_log = observe.logger("deadletters")


class DeadLetters:
    """The dead letters of one reader, which is a service."""

    def __init__(self, bus: Bus) -> None:
        """Write as the service that *bus* belongs to."""
        self._bus = bus
        self._reader = bus.service.value
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def are_kept(self) -> bool:
        """Return whether nothing that was begun is still on its way to disk."""
        return not self._under_way

    def begin(self, stream: str, messages: Sequence[tuple[Received[Any], str]]) -> None:
        """Keep (message, reason) beside, for a reader that must not wait; until `are_kept` it remembers its place."""
        task = asyncio.create_task(self.keep(stream, messages), name="dead letters")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def keep(self, stream: str, messages: Sequence[tuple[Received[Any], str]]) -> None:
        """Keep (message, reason) of *stream*; return when all are on disk. They go out together: one fsync for many.

        While the broker is away this waits. A letter that it refuses (the stream of letters is full) is logged: its
        message is still where it was.
        """
        letters = [self._letter(stream, message, reason) for message, reason in messages]
        await asyncio.gather(*(self._record(letter, letter.id) for letter in letters))

    async def listen(self, take_in: TakeIn) -> Handle:
        """Hand what is to be replayed to *take_in*; what still cannot be taken in becomes a dead letter again."""

        async def replay(_: dict[str, str], letter: DeadLetter) -> Empty:
            why = await self._replay(letter, take_in)
            REPLAYED.labels("failed" if why else "taken_in").inc()
            _log.info("replayed", letter=letter.id, target=letter.target, problem=why)
            if why:  # under a new message id: this is a new event about the same letter
                again = letter.model_copy(update={"reason": why, "at": utc_now()})
                await self._record(DeadLetter.model_validate(again.model_dump()), new_id("e"))
            return Empty()

        return await self._bus.serve(REPLAY, replay, queue=self._reader, concurrency=1, reader=self._reader)

    async def _replay(self, letter: DeadLetter, take_in: TakeIn) -> str | None:
        try:
            message = await self._message(letter)
            return await take_in(message) if message else "the message is no longer in its stream"
        except (WherryError, ValueError) as problem:
            return str(problem)

    async def _message(self, letter: DeadLetter) -> Received[Any] | None:
        if not letter.body:
            return await self._bus.read(letter.stream, letter.seq)
        message = received(letter.target, base64.b64decode(letter.body, validate=True), None)
        message.seq, message.time = letter.seq, letter.at
        return message

    def _letter(self, stream: str, message: Received[Any], reason: str) -> DeadLetter:
        body = message.body if len(message.body) <= BODY_BYTES_MAX else b""
        return DeadLetter(
            id=f"{stream}.{message.seq}.{self._reader}",
            stream=stream,
            seq=message.seq,
            reader=self._reader,
            target=message.subject,
            reason=reason or "unreadable",
            body=base64.b64encode(body).decode(),
            at=message.time or utc_now(),  # the same each time that a reader begins anew
        )

    async def _record(self, letter: DeadLetter, message_id: str) -> None:
        _log.error("dead_letter", letter=letter.id, target=letter.target, reason=letter.reason)
        if letter.stream == DLQ:  # a letter about a letter could go on for ever
            return
        params = {"reader": self._reader}
        event = self._bus.event(DEAD_LETTER, letter, subject=letter.id, **params)
        record = Record(DEAD_LETTER, params, event.model_copy(update={"id": message_id}))
        while True:
            try:
                await self._bus.record_grouped(record)
            except Unavailable as problem:
                if self._bus.closed.is_set():
                    raise
                _log.warning("dead_letter_delayed", letter=letter.id, error=problem.message)
                await asyncio.sleep(1.0)
            except WherryError as problem:
                NOT_KEPT.labels(letter.stream).inc()
                _log.critical("dead_letter_not_kept", letter=letter.id, error=problem.message)
                return
            else:
                KEPT.labels(letter.stream).inc()
                return
