"""What a job left, from its manifest: only bytes that the attempt itself has stored."""

from bisect import bisect_left, bisect_right
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, takewhile

from services.storage.core.queries import ANSWER_BYTES_MOST, ENTRIES_MOST, bounded
from shared.errors import NotFound
from shared.job import BlobRef, Job
from shared.manifest import Entry, Manifest, stays_below
from shared.requests.outputs import OutputPage

STDOUT, STDERR = "_stdout.txt", "_stderr.txt"
#: About what one entry takes as JSON, without its path.
_ENTRY_BYTES = 200


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of an attempt's outputs in order of their path, logs among them."""

    entries: tuple[Entry, ...]
    paths: tuple[str, ...]
    skipped: tuple[str, ...]


def stored_by(job: Job) -> tuple[str, int, datetime] | None:
    """Return which job and attempt has stored the outputs of *job*, and when it ended; None while there are none.

    A gang leaves what its first member has left: a job of its own, of one attempt.
    """
    if job.outputs is None:
        return None
    digest = job.outputs.manifest.sha256
    for attempt in reversed(job.attempts):
        if attempt.outputs and attempt.outputs.manifest.sha256 == digest:
            return job.id, attempt.number, attempt.ended_at or job.updated_at
    first = job.members[0] if job.members else None
    if first is not None and first.outputs and first.outputs.manifest.sha256 == digest:
        return first.job_id, 1, job.ended_at or job.updated_at
    return None


def listing(manifest: Manifest, held: AbstractSet[str], ended: float) -> Listing:
    """Return what can be served.

    Args:
        manifest: what the node says that the attempt left.
        held: the digests that the attempt itself has stored; a node cannot name anybody else's bytes.
        ended: when the attempt ended, in seconds since 1970; the logs' time.
    """
    logs = [
        Entry(path=path, blob=blob, mtime=ended)
        for path, blob in ((STDOUT, manifest.stdout), (STDERR, manifest.stderr))
        if blob is not None
    ]
    taken = {entry.path for entry in logs}
    shadowed = [entry.path for entry in manifest.entries if entry.path in taken]
    astray = [entry.path for entry in manifest.entries if not stays_below(entry.path)]
    found = [*logs, *(entry for entry in manifest.entries if entry.path not in taken and stays_below(entry.path))]
    served = sorted((entry for entry in found if _is_held(entry.blob, held)), key=lambda entry: entry.path)
    foreign = [entry.path for entry in found if not _is_held(entry.blob, held)]
    remarks = (
        *manifest.skipped,
        *(f"{path[:200]!r}: no path below the outputs" for path in astray),
        *(f"{path}: hidden by the log of this name" for path in shadowed),
        *(f"{path}: the attempt has not stored these bytes" for path in foreign),
    )
    return Listing(tuple(served), tuple(entry.path for entry in served), remarks)


def _is_held(blob: BlobRef | None, held: AbstractSet[str]) -> bool:
    return blob is None or blob.sha256 in held


def page(listed: Listing, cursor: str | None, limit: int) -> OutputPage:
    """Return the entries after *cursor* (a path); remarks come with the first page."""
    start = bisect_right(listed.paths, cursor) if cursor is not None else 0
    most = listed.paths[start : start + bounded(limit, ENTRIES_MOST)]
    sizes = accumulate(len(path.encode()) + _ENTRY_BYTES for path in most)
    stop = start + max(1, sum(1 for _ in takewhile(lambda total: total <= ANSWER_BYTES_MOST, sizes)))
    return OutputPage(
        entries=listed.entries[start:stop],
        cursor=listed.paths[stop - 1] if stop < len(listed.paths) else None,
        skipped=_bounded_remarks(listed.skipped) if cursor is None else (),
    )


def _bounded_remarks(remarks: tuple[str, ...], most: int = 100) -> tuple[str, ...]:
    if len(remarks) <= most:
        return remarks
    return (*remarks[:most], f"and {len(remarks) - most} more")


def below(listed: Listing, path: str | None, cursor: str | None, limit: int) -> OutputPage:
    """Return the entries of an input after *cursor*: the file at *path*, or what is in that folder.

    Without a path that is everything but the logs. A folder is there when it is listed, or anything below it is.

    Raises:
        NotFound: nothing is there.
    """
    if path is None:
        chosen = tuple(entry for entry in listed.entries if entry.path not in (STDOUT, STDERR))
    else:
        at = one(listed, path).entries if _is_listed(listed, path) else ()
        if at and at[0].kind == "file":
            return OutputPage(entries=at)
        start, stop = bisect_left(listed.paths, f"{path}/"), bisect_left(listed.paths, f"{path}0")  # "0" follows "/"
        chosen = listed.entries[start:stop]
        if not at and not chosen:
            raise NotFound(f"The job left nothing at {path!r}.")
    return page(Listing(chosen, tuple(entry.path for entry in chosen), ()), cursor, limit)


def _is_listed(listed: Listing, path: str) -> bool:
    at = bisect_left(listed.paths, path)
    return at < len(listed.paths) and listed.paths[at] == path


def one(listed: Listing, path: str) -> OutputPage:
    """Return the page with the one entry at *path*.

    Raises:
        NotFound: there is none.
    """
    at = bisect_right(listed.paths, path) - 1
    if at < 0 or listed.paths[at] != path:
        raise NotFound(f"The job left nothing at {path!r}.")
    return OutputPage(entries=(listed.entries[at],))
