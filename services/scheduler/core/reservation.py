"""Room that is kept for the job at the head of the queue, so that smaller ones cannot keep it waiting for ever.

EASY backfill (Lifka, The ANL/IBM SP Scheduling System, 1995): the first job that does not fit gets a node and the time
at which it will fit there at the latest, by the run limits of what is there. A job behind it may use that node only if
it ends before that time, by its own limit, or needs no more than what will be left over. So that time never moves back.
It may be a day away, for limits are generous: once the job has been at the head for long enough, nothing that needs its
room goes there any more, however short it is.

There is one reservation at a time, for the first in the order of the queue that does not fit, or for one of those that
have waited for long. Once given it holds against all of the same or a lower priority until its job starts, also against
those whose turn it would be by fair share; a job of higher priority that does not fit takes it over.
"""

from dataclasses import dataclass

import numpy as np

from services.scheduler.core import clocks, gang_network
from services.scheduler.core.fleet.line import Reservation
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.limits import Now
from services.scheduler.core.need import Need
from services.scheduler.core.placement import Kept, Trial, suited
from shared.job import Job

_CANDIDATES = 32  # nodes that lack least, for which the time is worked out


@dataclass(frozen=True, slots=True)
class _Room:
    """When a node will have room, in seconds since 1970, and what will be left over then."""

    at_s: float
    cpus: float
    memory: float
    disk: float


def reserve(
    state: State, trial: Trial, tracked: Tracked, now: Now, since_s: float | None = None
) -> tuple[Reservation, Kept] | None:
    """Return a reservation on the node that will have room first, and what it keeps out; None if none ever will.

    Args:
        state: what is believed.
        trial: what is free, with what this turn has taken.
        tracked: the job that does not fit.
        now: the time.
        since_s: since when it is at the head, in seconds since 1970, if not just since now.
    """
    since_s = now.at.timestamp() if since_s is None else since_s
    need = tracked.need.hardest()
    after = now.mono - state.fresh_s
    if tracked.need.connected and not gang_network.could_hold(state.columns, tracked.need, after, state.limits):
        return None
    rows = np.flatnonzero(suited(state.columns, need, now.mono - state.fresh_s, state.limits))
    nearest = rows[np.argsort(trial.lacking(need)[rows], kind="stable")][:_CANDIDATES]
    nodes = [node for slot in nearest if (node := state.columns.nodes[int(slot)]) is not None]
    taken = trial.taken_from(node.slot for node in nodes)
    found: tuple[_Room, Node] | None = None
    for node in nodes:
        room = _room(state, trial, node, need, taken[node.slot], now)
        if room is not None and (found is None or room.at_s < found[0].at_s):
            found = room, node
    return _kept(state, tracked, found[1], found[0], since_s, now) if found is not None else None


def renew(state: State, trial: Trial, tracked: Tracked, old: Reservation, now: Now) -> tuple[Reservation, Kept] | None:
    """Return the reservation as it is now and what it keeps out; on another node if its own will not do any more."""
    node, need = state.nodes.get(old.node), tracked.need.hardest()
    if node is not None and suited(state.columns, need, now.mono - state.fresh_s, state.limits)[node.slot]:
        room = _room(state, trial, node, need, trial.taken_from([node.slot])[node.slot], now)
        if room is not None:
            return _kept(state, tracked, node, room, old.since_s, now)
    return reserve(state, trial, tracked, now, old.since_s)


def ends_by_s(job: Job) -> float:
    """Return when the current attempt of *job* will have reached its limits, in seconds since 1970."""
    attempt, timeouts = job.attempts[-1], job.spec.timeouts
    if attempt.running_at is not None:
        ends_s = attempt.running_at.timestamp() + timeouts.run
    else:
        began = attempt.starting_at or attempt.placed_at
        ends_s = began.timestamp() + timeouts.pull + timeouts.stage_in + timeouts.run
    return min(ends_s, clocks.overdue_at(job).timestamp())


def _kept(
    state: State, tracked: Tracked, node: Node, room: _Room, since_s: float, now: Now
) -> tuple[Reservation, Kept]:
    now_s, job = now.at.timestamp(), tracked.job
    waits_long = now_s - since_s >= state.limits.reserve_outright_s
    within_s = -np.inf if waits_long else room.at_s - now_s
    kept = Kept(node.slot, within_s, room.cpus, room.memory, room.disk, with_gpus=not tracked.need.hardest().gpus)
    return Reservation(job.id, job.spec.priority, node.id, since_s, room.at_s), kept


def _room(state: State, trial: Trial, node: Node, need: Need, taken: list[Need], now: Now) -> _Room | None:
    """Return when *need* will fit on *node* as what is there ends; None if not even when all of it has."""
    now_s = now.at.timestamp()
    cpus, memory, disk, gpus = trial.free(node.slot, need)
    ends = [(now_s, "", need._replace(ucpus=0, memory=0, disk=0, gpus=0), 0)]
    for job_id in node.jobs:
        there = state.jobs[job_id]
        ends_s = max(now_s, ends_by_s(there.job))
        ends.append((ends_s, job_id, there.need, _gpus_back(node, there, need) if need.gpus else 0))
    ends += [(now_s + one.lasts_s, "", one, one.gpus) for one in taken]
    for at_s, _, gone, back in sorted(ends, key=lambda end: end[:2]):
        cpus, memory, disk, gpus = cpus + gone.ucpus, memory + gone.memory, disk + gone.disk, gpus + back
        if cpus >= need.ucpus and memory >= need.memory and disk >= need.disk and gpus >= need.gpus:
            return _Room(at_s, cpus - need.ucpus, memory - need.memory, disk - need.disk)
    return None


def _gpus_back(node: Node, gone: Tracked, need: Need) -> int:
    if node.beat is None:
        return 0
    held = set(gone.job.attempts[-1].gpus)
    return sum(gpu.uuid in held and gpu.memory_total >= need.gpu_memory for gpu in node.beat.capacity.gpus)
