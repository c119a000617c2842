"""Which worker of a map job has which items. Nothing of it is recorded: heartbeats' answers tell the nodes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.scheduler.core import clocks, lifecycle
from services.scheduler.core.items import Book, Hand
from services.scheduler.core.limits import Limits, Now
from shared.fleet import ItemOrder
from shared.job import Job
from shared.spec import JobSpec, Map
from shared.states import JobState

_AT_WORK = (JobState.RUNNING, JobState.FINISHING)


def share(
    job: Job,
    book: Book,
    jobs: Mapping[str, Job],
    has: Mapping[str, Sequence[str]],
    is_leaving: Callable[[str], bool],
    now: Now,
    limits: Limits,
    *,
    is_crowded: bool = False,
) -> set[str]:
    """Share the items out among a job's workers; return those that are to have others now, or are to end.

    Args:
        job: as believed.
        book: its items.
        jobs: the workers by id, as believed.
        has: by worker, the items that `strangers` among them have begun, as their nodes say.
        is_leaving: whether a node is being drained: its workers end once they have done what they have.
        now: the time.
        limits: how much each worker has.
        is_crowded: whether others wait for room, so that none is kept long for items that may come.
    """
    if clocks.is_unwanted(job, now.at):
        return set()
    there = [jobs[one.job_id] for one in job.members if one.job_id in jobs]
    count_each = _ahead(book, limits)
    ahead = {one.id: _share_of(one, book, count_each) for one in there if one.state in lifecycle.HOLDING}
    # What a worker that ends has answered is still to be told: the rest waits for that, but for who is idle.
    begun = [one.id for one in there if one.state in _AT_WORK]
    idle_s = limits.worker_idle_crowded_s if is_crowded else limits.worker_idle_s
    changed = book.share(ahead, begun, now.mono, limits.items_hand_bytes_max, has)
    for one in there:
        hand = book.hand(one.id) if one.state is JobState.RUNNING else None
        if hand is not None and hand.closing_since is None:
            moves = is_leaving(one.attempts[-1].node)
            if moves or _is_to_close(job, book, hand, now.mono, idle_s):
                hand.closing_since = now.mono
                changed.add(one.id)
    return changed


def strangers(book: Book, workers: Iterable[Job]) -> Iterator[Job]:
    """Give the workers that work and of which *book* does not know what they have: of a scheduler before."""
    return (one for one in workers if one.state in _AT_WORK and book.hand(one.id) is None)


def _share_of(worker: Job, book: Book, count_each: int) -> int:
    hand = book.hand(worker.id)
    is_closing = hand is not None and hand.closing_since is not None
    if is_closing or worker.state is JobState.FINISHING or worker.cancel_requested_at is not None:
        return 0
    # One that has not begun yet may take long to: it is given one item, so that it begins with that.
    return count_each if worker.state is JobState.RUNNING else 1


def _is_to_close(job: Job, book: Book, hand: Hand, mono: float, idle_s: float) -> bool:
    """Return whether a worker has had nothing to do for a while, or will have nothing any more."""
    if hand.empty_since is None or book.waiting:
        return False
    is_closed = job.items is not None and job.items.closed
    return is_closed or mono - hand.empty_since >= idle_s


def _ahead(book: Book, limits: Limits) -> int:
    """Return how many items a worker is to have: what it does now, and enough for the time of asking for more."""
    if book.pace_s is None:
        return limits.items_ahead_first
    wanted = 1 + math.ceil(limits.items_ahead_s / max(book.pace_s, 0.001))
    return min(max(wanted, limits.items_ahead_min), limits.items_ahead_max)


@dataclass(frozen=True, slots=True)
class Given:
    """What a worker is to have, in bytes of JSON too, and whether it is to end after it. None: there is no news."""

    items: tuple[ItemOrder, ...] | None
    size: int
    close: bool


def given(worker: str, book: Book | None) -> Given:
    """Return what a worker is to have. *book*: of its job; None where that has ended."""
    if book is None:
        return Given((), 0, close=True)
    hand = book.hand(worker)
    if hand is None:
        return Given(None, 0, close=False)
    return Given(tuple(hand.items.values()), hand.size, hand.closing_since is not None)


def for_worker(spec: JobSpec) -> Map | None:
    """Return what a worker is told of its map job: not which items it has."""
    return spec.map.model_copy(update={"items": ()}) if spec.map is not None else None
