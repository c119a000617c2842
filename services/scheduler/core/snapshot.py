"""A snapshot as bytes and back: every active job with its sequence, cut into parts that fit a message."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.job import Job

#: Bytes of JSON in a part, before compression: also what does not compress fits the broker's 1 MiB.
PART_BYTES_MAX = 600 * 1024
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The active jobs, each with the sequence of its last event, as of *position* in the log."""

    position: int
    jobs: tuple[tuple[Job, int], ...]


def encode(position: int, jobs: Iterable[tuple[Job, int]]) -> tuple[bytes, list[bytes]]:
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
    head = {"version": _VERSION, "position": position, "parts": [hashlib.sha256(part).hexdigest() for part in parts]}
    return json.dumps(head).encode(), parts


def read_head(head: bytes) -> tuple[int, int] | None:
    """Return the position and the number of parts, or None if the head is not readable."""
    try:
        said = json.loads(head)
        return (int(said["position"]), len(said["parts"])) if said["version"] == _VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


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
