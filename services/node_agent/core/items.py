"""The items of one worker of a map job: which are put into its workspace, given to its program, reported. Pure.

A *slot* is one try of one item; it names the item's folders in the workspace. The scheduler names all items that the
worker is to have, again and again; what its program has begun stays begun, and what it says of an item counts once.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.node_agent.core import archive
from services.node_agent.core.output import Answer
from shared.events import ItemEnd
from shared.fleet import ItemOrder
from shared.job import ITEM_FILES_MAX, BlobRef, Failure, ItemFile
from shared.model import Message
from shared.states import EndReason

#: Below the workspace.
ITEMS = ".items"
#: Items that a quick program has before it, so that it never waits; one that takes longer gets them one by one: what
#: is not begun can still go to another worker.
_AHEAD, _QUICK_S = 8, 0.5
#: Bytes of a file's name that are kept of an item's.
_NAME_BYTES_MAX, _ENDING_MAX = 200, 20
#: What was said to a program is said again after so many seconds, and then ever more rarely: it may not have heard it.
_AGAIN_S, _AGAIN_MAX_S = 5.0, 900.0


class Begun(Message):
    """An item that the program was given, as the journal has it; `ended_at` once what has become of it is known.

    `place`: counts what the program was given, and takes in that order.
    """

    id: str
    tries: int
    place: int = 0
    given_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: Failure | None = None
    is_reported: bool = False

    @property
    def slot(self) -> str:
        """Return the name of its folders."""
        return slot_of(self.id, self.tries)

    @property
    def is_ok(self) -> bool:
        """Return whether it has left something."""
        return self.ended_at is not None and self.error is None

    def end(self, files: tuple[ItemFile, ...], error: Failure | None = None) -> ItemEnd:
        """Return what the scheduler is told."""
        at = self.ended_at or self.given_at
        return ItemEnd(
            id=self.id,
            error=error or self.error,
            files=files,
            started_at=self.started_at or self.given_at,
            at=at,
            tries=self.tries,
        )


def slot_of(item_id: str, tries: int) -> str:
    """Return the name of the folders of a try of an item."""
    return f"{item_id}-{tries}"


@dataclass(slots=True)
class Items:
    """What a worker has.

    Args:
        timeout_s: that an item may take.
        begun: by slot, in any order; what the journal has.
    """

    timeout_s: float
    begun: dict[str, Begun] = field(default_factory=dict[str, Begun])
    waiting: dict[str, ItemOrder] = field(default_factory=dict[str, ItemOrder])  # to be begun, in order
    staged: set[str] = field(default_factory=set[str])  # those of them that are in the workspace
    is_closing: bool = False
    _acknowledged: set[str] = field(default_factory=set[str])
    _answered_at: datetime | None = None
    _watched_at: datetime | None = None
    _took_s: float = _QUICK_S
    _places: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        kept = sorted(self.begun.items(), key=lambda item: item[1].place)
        self.begun = dict(kept)
        self._places = itertools.count(1 + max((one.place for _, one in kept), default=0))

    def want(self, orders: Iterable[ItemOrder]) -> tuple[list[str], list[str]]:
        """Take in all that the scheduler wants of the worker.

        Returns:
            The slots that are in the workspace and not wanted any more, and those that the journal need not keep:
            their ends are recorded.
        """
        wanted = {slot_of(one.id, one.tries): one for one in orders}
        over = [slot for slot in self._acknowledged if slot not in wanted]
        for slot in over:
            self._acknowledged.discard(slot)
            del self.begun[slot]
        self.waiting = {slot: one for slot, one in wanted.items() if slot not in self.begun}
        dropped = [slot for slot in self.staged if slot not in self.waiting]
        self.staged.difference_update(dropped)
        return dropped, over

    def to_stage(self, most: int, bytes_max: int) -> list[ItemOrder]:
        """Return the next items to be put into the workspace, where so much may wait: at least one, if none does."""
        found: list[ItemOrder] = []
        size = sum(self.waiting[slot].spec.size or 0 for slot in self.staged)
        for slot, one in self.waiting.items():
            if slot in self.staged:
                continue
            size += one.spec.size or 0
            count = len(found) + len(self.staged)
            if count and (size > bytes_max or count >= most):
                break
            found.append(one)
        return found

    def are_staged(self, orders: Iterable[ItemOrder]) -> list[str]:
        """Take in that items are in the workspace; return the slots of those that nobody wants there any more."""
        slots = [slot_of(one.id, one.tries) for one in orders]
        self.staged.update(slot for slot in slots if slot in self.waiting)
        return [slot for slot in slots if slot not in self.waiting]

    def refuse(self, order: ItemOrder, failure: Failure, now: datetime) -> None:
        """Take in that an item cannot be given to the program."""
        slot = slot_of(order.id, order.tries)
        if self.waiting.pop(slot, None) is not None:
            self.staged.discard(slot)
            self.begun[slot] = Begun(
                id=order.id, tries=order.tries, given_at=now, started_at=now, ended_at=now, error=failure
            )

    def give(self, now: datetime) -> list[Begun]:
        """Begin with as many items as the program should have before it."""
        most = _AHEAD if self._took_s < _QUICK_S else 1
        room = most - len(self.open())
        given: list[Begun] = []
        for slot in [slot for slot in self.waiting if slot in self.staged][: max(0, room)]:
            one = self.waiting.pop(slot)
            self.staged.discard(slot)
            self.begun[slot] = Begun(id=one.id, tries=one.tries, place=next(self._places), given_at=now)
            given.append(self.begun[slot])
        return given

    def open(self) -> list[Begun]:
        """Return what the program has and has not answered."""
        return [one for one in self.begun.values() if one.ended_at is None]

    def answer(self, answer: Answer) -> Begun | None:
        """Take in what the program says of an item; None where that is not its to say, or not any more."""
        one = next((one for one in self.open() if one.id == answer.id), None)
        if one is None:
            return None
        started_at = max(one.given_at, self._answered_at or one.given_at)
        ended_at = max(answer.at, started_at)
        self._took_s, self._answered_at = (ended_at - started_at).total_seconds(), ended_at
        failure = None
        if not answer.is_ok:
            failure = Failure(reason=EndReason.ITEM_FAILED, message=answer.reason or "the program does not say why")
        return self._end(one, started_at, ended_at, failure)

    def watched_from(self, now: datetime) -> None:
        """Take in that nobody has listened to the program before *now*: it may have answered long ago."""
        self._watched_at = now

    def overdue(self, now: datetime) -> Begun | None:
        """End and return an item that takes too long: the one that the program must be at."""
        one = next(iter(self.open()), None)
        if one is None:
            return None
        started_at = max(one.given_at, self._answered_at or one.given_at)
        if now - max(started_at, self._watched_at or started_at) < timedelta(seconds=self.timeout_s):
            return None
        message = f"It took longer than {self.timeout_s:g} s, and its worker was stopped."
        return self._end(one, started_at, now, Failure(reason=EndReason.ITEM_TIMEOUT, message=message))

    def untold(self) -> tuple[str, ...]:
        """Return the items that the program was given and nobody was told the end of yet: first those it is at."""
        return tuple(one.id for one in (*self.open(), *self.unreported(len(self.begun))))

    def unreported(self, most: int) -> list[Begun]:
        """Return items whose ends are known and nobody was told yet, in order of their ends."""
        ended = [one for one in self.begun.values() if one.ended_at is not None and not one.is_reported]
        return sorted(ended, key=lambda one: one.ended_at or one.given_at)[:most]

    def reported(self, ended: Iterable[Begun]) -> list[Begun]:
        """Take in that the ends of items are in the journal's outbox; return them as they are now."""
        now = [one.model_copy(update={"is_reported": True}) for one in ended]
        self.begun.update({one.slot: one for one in now})
        return now

    def not_reported(self, ended: Iterable[Begun]) -> None:
        """Take back `reported`."""
        self.begun.update({one.slot: one for one in ended})

    def acknowledged(self) -> None:
        """Take in that the log has all ends that were reported."""
        self._acknowledged.update(slot for slot, one in self.begun.items() if one.is_reported)

    @property
    def is_done(self) -> bool:
        """Return whether nothing more comes and the program has answered all."""
        return self.is_closing and not self.waiting and not self.open()

    def _end(self, one: Begun, started_at: datetime, at: datetime, failure: Failure | None) -> Begun:
        ended = one.model_copy(update={"started_at": started_at, "ended_at": at, "error": failure})
        self.begun[one.slot] = ended
        return ended


