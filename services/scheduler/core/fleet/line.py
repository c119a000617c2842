"""The queue: jobs that may be placed now, grouped by who wants what, so that no turn looks at each of them."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from services.scheduler.core.need import Need
from shared.job import Job

#: Who came first is first: when, in seconds since 1970; the id decides between equals.
Place = tuple[float, str]

Floats = NDArray[np.float64]

_COMPARED_MAX = 512
_PRIORITY_WEIGHT = 1e13  # more than there are turns to count


class Block(Enum):
    """Why no job with a need is worth a try now."""

    FULL = "full"  # it fits nowhere at present
    NEVER = "never"  # no node that is heard would do if it were empty
    RESERVED = "reserved"  # it fits only where room is kept for another


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that is kept for the job at the head of the queue. Times in seconds since 1970.

    Attributes:
        job_id, priority: of the job.
        node: where the room is.
        since_s: since when the job is at the head.
        free_by_s: when there will be room at the latest.
    """

    job_id: str
    priority: int
    node: str
    since_s: float
    free_by_s: float


@dataclass(slots=True, eq=False)
class Kind:
    """A need and all who have it: they fit or wait together.

    Attributes:
        upto: with RESERVED, the highest priority that it holds for.
        row: its place among the blocked ones.
    """

    need: Need
    block: Block | None = None
    upto: int = 0
    groups: list["Group"] = field(default_factory=list)
    row: int = -1


@dataclass(slots=True, eq=False)
class Group:
    """Jobs of one owner with one need and one priority: interchangeable but for who came first.

    Attributes:
        shelf: where it is; None while it is over quota, or no node would do.
        listed: per shelf, under which head it was put there last.
    """

    kind: Kind
    owner: str
    priority: int
    places: list[Place] = field(default_factory=list)
    is_over_quota: bool = False
    shelf: "Shelf | None" = None
    listed: list[Place | None] = field(default_factory=lambda: [None, None])

    @property
    def head(self) -> Place:
        """Return the first place."""
        return self.places[0]

    def __lt__(self, other: "Group") -> bool:
        return False  # never asked but about two entries of one job


