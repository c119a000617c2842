"""Room that is kept for the job at the head of the queue, so that smaller ones cannot keep it waiting for ever.

EASY backfill (Lifka, The ANL/IBM SP Scheduling System, 1995): the first job that does not fit gets a node and the time
at which it will fit there at the latest, by the run limits of what is there. A job behind it may use that node only if
it ends before that time, by its own limit, or needs no more than what will be left over. So that time never moves back.
It may be a day away, for limits are generous: once the job has been at the head for long enough, nothing that needs its
room goes there any more, however short it is.

There is one reservation at a time. Once given it holds against all of the same or a lower priority until its job
starts, whoever's turn it would be by fair share; a job of higher priority that does not fit takes it over.
"""

from dataclasses import dataclass, replace

import numpy as np

from services.scheduler.core import clocks
from services.scheduler.core.fleet.line import Reservation
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.need import Need
from services.scheduler.core.placement import Kept, suited
from shared.job import Job

_CANDIDATES = 32  # nodes that lack least, for which the time is worked out


@dataclass(frozen=True, slots=True)
class _Room:
    """When a node will have room, in seconds since 1970, and what will be left over then."""

    at_s: float
    cpus: float
    memory: float
    disk: float


def reserve(state: State, tracked: Tracked, now: Now, since_s: float | None = None) -> Reservation | None:
    """Return a reservation for a job on the node that will have room first, or None if none ever will.

    Args:
        state: what is believed.
        tracked: the job.
        now: the time.
        since_s: since when it is at the head, in seconds since 1970, if not just since now.
    """
    found: tuple[float, int] | None = None
    for slot in _candidates(state, tracked.need, now):
        node = state.columns.nodes[slot]
        room = _room(state, node, tracked.need, now) if node is not None else None
        if room is not None and (found is None or room.at_s < found[0]):
            found = room.at_s, slot
    if found is None:
        return None
    node = state.columns.nodes[found[1]]
    assert node is not None  # noqa: S101 - it was a candidate
    since_s = now.at.timestamp() if since_s is None else since_s
    return Reservation(tracked.job.id, tracked.job.spec.priority, node.id, since_s, found[0])


def renew(state: State, tracked: Tracked, old: Reservation, now: Now) -> tuple[Reservation, Kept] | None:
    """Return the reservation as it is now and what it keeps out; on another node if its own will not do any more."""
    node = state.nodes.get(old.node)
    usable = node is not None and suited(state.columns, tracked.need, now.mono - state.fresh_s, state.limits)[node.slot]
    room = _room(state, node, tracked.need, now) if node is not None and usable else None
    if node is None or room is None:
        new = reserve(state, tracked, now, old.since_s)
        if new is None:
            return None
        node = state.nodes[new.node]
        room = _room(state, node, tracked.need, now)
        if room is None:
            return None
    now_s = now.at.timestamp()
    waits_long = now_s - old.since_s >= state.limits.reserve_outright_s
    within_s = -np.inf if waits_long else room.at_s - now_s
    kept = Kept(node.slot, within_s, room.cpus, room.memory, room.disk, with_gpus=not tracked.need.gpus)
    return replace(old, node=node.id, free_by_s=room.at_s), kept


def ends_by_s(job: Job, limits: Limits) -> float:
    """Return when the current attempt of *job* will have ended at the latest, in seconds since 1970."""
    return min((stop.at.timestamp() for stop in clocks.stops(job, limits)), default=0.0)


def _candidates(state: State, need: Need, now: Now) -> list[int]:
    """Return the rows that would do if they were empty, those that lack least first; not more than are worth it."""
    columns = state.columns
    rows = np.flatnonzero(suited(columns, need, now.mono - state.fresh_s, state.limits))
    lacking = np.zeros(rows.size)
    for wanted, free, total in (
        (need.ucpus, columns.cpus, columns.total_cpus),
        (need.memory, columns.memory, columns.total_memory),
        (need.disk, columns.disk, columns.total_disk),
    ):
        lacking += np.maximum(0, wanted - free[rows]) / np.maximum(1, total[rows])
    return [int(slot) for slot in rows[np.argsort(lacking, kind="stable")][:_CANDIDATES]]


def _room(state: State, node: Node, need: Need, now: Now) -> _Room | None:
    """Return when *need* will fit on *node* as what is there ends; None if not even when all of it has."""
    columns, slot, now_s = state.columns, node.slot, now.at.timestamp()
    cpus, memory, disk = (float(free[slot]) for free in (columns.cpus, columns.memory, columns.disk))
    gpus = int(columns.usable_gpus(need, state.limits, columns.gpu_memory, slot).sum()) if need.gpus else 0
    there = [state.jobs[job_id] for job_id in node.jobs]
    ends = sorted((max(now_s, ends_by_s(t.job, state.limits)), t.job.id) for t in there)
    at_s = now_s
    for ends_s, job_id in ((now_s, ""), *ends):
        if job_id:
            gone = state.jobs[job_id]
            at_s = ends_s
            cpus, memory, disk = cpus + gone.need.ucpus, memory + gone.need.memory, disk + gone.need.disk
            gpus += _gpus_back(node, gone, need) if need.gpus else 0
        if cpus >= need.ucpus and memory >= need.memory and disk >= need.disk and gpus >= need.gpus:
            return _Room(at_s, cpus - need.ucpus, memory - need.memory, disk - need.disk)
    return None


def _gpus_back(node: Node, gone: Tracked, need: Need) -> int:
    if node.beat is None:
        return 0
    held = set(gone.job.attempts[-1].gpus)
    return sum(gpu.uuid in held and gpu.memory_total >= need.gpu_memory for gpu in node.beat.capacity.gpus)
