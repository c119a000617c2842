"""Map jobs: what becomes of their items, and how many workers there are to be. Which has which items: `sharing`.

Workers are members that come and go (`crew`). The events of the job itself tell of everything about its items.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.scheduler.core import clocks, crew, lifecycle
from services.scheduler.core.items import Book
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.words import count
from shared.events import AttemptItems, ItemEnd, ItemsAdded, ItemsRetried
from shared.job import BlobRef, Failure, GangMember, Item, ItemCounts, ItemFile, Job, PendingReason
from shared.spec import ITEMS_MAX, ItemSpec, Map
from shared.states import INFRASTRUCTURE_REASONS, EndReason, ItemState, JobEventName, JobState, PendingCode

ROLE = "worker"
#: Bytes of JSON that the items of one event may take up in any case: no single one has more.
_ROOM_MIN = 150_000
_TOLD_MAX, _ERROR_CHARS = 3, 300  # failed items that an error names, and of each its own error
#: A worker that ends so is at no fault; of an item that took too long its node has told before.
_NOT_CHARGED = (EndReason.NODE_DRAINED, EndReason.ITEM_TIMEOUT)
_SILENT = "its program ended without a word about any item"


@dataclass(frozen=True, slots=True)
class ItemsSaid:
    """What *node* (by the subject, never the body) says about items that its attempt of a job, a worker, had."""

    node: str
    data: AttemptItems


#: What the log says about items, that waits for a decision.
ItemInput = ItemsAdded | ItemsRetried | ItemsSaid


@dataclass(slots=True)
class Changes:
    """What a turn makes of a job's items, over what is believed of them. One event carries them all.

    Attributes:
        room: bytes of JSON that the event still has for items.
        items: those that are changed, as they will be.
    """

    book: Book
    counts: ItemCounts
    room: int
    items: dict[str, Item] = field(default_factory=dict[str, Item])

    def get(self, item_id: str) -> Item | None:
        """Return an item as it will be; None for one that has succeeded, or that there is not."""
        return self.items.get(item_id) or self.book.get(item_id)

    def state(self, item_id: str) -> ItemState | None:
        """Return where an item will be; None: there is no such item."""
        item = self.items.get(item_id)
        return item.state if item is not None else self.book.state(item_id)

    def put(self, item: Item) -> bool:
        """Change an item, or add one; return False, without having done so, where the event is full."""
        size = len(item.to_bytes()) + 1
        if size > self.room and self.items:
            return False
        was = self.state(item.id)
        succeeded = (item.state is ItemState.SUCCEEDED) - (was is ItemState.SUCCEEDED)
        failed = (item.state is ItemState.FAILED) - (was is ItemState.FAILED)
        self.counts = self.counts.model_copy(
            update={
                "total": self.counts.total + (was is None),
                "succeeded": self.counts.succeeded + succeeded,
                "failed": self.counts.failed + failed,
                "bytes": self.counts.bytes + (item.spec.bytes if was is None else 0),
            }
        )
        self.room -= size
        self.items[item.id] = item
        return True


def changes(job: Job, book: Book, limits: Limits) -> Changes:
    """Return no changes yet, with the room that an event of *job* has for some."""
    room = max(limits.items_event_bytes_max - len(job.to_bytes()), _ROOM_MIN)
    return Changes(book, job.items or ItemCounts(), room)


# --- what the log says about items -----------------------------------------------------------------------------------


def take_in(job: Job, some: Changes, said: ItemInput, worker: Job | None, now: Now, limits: Limits) -> tuple[Job, bool]:
    """Return a job after *said*, and whether that was all: what the event has no room for is to be taken in again.

    *worker*: of what a worker says, as it is now. Taking in twice changes nothing: items have ids, and tries a time.
    """
    match said:
        case ItemsAdded():
            job, is_all = _add(job, some, said, now.at, limits)
        case ItemsRetried():
            is_all = _retry(some, said)
        case ItemsSaid():
            before = some.counts.ended
            is_all = _end(job, some, said, worker, now.at)
            if some.counts.ended > before:  # the workers do work
                job = job.model_copy(update={"tries": 0, "losses": 0, "not_before": None})
    return job.model_copy(update={"items": some.counts, "updated_at": now.at}), is_all


def _add(job: Job, some: Changes, said: ItemsAdded, now: datetime, limits: Limits) -> tuple[Job, bool]:
    refused: list[str] = []
    for spec in said.items:
        if spec.id is None or some.state(spec.id) is not None:
            continue
        item = _new(spec, spec.id, some.counts.total, now)
        if why := _refusal(item, some.counts, limits):
            refused.append(why)
        elif not some.put(item):
            return job, False
    if said.close and not some.counts.closed:
        some.counts = some.counts.model_copy(update={"closed": True})
    if refused:
        job = crew.with_remark(job, f"{count(len(refused), 'item was', 'items were')} not taken: {refused[0]}")
    return job, True


def _refusal(item: Item, counts: ItemCounts, limits: Limits) -> str:
    if counts.closed:
        return "the job was closed before"
    if counts.total >= ITEMS_MAX:
        return f"a map job has at most {ITEMS_MAX} items"
    if len(item.to_bytes()) > limits.item_bytes_max:
        return f"{item.spec.name} has more than {limits.item_bytes_max} bytes of parameters and names"
    if counts.bytes + item.spec.bytes > limits.items_bytes_max:
        return f"all items of a job together have at most {limits.items_bytes_max} bytes of parameters and names"
    return ""


def _new(spec: ItemSpec, item_id: str, index: int, now: datetime) -> Item:
    item = Item(id=item_id, index=index, spec=spec, added_at=now)
    if not spec.given or spec.sha256 is None:
        return item
    result = ItemFile(path=spec.name, blob=BlobRef(sha256=spec.sha256, size=spec.size or 0))
    return item.model_copy(update={"state": ItemState.SUCCEEDED, "ended_at": now, "files": (result,)})


def _retry(some: Changes, said: ItemsRetried) -> bool:
    for item_id in said.items or some.book.failed():
        item = some.get(item_id) if some.state(item_id) is ItemState.FAILED else None
        again = {"state": ItemState.WAITING, "error": None, "started_at": None, "ended_at": None}
        if item is not None and not some.put(item.model_copy(update=again)):
            return False
    return True


def _end(job: Job, some: Changes, said: ItemsSaid, worker: Job | None, now: datetime) -> bool:
    """Take in what a worker says; only its current attempt has a say."""
    attempt = worker.current if worker is not None else None
    if worker is None or attempt is None or (attempt.node, attempt.number) != (said.node, said.data.attempt):
        return True
    for end in said.data.ends:
        item = some.get(end.id) if some.state(end.id) is ItemState.WAITING else None
        if item is None:
            continue
        ended = _ended(item, end, attempt.node, worker, _tries_max(job), now)
        if ended is not None and not some.put(ended):
            return False
        if ended is not None:
            some.book.said(worker.id, attempt.node, max(0.0, (end.at - end.started_at).total_seconds()))
    return True


def _ended(item: Item, end: ItemEnd, node: str, worker: Job, tries_max: int, now: datetime) -> Item | None:
    if end.error is not None and end.tries is not None and end.tries < item.tries:
        return None  # that try is counted; a result counts whichever try it is of
    # The node's clock may be wrong: how long it took is kept, and within what we know to be true.
    at = min(max(end.at, item.added_at), now)
    took = min(max(end.at - end.started_at, timedelta()), at - item.added_at)
    started_at = at - took
    if (item.worker, item.attempt, item.started_at) == (worker.id, worker.attempt, started_at):
        return None  # the same try once more
    tried = {
        "tries": item.tries + 1,
        "started_at": started_at,
        "node": node,
        "worker": worker.id,
        "attempt": worker.attempt,
    }
    if end.error is None:
        return item.model_copy(update=tried | {"state": ItemState.SUCCEEDED, "ended_at": at, "files": end.files})
    return _came_to_nothing(item.model_copy(update=tried), end.error, tries_max, at, end.files)


def _came_to_nothing(
    item: Item, error: Failure, tries_max: int, at: datetime, files: tuple[ItemFile, ...] = ()
) -> Item:
    """Return an item after a try that failed, which `tries` counts; one that is retried has as many tries once more."""
    if item.tries % tries_max:
        return item.model_copy(update={"error": error})
    return item.model_copy(update={"state": ItemState.FAILED, "error": error, "ended_at": at, "files": files})


def _tries_max(job: Job) -> int:
    return job.spec.map.item_attempts if job.spec.map is not None else 1


def is_worker(job: Job) -> bool:
    """Return whether *job* is a worker of a map job, and not of a gang in which a role is called so."""
    return job.member_of is not None and not job.member_of.size and job.member_of.role == ROLE


def ends_by_itself(member: Job, parent: Job | None) -> bool:
    """Return whether *member* is a worker of a job that has ended, and ends as soon as it is told so."""
    is_alone = parent is None or parent.is_terminal
    return is_alone and is_worker(member) and member.state in (JobState.STARTING, JobState.RUNNING, JobState.FINISHING)


# --- what follows for the job and its workers ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Crew:
    """A job's workers as they are now.

    Attributes:
        jobs: by id: all that are active, and those that have ended since.
        missing: those that the log does not know.
        known: ids of jobs that cannot be given to a new worker.
    """

    jobs: Mapping[str, Job]
    missing: frozenset[str] = frozenset()
    known: Collection[str] = ()


def follow(job: Job, some: Changes, workers: Crew, now: Now, limits: Limits) -> crew.Plan:
    """Return what follows for a map job, its new workers, and those that are to be stopped."""
    before, seen = job, crew.see(job.members, workers.jobs, workers.missing)
    job = job.model_copy(update={"members": seen.members})
    job, failure = _after_ends(job, some, seen, now, limits)
    job = job.model_copy(update={"items": some.counts, "updated_at": now.at})
    there = tuple(one.job_id for one in seen.members)
    if clocks.is_unwanted(job, now.at):
        return (
            crew.Plan(_news(before, job, some), stopped=there) if there else crew.Plan(lifecycle.stopped(job, now.at))
        )
    if failure is not None and _is_given_up(job, limits):
        return crew.Plan(lifecycle.end(job, JobState.FAILED, failure, now.at), stopped=there)
    if some.counts.closed and some.counts.ended == some.counts.total:
        return crew.Plan(_over(job, some, now.at))  # its workers are at their end anyway, and are let be
    job, hired, stopped = _staffed(job, some, workers, now, limits)
    stopped += _overstayed(job, some.book, now.mono, limits)
    state, _ = crew.follow_state(job, job.members)
    waits = state is JobState.QUEUED
    pending = _pending(job, some, workers, now.at) if waits else ()
    job = job.model_copy(update={"state": state, "pending": pending})
    return crew.Plan(_news(before, job, some), hired, stopped)


def is_restless(job: Job, book: Book) -> bool:
    """Return whether time alone may change something for a job."""
    return bool(job.members) or job.not_before is not None or bool(book.hands())


def _after_ends(job: Job, some: Changes, seen: crew.Seen, now: Now, limits: Limits) -> tuple[Job, Failure | None]:
    """Return a job charged for the workers that have ended, with why the last one did that came to nothing."""
    failure: Failure | None = None
    tries, losses = 0, 0
    for member, ended in seen.ended:
        hand = some.book.hand(member.job_id)
        had = some.book.drop(member.job_id)
        if ended is None or ended.cancel_requested_at is not None or (hand and hand.closing_since is not None):
            continue
        if ended.state is JobState.SUCCEEDED:
            # A scheduler before may have told it to end, when it had done much.
            is_idle = hand is not None and hand.ended == 0 and not hand.is_taken_over
            failed = Failure(reason=EndReason.EXIT_CODE, message=_SILENT) if is_idle else None
        else:
            failed = ended.error or Failure(reason=EndReason.EXIT_CODE, message="its program has ended")
        if failed is None or failed.reason in _NOT_CHARGED:
            continue
        failure = failed
        has_run = bool(ended.attempts) and ended.attempts[-1].running_at is not None
        if failed.reason in INFRASTRUCTURE_REASONS:
            losses = 1  # a node that is lost takes several workers along: it is one loss
            if had and has_run and some.book.lost(had[0]) > limits.losses_max:  # it may be what nodes die of
                _charge(job, some, had[0], ended, failed, now.at)
            continue
        tries += hand is None or hand.ended == 0
        some.book.shunned.update(attempt.node for attempt in ended.attempts)
        if had and has_run and ended.state is not JobState.SUCCEEDED:
            _charge(job, some, had[0], ended, failed, now.at)
    if not tries and not losses:
        return job, None
    job = job.model_copy(update={"tries": job.tries + tries, "losses": job.losses + losses})
    times = min(job.tries + job.losses - 1, 32)  # hundreds of workers may fail at once
    wait_s = min(limits.worker_backoff_s * 2**times, limits.worker_backoff_max_s)
    return job.model_copy(update={"not_before": now.at + timedelta(seconds=wait_s)}), failure


def _charge(job: Job, some: Changes, item_id: str, worker: Job, failure: Failure, now: datetime) -> None:
    """Count a failed try of the item on which a worker ended: else one that kills its program would do so for ever."""
    item = some.get(item_id) if some.state(item_id) is ItemState.WAITING else None
    attempt = worker.attempts[-1]
    if item is None or (item.worker, item.attempt) == (worker.id, attempt.number):
        return  # its node has said so itself
    message = f"its worker ended on it: {failure.message}"
    tried = {"tries": item.tries + 1, "node": attempt.node, "worker": worker.id, "attempt": attempt.number}
    error = Failure(reason=failure.reason, message=message)
    some.put(_came_to_nothing(item.model_copy(update=tried), error, _tries_max(job), now))


def _is_given_up(job: Job, limits: Limits) -> bool:
    if any(one.state is JobState.RUNNING for one in job.members):
        return False  # others go on: what has failed, or was lost, may be the fault of a few nodes
    return job.tries >= max(limits.worker_failures_max, job.spec.max_attempts) or job.losses > limits.losses_max


def _over(job: Job, some: Changes, now: datetime) -> lifecycle.Change:
    if not some.counts.failed:
        return lifecycle.end(job, JobState.SUCCEEDED, None, now)
    named: list[str] = []
    for item_id in (*some.items, *some.book.failed()):
        item = some.get(item_id) if some.state(item_id) is ItemState.FAILED else None
        if item is not None and item.error is not None and len(named) < _TOLD_MAX:
            named.append(f"{item.spec.name} ({item.error.message[:_ERROR_CHARS]})")
    more = ", …" if some.counts.failed > len(named) else ""
    message = f"{some.counts.failed} of {some.counts.total} items failed: {', '.join(dict.fromkeys(named))}{more}"
    return lifecycle.end(job, JobState.FAILED, Failure(reason=EndReason.ITEMS_FAILED, message=message), now)


def _staffed(
    job: Job, some: Changes, workers: Crew, now: Now, limits: Limits
) -> tuple[Job, tuple[Job, ...], tuple[str, ...]]:
    """Return a job with as many workers as there is work for, the new ones, and those that are not needed."""
    at_work = [one for one in job.members if _is_at_work(one, some.book)]
    short = _wanted(some, _map(job), limits) - len(at_work)
    if short > 0:
        if job.not_before is not None and job.not_before > now.at:
            return job, (), ()
        # Every event of the job names them all, and those that only wait for room may never get any.
        waiting = sum(one.state is JobState.QUEUED for one in at_work)
        short = min(short, max(0, limits.workers_queued_max - waiting))
        spec = crew.member_spec(job.spec)
        spread = spec.placement.model_copy(update={"policy": "spread"})
        spec = spec.model_copy(update={"placement": spread, "view": "job"})
        job, hired = crew.hire(job, ROLE, spec, short, now.at, known=workers.known)
        return job, hired, ()
    # Those that have begun end by themselves once there is nothing for them to do.
    queued = [one.job_id for one in at_work if one.state is JobState.QUEUED]
    return job, (), tuple(queued[max(0, len(queued) + short) :])


def _overstayed(job: Job, book: Book, mono: float, limits: Limits) -> tuple[str, ...]:
    """Return the workers that were to end by themselves, and have had nothing to do for long."""
    hands = ((one.job_id, book.hand(one.job_id)) for one in job.members)
    times = ((worker, hand.closing_since, hand.empty_since) for worker, hand in hands if hand is not None)
    since = {
        worker: max(closing, empty) for worker, closing, empty in times if closing is not None and empty is not None
    }
    return tuple(worker for worker, at in since.items() if mono - at > limits.worker_close_s)


def _is_at_work(member: GangMember, book: Book) -> bool:
    hand = book.hand(member.job_id)
    return member.state is not JobState.FINISHING and (hand is None or hand.closing_since is None)


def _wanted(some: Changes, wished: Map, limits: Limits) -> int:
    """Return for how many workers there is work that is worth the start of one."""
    left = some.counts.total - some.counts.ended
    pace_s = some.book.pace_s
    useful = left if pace_s is None else math.ceil(left * pace_s / limits.worker_worth_s)
    return min(wished.parallelism, left, max(1, useful))


def _pending(job: Job, some: Changes, workers: Crew, now: datetime) -> tuple[PendingReason, ...]:
    if some.counts.ended == some.counts.total:
        return (PendingReason(code=PendingCode.NO_ITEMS, nodes=0, message="it waits for items"),)
    if job.not_before is not None and job.not_before > now and not job.members:
        text = "its last worker failed; another is tried soon"
        return (PendingReason(code=PendingCode.BACKOFF, nodes=0, message=text),)
    return crew.pending_of(job.members, workers.jobs)


def _news(before: Job, job: Job, some: Changes) -> lifecycle.Change | None:
    """Return the event that tells of what *job* has become; None where that is worth none."""
    if job.state is not before.state:
        _, name = crew.follow_state(before, job.members)
        return lifecycle.Change(job, name)
    if some.items or job.items != (before.items or ItemCounts()):
        return lifecycle.Change(job, JobEventName.ITEMS)
    if _codes(job) != _codes(before):
        return lifecycle.Change(job, JobEventName.PENDING)
    # Where a worker is, and how far, its own record tells.
    if _told(job) != _told(before):
        return lifecycle.Change(job, JobEventName.REMARKED)
    return None


def _told(job: Job) -> tuple[object, ...]:
    return tuple(one.job_id for one in job.members), job.tries, job.losses, job.not_before


def _codes(job: Job) -> frozenset[PendingCode]:
    return frozenset(reason.code for reason in job.pending)


def _map(job: Job) -> Map:
    assert job.spec.map is not None  # noqa: S101 - only of map jobs
    return job.spec.map
