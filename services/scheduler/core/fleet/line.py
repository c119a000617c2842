"""The queue: jobs that may be placed now, grouped by what they need, best first in each group."""

import heapq
from collections.abc import Iterator
from datetime import datetime

from services.scheduler.core.need import Need
from shared.job import Job

#: Higher priority first, then who came first; the id decides between equals.
Place = tuple[int, datetime, str]


class Line:
    """Cost per decision does not grow with the queue: a group that does not fit is passed over as one."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Need, Place]] = {}
        self._groups: dict[Need, list[Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._places

    def add(self, job: Job, need: Need) -> bool:
        """Put *job* into the line if it is not there, and return whether its group is new."""
        if job.id in self._places:
            return False
        place = (-job.spec.priority, job.created_at, job.id)
        self._places[job.id] = need, place
        group = self._groups.setdefault(need, [])
        heapq.heappush(group, place)
        return len(group) == 1

    def discard(self, job_id: str) -> None:
        """Take a job out, if it is there. Its place in the heap is passed over when it comes up."""
        found = self._places.pop(job_id, None)
        if found is not None:
            need, place = found
            group = self._groups[need]
            if group[0] == place:
                heapq.heappop(group)
            self._tidy(need, group)

    def head(self, need: Need) -> Place | None:
        """Return the first place of a group, or None if nobody waits there."""
        group = self._groups.get(need)
        if group is None:
            return None
        self._tidy(need, group)
        return group[0] if group else None

    def groups(self) -> list[Need]:
        """Return what the waiting jobs need, each once."""
        return list(self._groups)

    def members(self, need: Need) -> Iterator[str]:
        """Yield the jobs of a group, roughly the first ones first."""
        for place in self._groups.get(need, ()):
            if self._is_live(need, place):
                yield place[2]

    def _is_live(self, need: Need, place: Place) -> bool:
        return self._places.get(place[2]) == (need, place)

    def _tidy(self, need: Need, group: list[Place]) -> None:
        while group and not self._is_live(need, group[0]):
            heapq.heappop(group)
        if not group:
            self._groups.pop(need, None)