class Shelf:
    """Groups by priority and owner, the one whose first job came first on top. Entries that no longer hold are lazy."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._tiers: dict[int, dict[str, list[tuple[float, str, Group]]]] = {}

    def put(self, group: Group) -> None:
        """Note that *group* is here, or that another of its jobs is the first now."""
        if group.listed[self._number] == group.head:
            return
        group.listed[self._number] = group.head
        owners = self._tiers.setdefault(group.priority, {})
        heapq.heappush(owners.setdefault(group.owner, []), (*group.head, group))

    def priorities(self) -> list[int]:
        """Return the priorities that there may be jobs of, the highest first."""
        return sorted(self._tiers, reverse=True)

    def owners(self, priority: int) -> list[str]:
        """Return who has jobs of *priority*."""
        return [owner for owner in tuple(self._tiers.get(priority, ())) if self.first(priority, owner) is not None]

    def firsts(self) -> list[Group]:
        """Return the first group of each owner at each priority."""
        found = [self.first(priority, owner) for priority in self.priorities() for owner in self.owners(priority)]
        return [group for group in found if group is not None]

    def first(self, priority: int, owner: str) -> Group | None:
        """Return the group of *owner* whose first job came first."""
        owners = self._tiers.get(priority)
        if owners is None or (entries := owners.get(owner)) is None:
            return None
        while entries:
            when, job_id, group = entries[0]
            if group.shelf is self and group.places and group.head == (when, job_id):
                return group
            heapq.heappop(entries)
            if group.listed[self._number] == (when, job_id):
                group.listed[self._number] = None
        del owners[owner]
        if not owners:
            del self._tiers[priority]
        return None


class Blocked:
    """The needs that are not worth a try until something is gained; as columns too, for there may be very many."""

    def __init__(self, line: "Line") -> None:
        self._line = line
        self._kinds: list[Kind] = []
        self._kept_out: list[Kind] = []  # those blocked as RESERVED, and some that were
        self._wanted = np.zeros((4, 16))
        self._order = np.zeros(16)
        self._count = 0

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, need: Need) -> bool:
        return self._line.block_of(need) is not None

    def add(self, kind: Kind, why: Block, upto: int = 0) -> None:
        """Try no job of *kind* any more; if room is kept from it, none up to that priority."""
        if kind.row < 0:
            kind.row = len(self._kinds)
            self._kinds.append(kind)
            if kind.row == self._wanted.shape[1]:
                self._wanted = np.pad(self._wanted, ((0, 0), (0, kind.row)))
                self._order = np.pad(self._order, (0, kind.row))
            need = kind.need
            self._wanted[:, kind.row] = need.ucpus, need.memory, need.disk, need.gpus
            self._count += 1
            self._order[kind.row] = self._count - max(group.priority for group in kind.groups) * _PRIORITY_WEIGHT
        if why is Block.RESERVED and kind.block is not why:
            self._kept_out.append(kind)
        kind.block, kind.upto = why, upto
        self._line.shelve(kind)

    def clear(self) -> None:
        """Try all again."""
        for kind in self._kinds:
            kind.row, kind.block = -1, None
            self._line.shelve(kind)
        self._kinds.clear()
        self._kept_out.clear()

    def clear_reserved(self) -> bool:
        """Try again what was kept out of reserved room; return whether there is such."""
        kept_out = [kind for kind in self._kept_out if kind.block is Block.RESERVED]
        self._kept_out.clear()
        for kind in kept_out:
            self._free(kind)
        return bool(kept_out)

    def gained(self, free: Floats, limit: int) -> None:
        """Try again what may fit where something was gained.

        Args:
            free: a row for each node that has more now: its free CPUs, memory, disk and GPUs.
            limit: about so many needs at most, those of the highest priority that were not tried for longest, and the
                first of each owner: what is tried does not grow with the queue, and all have their turn.
        """
        count = len(self._kinds)
        may_fit = np.zeros(count, dtype=np.bool_)
        for room in _largest(free):
            may_fit |= (self._wanted[:, :count] <= room[:, None]).all(axis=0)
        rows = np.flatnonzero(may_fit)
        if rows.size > limit:
            rows = rows[np.argpartition(self._order[rows], limit)[:limit]]
            firsts = self._line.full.firsts()
        else:
            firsts = []
        for kind in [*(self._kinds[int(row)] for row in rows), *(group.kind for group in firsts)]:
            if kind.row >= 0:
                self._free(kind)

    def remove(self, kind: Kind) -> None:
        """Forget a need that nobody has any more."""
        if kind.row >= 0:
            last = self._kinds.pop()
            if last is not kind:
                self._kinds[kind.row] = last
                self._wanted[:, kind.row] = self._wanted[:, last.row]
                self._order[kind.row] = self._order[last.row]
                last.row = kind.row
            kind.row, kind.block = -1, None

    def _free(self, kind: Kind) -> None:
        self.remove(kind)
        self._line.shelve(kind)


class Line:
    """Cost per decision does not grow with the queue: what does not fit is passed over as one.

    Attributes:
        ready: groups that are worth a try.
        full: groups that fit nowhere at present: one of them is at the head of the queue.
        blocked: the needs of those that are not worth a try.
    """

    def __init__(self) -> None:
        self.ready = Shelf(0)
        self.full = Shelf(1)
        self.blocked = Blocked(self)
        self._kinds: dict[Need, Kind] = {}
        self._groups: dict[tuple[int, str, Need], Group] = {}
        self._group_of: dict[str, Group] = {}
        self._over_quota: dict[str, list[Group]] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._group_of

    def add(self, job: Job, need: Need) -> None:
        """Put *job* into the line if it is not there."""
        if job.id in self._group_of:
            return
        key = (job.spec.priority, job.owner.id, need)
        group = self._groups.get(key)
        if group is None:
            kind = self._kinds.setdefault(need, Kind(need))
            group = self._groups[key] = Group(kind, job.owner.id, job.spec.priority)
            kind.groups.append(group)
        self._group_of[job.id] = group
        place = (job.created_at.timestamp(), job.id)
        heapq.heappush(group.places, place)
        if group.head == place:
            self._shelve(group)

    def discard(self, job_id: str) -> None:
        """Take a job out, if it is there. Its place in the heap is passed over when it comes up."""
        group = self._group_of.pop(job_id, None)
        if group is None or group.head[1] != job_id:
            return
        while group.places and self._group_of.get(group.head[1]) is not group:
            heapq.heappop(group.places)
        if group.places:
            self._shelve(group)
        else:
            self._drop(group)

    def group_of(self, job_id: str) -> Group | None:
        """Return the group of a job that waits."""
        return self._group_of.get(job_id)

    def block_of(self, need: Need) -> Block | None:
        """Return why jobs with *need* are not worth a try; None if they are, or if there are none."""
        kind = self._kinds.get(need)
        return kind.block if kind is not None else None

    def over_quota(self, group: Group) -> None:
        """Try no job of *group* until its owner holds less."""
        if not group.is_over_quota:
            group.is_over_quota = True
            self._over_quota.setdefault(group.owner, []).append(group)
            self._shelve(group)

    def within_quota(self, owner: str) -> None:
        """Try the jobs of *owner* again: less is held, or more is allowed."""
        for group in self._over_quota.pop(owner, ()):
            group.is_over_quota = False
            if group.places:
                self._shelve(group)

    def waiting(self) -> Iterator[tuple[str, int, Place]]:
        """Yield the owner, the priority and the place of every job, in no order: for who asks where a job stands."""
        for group in self._groups.values():
            for place in group.places:
                if self._group_of.get(place[1]) is group:
                    yield group.owner, group.priority, place

    def shelve(self, kind: Kind) -> None:
        """Put the groups of *kind* where they belong now."""
        for group in kind.groups:
            self._shelve(group)

    def _shelve(self, group: Group) -> None:
        block = group.kind.block
        if group.is_over_quota:
            group.shelf = None
        elif block is None or (block is Block.RESERVED and group.priority > group.kind.upto):
            group.shelf = self.ready
        else:
            group.shelf = self.full if block is Block.FULL else None
        if group.shelf is not None:
            group.shelf.put(group)

    def _drop(self, group: Group) -> None:
        kind = group.kind
        group.shelf = None
        del self._groups[group.priority, group.owner, kind.need]
        kind.groups.remove(group)
        if group.is_over_quota:
            self._over_quota[group.owner].remove(group)
        if not kind.groups:
            self.blocked.remove(kind)
            del self._kinds[kind.need]


def _largest(free: Floats) -> Floats:
    """Return the rows of *free* than which no other has as much of everything: what fits anywhere fits on one of them.

    Of very many, the largest of each instead: what does not fit there fits nowhere either.
    """
    free = np.unique(free, axis=0)
    if len(free) > _COMPARED_MAX:
        return free.max(axis=0, keepdims=True)
    at_least = (free[:, None, :] <= free[None, :, :]).all(axis=2)
    return free[at_least.sum(axis=1) == 1]  # each is as large as itself