@dataclass(slots=True)
class Again:
    """When something is to be said again: at once, after a while, and then ever more rarely."""

    due: float = 0.0
    pause_s: float = _AGAIN_S

    def is_due(self, now: float) -> bool:
        """Return whether it is, and count it as said. *now* in seconds."""
        if now < self.due:
            return False
        self.due, self.pause_s = now + self.pause_s, min(self.pause_s * 2, _AGAIN_MAX_S)
        return True

    def later(self, now: float) -> None:
        """Begin anew: something was said now."""
        self.due, self.pause_s = now + _AGAIN_S, 2 * _AGAIN_S


# --- in the workspace --------------------------------------------------------------------------------------------


def file_name(name: str) -> str:
    """Return a file's name for an item's, which may be any text: its last part, shortened before its ending."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if last in ("", ".", ".."):
        return "item"
    stem, dot, ending = last.rpartition(".")
    if not stem or len(ending) > _ENDING_MAX:
        stem, dot, ending = last, "", ""
    kept = stem.encode()[: _NAME_BYTES_MAX - 4 * len(ending)].decode("utf-8", "ignore")
    return f"{kept}{dot}{ending}"


def is_plain(path: str) -> bool:
    """Return whether *path* stays below where it begins."""
    return not path.startswith("/") and not any(part in ("", ".", "..") for part in path.split("/"))


def head(order: ItemOrder, workspace: str, inputs: str, size: int | None) -> list[bytes]:
    """Return parts of a tar, below the workspace: all of an item but the bytes of its file, which come next.

    Args:
        order: the item.
        workspace: where the program sees it.
        inputs: where the program sees them.
        size: of the file that follows; None: there is none.
    """
    slot, name = slot_of(order.id, order.tries), file_name(order.spec.name)
    given, left = f"{ITEMS}/in/{slot}", f"{ITEMS}/out/{slot}"
    path = f"{workspace}/{given}/file/{name}" if size is not None else ""
    if order.spec.path is not None:
        path = f"{inputs}/{order.spec.path}"
    out = f"{workspace}/{left}/{name}"
    line = {"item": order.id, "name": order.spec.name, "in": path or None, "out": out, "params": order.spec.params}
    parts = [archive.folder(left), archive.folder(given), archive.folder(f"{given}/file")]
    for what, text in (
        ("in.path", path),
        ("out.path", out),
        ("params.json", json.dumps(order.spec.params)),
        ("line.json", json.dumps(line)),
    ):
        body = f"{text}\n".encode()
        parts += [archive.file(f"{given}/{what}", len(body)), body, archive.padding(len(body))]
    if size is not None:
        parts.append(archive.file(f"{given}/file/{name}", size))
    return parts


@dataclass(slots=True)
class Left:
    """What one item has left, file by file. One that has left too much has failed."""

    bytes_max: int
    files: dict[str, BlobRef | None] = field(default_factory=dict[str, BlobRef | None])
    bytes: int = 0
    failure: Failure | None = None

    def takes(self, path: str, size: int) -> bool:
        """Return whether the file at *path* is still taken. What is must be told with `add` once it is stored."""
        self.files[path] = None
        if self.failure is None and len(self.files) > ITEM_FILES_MAX:
            self.failure = Failure(
                reason=EndReason.ITEM_FAILED, message=f"It has left more than {ITEM_FILES_MAX} files."
            )
        if self.failure is None and self.bytes + size > self.bytes_max:
            self.failure = Failure(
                reason=EndReason.DISK, message=f"It has left more than the {self.bytes_max} bytes of its job's disk."
            )
        self.bytes += size
        if self.failure is not None:
            self.files.clear()
        return self.failure is None

    def add(self, path: str, blob: BlobRef) -> None:
        """Take in that a file is stored."""
        if self.failure is None:
            self.files[path] = blob

    def listed(self) -> tuple[ItemFile, ...]:
        """Return the files: if all are in one folder, as they are called in there."""
        folders = {path.partition("/")[0] for path in self.files}
        is_folder = len(folders) == 1 and all("/" in path for path in self.files)
        return tuple(
            ItemFile(path=path.partition("/")[2] if is_folder else path, blob=blob)
            for path, blob in sorted(self.files.items())
            if blob is not None
        )
