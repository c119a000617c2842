"""The inputs of jobs: each is brought to the node once, kept for any job that wants it, removed when room is short."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from prometheus_client import Counter, Gauge

from services.node_agent.adapters import host_psutil, source_zip
from services.node_agent.adapters.inputs_book import InputsBook
from services.node_agent.adapters.pieces import Pulled, Stoppable
from services.node_agent.core import archive, shelf
from services.node_agent.core.container import Key
from services.node_agent.core.disk import in_units
from services.node_agent.core.inputs import asked_path
from services.node_agent.core.shelf import CONTENT, FILL_ROOT, Given, Kept, ListingDigest
from services.node_agent.ports import Runtime
from shared import observe, zipguard
from shared.clock import monotonic, utc_now
from shared.errors import WherryError
from shared.fleet import HeldInput, Order, input_key
from shared.ids import new_id
from shared.manifest import Entry
from shared.states import EndReason

#: Takes how far a filling is, 0 to 1, and words for people.
Tell = Callable[[float, str], None]
_AT_ONCE = 4  # fillings: each may hold two windows of chunks in memory
_TIDY_S, _AWAY_S = 30.0, 2.0
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_log = observe.logger("inputs")

KEPT_BYTES = Gauge("wherry_agent_inputs_bytes", "Bytes of the inputs that are kept on the node.")
BROUGHT = Counter("wherry_agent_inputs_brought_total", "Inputs that were brought to the node.", ["outcome"])
FOUND = Counter("wherry_agent_inputs_found_total", "Inputs that a job wanted and the node had.")


class Source(Protocol):
    """Where inputs come from."""

    def input_pages(self, order: Order, name: str) -> AsyncGenerator[tuple[Entry, ...], None]:
        """Give what an input consists of."""
        ...

    def input_file(self, order: Order, name: str, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Give the bytes of a file of an input, checked."""
        ...

    def outputs_tar(self, order: Order, name: str, root: str) -> AsyncGenerator[bytes, None]:
        """Give outputs of another job as a tar."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """An input of an attempt, as storage lists it. `blob` is its one entry, where it is no job's outputs."""

    order: Order
    name: str
    key: str
    bytes: int
    is_file: bool
    blob: Entry | None
    tell: Tell


@dataclass(slots=True)
class _Filling:
    task: asyncio.Task[None]
    awaited: int = 0


