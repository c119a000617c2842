"""The inputs that a node keeps for any job that wants them: their names, and which have to go.

The disk of a machine is cut in two. One part is for inputs, all that is kept and all that is being brought; the other
is promised to attempts. So neither takes what the other counts on: the node offers its disk less the part for inputs,
and says that so much less is free as that part is not filled yet.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from services.node_agent.core.inputs import place
from shared.fleet import HELD_INPUTS_MAX, HeldInput
from shared.manifest import Entry

#: The part of the disk that is for inputs, unless a setting says otherwise; and what is left free in any case.
_PART, _SPARE_PART = 0.2, 0.05
#: Of a large disk not even that much has to stay free.
_SPARE_MAX = 2 * 1024**3
#: The one file in the volume of an input that is a file.
CONTENT = "content"
#: The folder of a tar that becomes the root of a volume.
FILL_ROOT = "input"


@dataclass(frozen=True, slots=True)
class Given:
    """An input that is on the machine, as an attempt gets it: see `Kept`."""

    volume: str
    is_file: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """An input that is whole on the machine.

    Attributes:
        runtime: whose volume it is.
        key: what it is: for a blob `shared.fleet.input_key`, for outputs of a job the digest of their listing.
        volume: the volume's name: a filling's own, so that what a broken one has left is never taken for whole.
        is_file: the volume holds one file, CONTENT, which is the input; else what is in it is.
        bytes: as it takes up the disk.
        used_at: when an attempt last wanted it, in seconds since 1970.
    """

    runtime: str
    key: str
    volume: str
    is_file: bool
    bytes: int
    used_at: float


def disk_for_inputs(disk: int, wanted: int | None) -> int:
    """Return the bytes of a *disk* of so many bytes that are for inputs; *wanted* is the setting."""
    return min(disk, int(disk * _PART) if wanted is None else wanted)


def most(limit: int, taken: int, disk: int, free: int) -> int:
    """Return how many bytes inputs may have now: less than *limit* where others have filled the disk.

    Args:
        limit: `disk_for_inputs`.
        taken: what they have.
        disk: all of it.
        free: what is free of it.
    """
    spare = min(int(disk * _SPARE_PART), _SPARE_MAX)
    return max(0, min(limit, taken + free - spare))


def to_remove(kept: Iterable[Kept], busy: Collection[tuple[str, str]], excess: int) -> list[Kept]:
    """Return what to remove so that *excess* bytes less are taken: what was not used for longest goes first.

    Args:
        kept: all there is.
        busy: runtime and key of what attempts use, or want.
        excess: in bytes; what is returned may be smaller, where nothing more may go.
    """
    gone: list[Kept] = []
    for one in sorted(kept, key=lambda one: one.used_at):
        if excess <= 0:
            break
        if (one.runtime, one.key) not in busy:
            gone.append(one)
            excess -= one.bytes
    return gone


def reported(kept: Iterable[Kept]) -> tuple[HeldInput, ...]:
    """Return what a heartbeat says: those that were used last, by key, each once."""
    latest = sorted(kept, key=lambda one: one.used_at, reverse=True)
    found = {one.key: one.bytes for one in latest[:HELD_INPUTS_MAX]}
    return tuple(HeldInput(key=key, bytes=size) for key, size in sorted(found.items()))


@dataclass(slots=True)
class ListingDigest:
    """The key of outputs of a job: equal where a program would find the same.

    Args:
        asked: the path among the outputs that was asked for; None: all of them.
    """

    asked: str | None
    entries: int = 0
    bytes: int = 0
    is_file: bool = False
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, entry: Entry) -> None:
        """Take in the next entry, in the order of the listing.

        Raises:
            WherryError: ``stage_in_failed``: its path would lead out of the input.
        """
        path = place(entry.path, self.asked)
        self.is_file = not self.entries and not path and entry.blob is not None
        self.entries += 1
        self.bytes += entry.blob.size if entry.blob else 0
        blob = [entry.blob.sha256, entry.blob.size] if entry.blob else None
        self._digest.update(json.dumps([path, entry.kind, entry.mode, int(entry.mtime), blob]).encode() + b"\n")

    @property
    def key(self) -> str:
        """Return the key of what was taken in."""
        return f"{self._digest.hexdigest()}-outputs"
