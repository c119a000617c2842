"""A snapshot as bytes and back: every active job with its sequence, cut into parts that fit a message."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.job import Job
from shared.model import Message

#: Bytes of JSON in a part, before compression: also what does not compress fits the broker's 1 MiB.
PART_BYTES_MAX = 600 * 1024
#: Rises when a reader of the version before would misunderstand. Fields of the head that it may ignore do not count:
#: a standby that is one release older must be able to take over.
_VERSION = 1


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
    """The active jobs, each with the sequence of its last event, as of *position* in the log."""

    position: int
    jobs: tuple[tuple[Job, int], ...]


def encode(position: int, jobs: Iterable[tuple[Job, int]], carried: Carried | None = None) -> tuple[bytes, list[bytes]]:
    """Return the head, which is to be stored last, and the parts."""
    parts: list[bytes] = []
    lines: list[bytes] = []
    size = 0
    for job, seq in jobs:
        line = b"%d %s" % (seq, job.to_bytes())
        if lines and size + len(line) > PART_BYTES_MAX:
            parts.append(zlib.compress(b"\n".join(lines), 1))
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        parts.append(zlib.compress(b"\n".join(lines), 1))
    head: dict[str, object] = {
        "version": _VERSION,
        "position": position,
        "parts": [hashlib.sha256(part).hexdigest() for part in parts],
    }
    if carried is not None:
        head["carried"] = carried.model_dump(exclude_defaults=True)
    return json.dumps(head).encode(), parts


def read_head(head: bytes) -> tuple[int, int] | None:
    """Return the position and the number of parts, or None if the head is not readable."""
    try:
        said = json.loads(head)
        return (int(said["position"]), len(said["parts"])) if said["version"] == _VERSION else None
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
    if said["parts"] != [hashlib.sha256(part).hexdigest() for part in parts]:
        return None
    jobs: list[tuple[Job, int]] = []
    for part in parts:
        for line in zlib.decompress(part).split(b"\n"):
            seq, _, body = line.partition(b" ")
            jobs.append((Job.from_bytes(body), int(seq)))
    return Snapshot(int(said["position"]), tuple(jobs))