class Inputs:
    """What is kept, and what is being brought.

    Args:
        source: storage.
        runtimes: by name.
        book: of what is whole.
        folder: on the agent's disk, for zips while they are unpacked.
        limit: bytes that all inputs together may have; less where the disk is short.
    """

    def __init__(
        self, source: Source, runtimes: Mapping[str, Runtime], book: InputsBook, folder: Path, limit: int
    ) -> None:
        self._source = source
        self._runtimes = runtimes
        self._book = book
        self._folder = folder
        self._limit = limit
        self._kept = {(one.runtime, one.key): one for one in book.load() if one.runtime in runtimes}
        self._fillings: dict[tuple[str, str], _Filling] = {}
        self._volumes: set[str] = set()  # that are being filled, or removed
        self._users: dict[tuple[str, str], set[Key]] = {}
        self._taken: dict[str, int] = {}  # bytes that fillings will have, by volume
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._changed = asyncio.Condition()
        self._changes = 0
        for path in folder.glob("*.zip"):
            path.unlink()

    @property
    def held(self) -> tuple[HeldInput, ...]:
        """Return what a heartbeat says."""
        return shelf.reported(self._kept.values())

    @property
    def limit(self) -> int:
        """Return how many bytes of the disk are for inputs."""
        return self._limit

    @property
    def unused(self) -> int:
        """Return how many bytes of the disk are set aside for inputs and not taken yet."""
        return max(0, self._limit - self._bytes())

    async def provide(self, order: Order, runtime: Runtime, image: str, tell: Tell) -> Mapping[str, Given]:
        """Bring what is missing of the inputs of *order*, and return where each is.

        Args:
            order: the attempt; its inputs stay until `release`.
            runtime: whose volumes they become.
            image: an image that the runtime has, by its id.
            tell: takes the progress of what is brought.

        Raises:
            WherryError: ``input_missing``, ``stage_in_failed``, ``bad_source``, ``disk``, or what the runtime says.
        """
        given: dict[str, Given] = {}

        async def bring(name: str) -> None:
            kept = await self._bring(await self._list(order, name, tell), runtime, image)
            given[name] = Given(kept.volume, is_file=kept.is_file)

        try:
            async with asyncio.TaskGroup() as group:
                for name in (name for name, one in order.spec.inputs.items() if one.stage):
                    group.create_task(bring(name))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return given

    async def release(self, attempt: Key) -> None:
        """Note that an attempt uses nothing any more."""
        for place, users in tuple(self._users.items()):
            users.discard(attempt)
            if not users:
                del self._users[place]
        await self._tell_of_change()

    async def run(self) -> None:
        """Look after the disk and the volumes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for runtime in self._runtimes.values():
                tasks.create_task(self._look_after(runtime))

    async def close(self) -> None:
        """Stop bringing anything."""
        tasks = [one.task for one in self._fillings.values()]
        for task in tasks:
            if not task.cancelling():  # else it removes already what it had begun: a second time would cut that off
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._book.close()

    # --- one input ---

    async def _list(self, order: Order, name: str, tell: Tell) -> Wanted:
        """Ask what an input is, until that is known: a URL is fetched first, and the attempt has its limit for this."""
        while True:
            try:
                return await self._list_once(order, name, tell)
            except WherryError as error:
                if not error.retryable:
                    raise
                tell(0.0, error.message)
            await asyncio.sleep(1.0)

    async def _list_once(self, order: Order, name: str, tell: Tell) -> Wanted:
        given = order.spec.inputs[name]
        listing = ListingDigest(asked_path(order.spec, name))
        async with aclosing(self._source.input_pages(order, name)) as pages:
            async for page in pages:
                if given.job is None:
                    return _blob(order, name, page, tell)
                for entry in page:
                    listing.add(entry)
        return Wanted(order, name, listing.key, listing.bytes, listing.is_file, None, tell)

    async def _bring(self, wanted: Wanted, runtime: Runtime, image: str) -> Kept:
        """Return the input once it is here, brought by whoever wants it too or by ourselves."""
        place = (runtime.name, wanted.key)
        self._users.setdefault(place, set()).add(Key(wanted.order.job_id, wanted.order.attempt))
        while True:
            if (kept := await self._find(place, runtime)) is not None:
                FOUND.inc()
                return kept
            is_ours = place not in self._fillings
            if is_ours:
                task = asyncio.create_task(self._fill(place, wanted, runtime, image), name=f"fill {wanted.key}")
                self._fillings[place] = _Filling(task)
                task.add_done_callback(partial(self._filled, place))
            filling = self._fillings[place]
            filling.awaited += 1
            try:
                await asyncio.wait({filling.task})
            finally:
                filling.awaited -= 1
                if not filling.awaited:
                    filling.task.cancel()  # nobody wants it any more; once it is done this does nothing
            if is_ours and not filling.task.cancelled() and (error := filling.task.exception()) is not None:
                raise error

    async def _find(self, place: tuple[str, str], runtime: Runtime) -> Kept | None:
        kept = self._kept.get(place)
        if kept is None:
            return None
        if not await runtime.has_input(kept.volume):
            _log.warning("input_gone", key=kept.key, why="somebody else removed it")
            self._forget(kept)
            return None
        kept = replace(kept, used_at=utc_now().timestamp())
        self._kept[place] = kept
        self._book.use(kept)
        return kept

    # --- filling ---

    def _filled(self, place: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._fillings.pop(place, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("input_not_brought", key=place[1], error=str(error))
        BROUGHT.labels("failed" if task.cancelled() or task.exception() else "whole").inc()

    async def _fill(self, place: tuple[str, str], wanted: Wanted, runtime: Runtime, image: str) -> None:
        volume = f"{wanted.key[:24]}-{new_id('i')}"
        spooled = self._folder / f"{volume}.zip"
        self._volumes.add(volume)
        is_whole = False
        try:
            await self._take(volume, wanted.bytes, wanted)
            async with self._places:
                is_file = await self._pour(volume, wanted, runtime, image, spooled)
            kept = Kept(*place, volume, is_file, self._taken[volume], utc_now().timestamp())
            self._book.add(kept)
            self._kept[place] = kept
            is_whole = True
            _log.info("input_brought", key=kept.key, bytes=kept.bytes, runtime=kept.runtime)
        finally:
            self._taken.pop(volume, None)
            spooled.unlink(missing_ok=True)
            if not is_whole:
                with suppress(WherryError):  # else it is tidied away
                    await runtime.drop_input(volume)
            self._volumes.discard(volume)
            KEPT_BYTES.set(self._bytes())
            await self._tell_of_change()

    async def _pour(self, volume: str, wanted: Wanted, runtime: Runtime, image: str, spooled: Path) -> bool:
        """Fill *volume*; return whether the input is a file."""
        if wanted.blob is None:
            tar = _told(self._source.outputs_tar(wanted.order, wanted.name, FILL_ROOT), wanted)
            await _put(runtime, volume, image, Pulled(tar))
            return wanted.is_file
        async with aclosing(self._source.input_file(wanted.order, wanted.name, wanted.blob)) as pieces:
            first = await anext(pieces, b"")
            told = _told(_chain(first, pieces), wanted)
            if not wanted.order.spec.inputs[wanted.name].unpack or first[:4] not in _ZIP_MAGIC:
                await _put(runtime, volume, image, Pulled(_one_file(told, wanted.bytes)))
                return True
            with await asyncio.to_thread(spooled.open, "wb") as file:
                async for piece in told:
                    file.write(piece)  # into the page cache: not worth a thread
        try:
            size = await asyncio.to_thread(_unpacked_size, spooled, self._limit)
            await self._take(volume, size + wanted.bytes, wanted)
            members = source_zip.members(spooled, bytes_max=size)
            await _put(runtime, volume, image, Stoppable(_unpacked(members)))
            self._taken[volume] = size
        except WherryError as error:
            if error.code != EndReason.BAD_SOURCE:
                raise
            what = error.message.removeprefix("source: ")
            raise WherryError(EndReason.BAD_SOURCE, f"The input {wanted.name} cannot be unpacked: {what}") from error
        return False

    async def _take(self, volume: str, size: int, wanted: Wanted) -> None:
        """Set *size* bytes aside for *volume*, removing what is used by nobody; wait for attempts that use the rest.

        Raises:
            WherryError: ``disk``: it is more than all inputs may have, by itself or with the others of its attempt.
        """
        self._taken.pop(volume, None)
        while True:
            seen = self._changes
            self._check_disk(size, wanted)
            if await self._make_room(size):
                break
            async with self._changed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TIDY_S):
                        await self._changed.wait_for(lambda seen=seen: self._changes != seen)
        self._taken[volume] = size

    def _check_disk(self, size: int, wanted: Wanted) -> None:
        attempt = Key(wanted.order.job_id, wanted.order.attempt)
        others = sum(one.bytes for place, one in self._kept.items() if attempt in self._users.get(place, ()))
        if size + others > self._limit:
            besides = f" beside {in_units(others)} of others of this job" if others else ""
            raise WherryError(
                EndReason.DISK,
                f"The input {wanted.name} needs {in_units(size)}{besides}, and this node keeps "
                f"{in_units(self._limit)} for all inputs (WHERRY_INPUTS_DISK).",
            )

    async def _tell_of_change(self) -> None:
        """Let those look again who wait for room."""
        self._changes += 1
        async with self._changed:
            self._changed.notify_all()

    # --- room ---

    def _bytes(self) -> int:
        return sum(one.bytes for one in self._kept.values()) + sum(self._taken.values())

    def _most(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        total, free = host_psutil.disk(self._folder)
        return shelf.most(self._limit, sum(one.bytes for one in self._kept.values()), total, free)

    async def _make_room(self, size: int) -> bool:
        """Return whether *size* bytes more may be taken, once what may go has gone."""
        excess = self._bytes() + size - self._most()
        in_use: set[tuple[str, str]] = set()  # by programs of an agent before this one
        # One by one: while one goes, an attempt may come to want the next.
        while gone := shelf.to_remove(self._kept.values(), self._users.keys() | self._fillings.keys() | in_use, excess):
            if await self._remove(gone[0]):
                excess -= gone[0].bytes
            else:
                in_use.add((gone[0].runtime, gone[0].key))
        return self._bytes() + size <= self._most()

    async def _remove(self, kept: Kept) -> bool:
        """Remove an input. Return False if something uses it.

        Forgotten first: who wants it while it goes has it brought anew.
        """
        is_gone = False
        self._forget(kept)
        self._volumes.add(kept.volume)
        try:
            is_gone = await self._runtimes[kept.runtime].drop_input(kept.volume)
        finally:
            self._volumes.discard(kept.volume)
            if not is_gone and (kept.runtime, kept.key) not in self._kept:
                self._book.add(kept)
                self._kept[kept.runtime, kept.key] = kept
        if is_gone:
            _log.info("input_removed", key=kept.key, bytes=kept.bytes)
        return is_gone

    def _forget(self, kept: Kept) -> None:
        now = self._kept.get((kept.runtime, kept.key))
        if now is not None and now.volume == kept.volume:  # not one that was brought since
            self._book.remove(kept)
            del self._kept[kept.runtime, kept.key]
        KEPT_BYTES.set(self._bytes())

    async def _look_after(self, runtime: Runtime) -> None:
        while True:
            try:
                await self._tidy(runtime)
            except Exception as error:  # noqa: BLE001 - an engine that is away is asked again
                _log.debug("inputs_not_tidied", runtime=runtime.name, error=str(error))
                await asyncio.sleep(_AWAY_S)
            else:
                await asyncio.sleep(_TIDY_S)

    async def _tidy(self, runtime: Runtime) -> None:
        """Remove what is beyond the room there is, and what broken fillings have left."""
        self._book.settle(utc_now().timestamp())
        there = await runtime.inputs()
        kept = {one.volume for one in self._kept.values()}
        for volume in there - kept - self._volumes:
            _log.warning("input_left_over", volume=volume)
            await runtime.drop_input(volume)
        await self._make_room(0)


def _blob(order: Order, name: str, page: tuple[Entry, ...], tell: Tell) -> Wanted:
    if len(page) != 1 or page[0].blob is None:
        raise WherryError(EndReason.INPUT_MISSING, f"The input {name} is not one file, as storage says.")
    blob = page[0].blob
    key = input_key(blob.sha256, unpack=order.spec.inputs[name].unpack)
    return Wanted(order, name, key, blob.size, is_file=True, blob=page[0], tell=tell)


async def _put(runtime: Runtime, volume: str, image: str, pieces: Pulled | Stoppable) -> None:
    """Let the runtime fill a volume; when that is cancelled, stop what gives the pieces first."""
    filling = asyncio.create_task(runtime.fill_input(volume, image, iter(pieces)))
    try:
        await asyncio.wait({filling})
    except asyncio.CancelledError:
        pieces.stop()
        await asyncio.wait({filling})
        filling.exception()
        raise
    finally:
        await pieces.aclose()
    filling.result()


async def _chain(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in rest:
        yield piece


async def _one_file(pieces: AsyncGenerator[bytes, None], size: int) -> AsyncGenerator[bytes, None]:
    """Give *pieces* as a tar with one file."""
    yield archive.folder(FILL_ROOT)
    yield archive.file(f"{FILL_ROOT}/{CONTENT}", size, 0o444)
    async for piece in pieces:
        yield piece
    yield archive.padding(size) + archive.END


async def _told(pieces: AsyncGenerator[bytes, None], wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """Give *pieces*, and tell now and then how far it is."""
    done, told_at = 0, monotonic()
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece
            done += len(piece)
            if monotonic() - told_at >= 1:
                told_at = monotonic()
                fraction = min(1.0, done / max(1, wanted.bytes))
                wanted.tell(fraction, f"bringing the input {wanted.name}: {in_units(done)} of {in_units(wanted.bytes)}")


def _unpacked_size(path: Path, most: int) -> int:
    limits = zipguard.Limits(total_bytes=most, file_bytes=most)
    with path.open("rb") as file:
        return sum(entry.size for entry in zipguard.inspect(file, limits))


def _unpacked(members: source_zip.Members) -> Iterator[bytes]:
    yield archive.folder(FILL_ROOT)
    yield from source_zip.tar_of(members, FILL_ROOT)
    yield archive.END
