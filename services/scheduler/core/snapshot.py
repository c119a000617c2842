"""A snapshot as bytes and back: active jobs with their sequences, and items, cut into parts that fit a message."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.scheduler.core.items import Book
from shared.job import Job
from shared.model import Message

#: Bytes of JSON in a part, before compression: also what does not compress fits the broker's 1 MiB.
PART_BYTES_MAX = 600 * 1024
#: Rises when a reader of the version before would misunderstand. Fields of the head that it may ignore do not count:
#: a standby that is one release older must be able to take over. Where there are jobs of kinds that the release before
#: cannot read, it must not try: it reads the log from an older snapshot on, and sets those jobs aside.
_VERSION, _VERSION_OF_ALL_KINDS = 1, 2
_OLD_KINDS = frozenset({"run", "gang"})


class HeadOfLine(Message):
    """The job for which room is kept, on which node, and since when, in seconds since 1970."""

    job_id: str
    priority: int
    node: str
    since_s: float


class Carried(Message):
    """What no event tells and a new leader should know all the same; at its defaults in a snapshot that lacks it.

    `lately` is the mean share that each owner has had up to `at_s`, in seconds since 1970.
    """

    at_s: float = 0.0
    lately: dict[str, float] = {}
    head: HeadOfLine | None = None
    epoch: int = 0  # of the leader that wrote it


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The active jobs, each with the sequence of its last event, and items by map job, as of *position* in the log."""

    position: int
    jobs: tuple[tuple[Job, int], ...]
    books: dict[str, Book] = field(default_factory=dict[str, Book])


def encode(
    position: int,
    jobs: Sequence[tuple[Job, int]],
    carried: Carried | None = None,
    items: Mapping[str, Sequence[bytes]] | None = None,
) -> tuple[bytes, list[bytes]]:
    """Return the head, which is to be stored last, and the parts. *items*: `Book.lines` of map jobs, by id."""
    parts = list(_parts(b"%d %s" % (seq, job.to_bytes()) for job, seq in jobs))
    lines = (b"%s %s" % (job_id.encode(), line) for job_id, book in (items or {}).items() for line in book)
    item_parts = list(_parts(lines))
    is_old = all(job.spec.kind in _OLD_KINDS for job, _ in jobs)
    head: dict[str, object] = {
        "version": _VERSION if is_old else _VERSION_OF_ALL_KINDS,
        "position": position,
        "parts": _digests(parts),
    }
    if item_parts:
        head["items"] = _digests(item_parts)
    if carried is not None:
        head["carried"] = carried.model_dump(exclude_defaults=True)
    return json.dumps(head).encode(), parts + item_parts


def _parts(lines: Iterable[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > PART_BYTES_MAX:
            yield zlib.compress(b"\n".join(part), 1)
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    if part:
        yield zlib.compress(b"\n".join(part), 1)


def _digests(parts: Iterable[bytes]) -> list[str]:
    return [hashlib.sha256(part).hexdigest() for part in parts]


def read_head(head: bytes) -> tuple[int, int] | None:
    """Return the position and the number of parts, or None if the head is not readable."""
    try:
        said = json.loads(head)
        if said["version"] not in (_VERSION, _VERSION_OF_ALL_KINDS):
            return None
        return int(said["position"]), len(said["parts"]) + len(said.get("items", ()))
    except (ValueError, KeyError, TypeError):
        return None


def read_carried(head: bytes) -> Carried:
    """Return what a readable *head* carries; nothing, if an older release has written it."""
    try:
        return Carried.model_validate(json.loads(head).get("carried", {}))
    except ValueError:  # of a later release: worth less than going on
        return Carried()


def decode(head: bytes, parts: Sequence[bytes]) -> Snapshot | None:
    """Return the snapshot, or None if a part is not the one that the head names."""
    said = json.loads(head)
    if said["parts"] + said.get("items", []) != _digests(parts):
        return None
    jobs: list[tuple[Job, int]] = []
    for seq, body in _lines(parts[: len(said["parts"])]):
        jobs.append((Job.from_bytes(body), int(seq)))
    books: dict[str, Book] = {}
    for job_id, line in _lines(parts[len(said["parts"]) :]):
        books.setdefault(job_id.decode(), Book()).read((line,))
    return Snapshot(int(said["position"]), tuple(jobs), books)


def _lines(parts: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield what is before the first space of each line, and what is after it."""
    for part in parts:
        for line in zlib.decompress(part).split(b"\n"):
            first, _, rest = line.partition(b" ")
            yield first, rest
