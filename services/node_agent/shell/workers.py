"""Workers of map jobs: items into the workspace, word to the program, results home, ends to the log. In that order."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from services.node_agent.adapters.journal import Journal, KeepItems, Outgoing
from services.node_agent.adapters.storage import Storage
from services.node_agent.core import archive
from services.node_agent.core import facts as f
from services.node_agent.core.at_work import Given
from services.node_agent.core.container import Key
from services.node_agent.core.items import Again, Begun, Items, Left, head, is_plain, slot_of
from services.node_agent.core.output import Answer
from services.node_agent.ports import Output, Runtime
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, WherryError
from shared.events import ItemEnd
from shared.fleet import HELD_ITEMS_MAX, Assignment, HeldAttempt, ItemOrder, Order
from shared.job import BlobRef, Failure, ItemFile
from shared.states import AttemptEventName, EndReason

#: Items that are brought at once, and those in the workspace that wait for the program.
_STAGED_AT_ONCE, _STAGED_BYTES, _FETCHES = 32, 64 * 1024 * 1024, 8
_REPORTED_AT_ONCE = 100
#: Of one report: the broker takes 1 MiB.
_REPORT_BYTES_MAX = 256 * 1024
#: Lines that are said at once: a pipe takes 4 KiB whole or not at all.
_LINES_AT_ONCE = 64
_FILES_AT_ONCE = 16
_LOOK_S = 1.0
_PAUSE_S, _PAUSE_MAX_S = 0.5, 30.0
_REFUSALS_MAX = 5
_PIECE_BYTES = 512 * 1024
_log = observe.logger("workers")


@dataclass(frozen=True, slots=True)
class WorkerNeeds:
    """What workers need.

    Attributes:
        runtimes: by name.
        storage: where items' files come from, and what they leave goes to.
        journal: remembers items that the program was given, and reports.
        report: makes the event that says what has become of items.
        send: sends it, as often as it takes.
        post: takes facts.
        folder: of an attempt, on the agent's disk.
    """

    runtimes: Mapping[str, Runtime]
    storage: Storage
    journal: Journal
    report: Callable[[Key, tuple[ItemEnd, ...]], Outgoing]
    send: Callable[[Outgoing], None]
    post: Callable[[f.Fact], None]
    folder: Callable[[Key], Path]


class Workers:
    """The workers of this node, by attempt.

    Args:
        needs: what they need.
        begun: items that programs were given, from the journal.
        unsent: attempts with reports about items that the log does not have yet.
    """

    def __init__(self, needs: WorkerNeeds, begun: Mapping[Key, Iterable[Begun]], unsent: Iterable[Key]) -> None:
        self._needs = needs
        self._begun = {key: {one.slot: one for one in found} for key, found in begun.items()}
        self._unsent = set(unsent)
        self._workers: dict[Key, Worker] = {}
        self._wanted: dict[Key, Assignment] = {}

    def want(self, assignments: Iterable[Assignment]) -> None:
        """Take in what the scheduler wants of workers. One that does not run yet begins with the last of it."""
        for one in assignments:
            key = Key(one.job_id, one.attempt)
            if one.items is None and not one.close:
                continue
            if one.items is not None or key not in self._wanted:
                self._wanted[key] = one
            if (worker := self._workers.get(key)) is not None:
                worker.want(one)

    def of(self, order: Order) -> "Worker":
        """Return the worker that an attempt is."""
        key = Key(order.job_id, order.attempt)
        if key not in self._workers:
            worker = Worker(self._needs, order, self._begun.pop(key, {}))
            if key not in self._unsent:
                worker.delivered()
            self._workers[key] = worker
            if (wanted := self._wanted.get(key)) is not None:
                worker.want(wanted)
        return self._workers[key]

    def counted(self, held: HeldAttempt) -> HeldAttempt:
        """Return what a heartbeat says of an attempt, with the items that its program has begun."""
        worker = self._workers.get(Key(held.job_id, held.attempt))
        return held if worker is None else held.model_copy(update={"items": worker.begun()[:HELD_ITEMS_MAX]})

    def delivered(self, outgoing: Outgoing) -> None:
        """Take in that the log has a report."""
        if outgoing.name is AttemptEventName.ITEMS and (worker := self._workers.get(outgoing.key)) is not None:
            worker.delivered()

    def drop(self, key: Key) -> None:
        """Forget an attempt that has gone."""
        for known in (self._workers, self._wanted, self._begun):
            known.pop(key, None)


@dataclass(slots=True)
class _Doorbells:
    """Wake the three tasks of a worker."""

    stage: asyncio.Event = field(default_factory=asyncio.Event)
    give: asyncio.Event = field(default_factory=asyncio.Event)
    report: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """One worker. `run` while its program runs, `finish` once it has ended.

    Args:
        needs: see `Workers`.
        order: the attempt; its `map` is set.
        begun: by slot, what its program was given under an agent before this one.
    """

    def __init__(self, needs: WorkerNeeds, order: Order, begun: dict[str, Begun]) -> None:
        self._needs = needs
        self._order = order
        self._key = Key(order.job_id, order.attempt)
        self._runtime = needs.runtimes[order.spec.runtime]
        self._items = Items(order.map.item_timeout if order.map else float("inf"), begun)
        self._rings = _Doorbells()
        self._unsaved: set[str] = set()
        self._over: list[str] = []
        self._to_forget = {slot: None for slot, one in begun.items() if one.is_reported}
        self._since: dict[str, float] = {}  # when an item was first tried to be brought
        self._refusals = 0
        self._has_closed = False
        self.given: tuple[Given, ...] = ()
        self._note_given()

    # --- what others tell ---

    def want(self, assignment: Assignment) -> None:
        """Take in all items that the scheduler wants this worker to have, and whether they are the last."""
        if assignment.items is not None:
            dropped, over = self._items.want(assignment.items)
            self._to_forget.update(dict.fromkeys(dropped))
            self._over += over
        self._items.is_closing = self._items.is_closing or assignment.close
        self._ring()

    def hear(self, answers: Iterable[Answer]) -> None:
        """Take in what the program says of its items."""
        for answer in answers:
            if (ended := self._items.answer(answer)) is not None:
                self._unsaved.add(ended.slot)
        self._note_given()
        if self._unsaved:
            self._ring()

    def _note_given(self) -> None:
        """Say anew which items the program has, for its output."""
        self.given = tuple(Given(one.id, one.slot) for one in self._items.open())

    async def sync(self) -> None:
        """Return once all that was heard is in the journal."""
        if not (self._unsaved or self._over):
            return
        slots, over = self._unsaved, self._over
        self._unsaved, self._over = set(), []
        begun = [self._items.begun[slot] for slot in slots if slot in self._items.begun]
        try:
            await self._needs.journal.write([KeepItems(self._key, begun, over)])
        except Exception:
            self._unsaved |= slots
            self._over += over
            raise

    def begun(self) -> tuple[str, ...]:
        """Return the items that the program has begun and nobody was told the end of, in their order."""
        return self._items.untold()

    def delivered(self) -> None:
        """Take in that the log has what was reported."""
        self._items.acknowledged()

    # --- while the program runs, and after ---

    async def run(self, handle: str) -> None:
        """Keep the program busy and bring home what it makes, until cancelled."""
        self._items.watched_from(utc_now())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._stage_next, handle, self._rings.stage))
            tasks.create_task(self._forever(partial(self._talk, Again()), handle, self._rings.give))
            tasks.create_task(self._forever(self._report_next, handle, self._rings.report))

    async def finish(self, handle: str) -> None:
        """Report all that the program has answered before it ended.

        Raises:
            WherryError: storage or the runtime is away (retryable).
        """
        while await self._report_next(handle):
            pass
        await self.sync()

    def _ring(self) -> None:
        for bell in (self._rings.stage, self._rings.give, self._rings.report):
            bell.set()

    async def _forever(self, step: Callable[[str], Awaitable[bool]], handle: str, bell: asyncio.Event) -> None:
        """Take steps as long as they find something to do, then wait for the bell. What fails is tried again."""
        pause_s = _PAUSE_S
        while True:
            bell.clear()
            try:
                is_busy = await step(handle)
                pause_s = _PAUSE_S
            except Exception as error:  # noqa: BLE001 - nobody else would go on with it
                level = _log.warning if isinstance(error, WherryError) else _log.exception
                level("worker_interrupted", job_id=self._key.job_id, attempt=self._key.attempt, error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                continue
            if not is_busy:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await bell.wait()

    # --- bringing ---

    async def _stage_next(self, handle: str) -> bool:
        room = min(_STAGED_BYTES, self._order.spec.resources.disk // 4)  # what it leaves needs room too
        orders = self._items.to_stage(_STAGED_AT_ONCE, room)
        if not orders:
            return False
        places = asyncio.Semaphore(_FETCHES)
        files: dict[str, Path | None] = {}
        errors: list[WherryError] = []

        async def bring(order: ItemOrder) -> None:
            slot = slot_of(order.id, order.tries)
            async with places:
                try:
                    files[slot] = await self._bring(order, slot)
                except WherryError as error:
                    if error.retryable and not self._is_late(slot):
                        errors.append(error)
                    else:
                        self._refuse(order, error)

        try:
            async with asyncio.TaskGroup() as tasks:
                for order in orders:
                    tasks.create_task(bring(order))
            ready = [one for one in orders if slot_of(one.id, one.tries) in files]
            if ready:
                await self._put(handle, ready, files)
        finally:
            for path in files.values():
                if path is not None:
                    path.unlink(missing_ok=True)
        if errors:
            raise errors[0]
        return True

    async def _put(self, handle: str, ready: list[ItemOrder], files: Mapping[str, Path | None]) -> None:
        try:
            await self._runtime.put(self._key, handle, self._tar(ready, files))
        except WherryError as error:
            for one in ready:
                if self._is_late(slot_of(one.id, one.tries)):
                    self._refuse(one, error)
            raise
        unwanted = self._items.are_staged(ready)
        self._to_forget.update({slot: None for slot in unwanted if slot not in self._items.begun})
        self._rings.give.set()

    async def _bring(self, order: ItemOrder, slot: str) -> Path | None:
        """Bring an item's file to the agent's disk, where it has one of its own."""
        self._since.setdefault(slot, monotonic())
        spec = order.spec
        if spec.path is not None and not is_plain(spec.path):
            raise WherryError(EndReason.INPUT_MISSING, f"{spec.path!r} is no path below the inputs.")
        if spec.artifact is None:
            return None
        if (spec.size or 0) > self._order.spec.resources.disk:
            raise WherryError(EndReason.DISK, f"Its {spec.size} bytes are more than the disk of its job.")
        folder = self._needs.folder(self._key) / "items"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / slot
        with path.open("wb") as file:
            async with aclosing(self._needs.storage.item_file(self._order, order)) as pieces:
                async for piece in pieces:
                    file.write(piece)  # into the page cache: not worth a thread
        return path

    def _is_late(self, slot: str) -> bool:
        return monotonic() - self._since.get(slot, monotonic()) > self._order.spec.timeouts.stage_in

    def _refuse(self, order: ItemOrder, error: WherryError) -> None:
        reason = EndReason.STAGE_IN_FAILED
        with suppress(ValueError):
            reason = EndReason(error.code)
        self._items.refuse(order, Failure(reason=reason, message=error.message), utc_now())
        self._unsaved.add(slot_of(order.id, order.tries))
        self._rings.report.set()

    def _tar(self, orders: list[ItemOrder], files: Mapping[str, Path | None]) -> Iterator[bytes]:
        workspace, inputs = self._runtime.seen(self._key)
        for order in orders:
            path = files[slot_of(order.id, order.tries)]
            size = None if path is None else path.stat().st_size
            yield from head(order, workspace, inputs, size)
            if path is not None:
                with path.open("rb") as file:
                    while piece := file.read(_PIECE_BYTES):
                        yield piece
                yield archive.padding(size or 0)
        yield archive.END

    # --- telling ---

    async def _talk(self, again: Again, handle: str) -> bool:
        now = utc_now()
        if (stuck := self._items.overdue(now)) is not None:
            self._unsaved.add(stuck.slot)
            self._rings.report.set()
            self._needs.post(f.Stuck(self._key, stuck.id))
            await asyncio.Event().wait()  # nothing more is said to it
        given = self._items.give(now)
        self._note_given()
        if given:
            for one in given:
                self._since.pop(one.slot, None)
            self._rings.stage.set()
            await self._needs.journal.write([KeepItems(self._key, given)])
        await self.sync()
        said = again.is_due(monotonic())
        if given:
            again.later(monotonic())
        gone = list(self._to_forget)[: _LINES_AT_ONCE // 2]
        lines = [f"forget {slot}" for slot in gone]
        lines += [f"give {one.slot}" for one in (self._items.open() if said else given)]
        if self._items.is_done and (said or not self._has_closed):
            lines.append("close")
        if not lines:
            return False
        try:
            await self._runtime.tell(self._key, handle, "".join(f"{line}\n" for line in lines).encode())
        except WherryError:
            again.due = 0.0
            raise
        self._has_closed = "close" in lines
        for slot in gone:
            self._to_forget.pop(slot, None)
        return bool(self._to_forget)

    # --- reporting ---

    async def _report_next(self, handle: str) -> bool:
        ended = self._items.unreported(_REPORTED_AT_ONCE)
        if not ended:
            return False
        try:
            left = await self._take_home(handle, [one for one in ended if one.is_ok])
            self._refusals = 0
        except WherryError as error:
            if not error.retryable:
                self._refusals += 1
            if self._refusals < _REFUSALS_MAX:
                raise
            message = f"What it left could not be stored: {error.message}"
            failed = Left(0, failure=Failure(reason=EndReason.UPLOAD_FAILED, message=message))
            left = {one.slot: failed for one in ended if one.is_ok}
        ends = [(one, _end(one, left.get(one.slot))) for one in ended]
        for part in _in_reports(ends):
            # To its end, whatever happens meanwhile: what is in the journal is sent before the attempt's own end.
            await asyncio.shield(self._commit(part))
        self._rings.give.set()
        return True

    async def _commit(self, part: list[tuple[Begun, ItemEnd]]) -> None:
        begun = [one for one, _ in part]
        outgoing = self._needs.report(self._key, tuple(end for _, end in part))
        reported = self._items.reported(begun)
        try:
            await self._needs.journal.write([outgoing, KeepItems(self._key, reported)])
        except Exception:
            self._items.not_reported(begun)
            raise
        self._needs.send(outgoing)
        self._to_forget.update({one.slot: None for one in begun})

    async def _take_home(self, handle: str, done: list[Begun]) -> dict[str, Left]:
        """Store what items have left, several with one look into the workspace where that works."""
        slots = {one.slot for one in done}
        if len(slots) > 1:
            try:
                return await self._read(handle, "", slots)
            except WherryError as error:  # the program writes to others meanwhile
                _log.debug("items_read_one_by_one", job_id=self._key.job_id, error=error.message)
        found: dict[str, Left] = {}
        for slot in sorted(slots):
            try:
                found |= await self._read(handle, slot, {slot})
            except NotFound:  # the program has removed the folder: that is nothing left
                found[slot] = Left(0)
        return found

    async def _read(self, handle: str, below: str, slots: set[str]) -> dict[str, Left]:
        left = {slot: Left(self._order.spec.resources.disk) for slot in slots}
        keeping: set[asyncio.Task[None]] = set()

        async def keep(one: Left, path: str, storing: Awaitable[BlobRef]) -> None:
            one.add(path, await storing)

        try:
            async with aclosing(self._runtime.outputs(self._key, handle, below, of="items")) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    slot, _, path = output.path.partition("/")
                    one = left.get(slot)
                    if one is None or not path or not _is_kept(output, path) or not one.takes(path, output.size):
                        continue
                    if output.chunks is not None:
                        await keep(one, path, self._needs.storage.keep(self._key, output.chunks))
                        continue
                    while len(keeping) >= _FILES_AT_ONCE:
                        done, keeping = await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
                    body = output.body or b""
                    keeping.add(asyncio.create_task(keep(one, path, self._needs.storage.keep_bytes(self._key, body))))
            for task in list(keeping):
                await task
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
        return left


def _is_kept(output: Output, path: str) -> bool:
    """Return whether it is a file whose path can be told. Links and devices are left out."""
    if output.kind != "file":
        return False
    try:
        path.encode()
        ItemFile(path=path, blob=BlobRef(sha256="0" * 64, size=0))
    except (UnicodeEncodeError, ValidationError):
        return False
    return True


def _end(one: Begun, left: Left | None) -> ItemEnd:
    if left is None:
        return one.end(())
    return one.end(() if left.failure else left.listed(), left.failure)


def _in_reports(ends: list[tuple[Begun, ItemEnd]]) -> Iterator[list[tuple[Begun, ItemEnd]]]:
    """Give *ends* in parts that fit into a message."""
    part: list[tuple[Begun, ItemEnd]] = []
    size = 0
    for pair in ends:
        more = len(pair[1].to_bytes())
        if part and size + more > _REPORT_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(pair)
        size += more
    if part:
        yield part
