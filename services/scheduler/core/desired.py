"""What should be on a node: the answer to its heartbeat."""

from services.scheduler.core import crew, gang_wiring, mapping, service, sharing
from services.scheduler.core.fleet.node import Key, Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.lifecycle import pinned_image
from services.scheduler.core.limits import Now
from services.scheduler.core.nodes import refusal
from services.scheduler.core.watch import stop_reason
from shared.fleet import PROTOCOL, Assignment, DesiredState, HeldAttempt, Order
from shared.job import Job
from shared.states import AttemptState, EndReason, JobState


def desired_state(state: State, node_id: str, epoch: int, now: Now, session: str | None = None) -> DesiredState:
    """Return what the node is to start, keep, stop and forget, from what is believed, which is all recorded.

    A job that is not known has ended, for every active job is known: its attempt is forgotten. An agent whose *session*
    was replaced by another's is asked once more before it is told to end, for this heartbeat of it may be an old one.
    """
    node = state.nodes[node_id]
    size = state.fleet_size
    lease_s = state.limits.lease_for(size)
    node.lease_s = max(node.lease_s, lease_s)  # an answer may be lost, and the node keep the lease before
    if node.beat is not None and session in node.former and session != node.beat.session:
        is_there = node.former[session] > 1
        return DesiredState(epoch=epoch, lease_s=lease_s, protocol=PROTOCOL, evicted=is_there, more=not is_there)
    assignments, more = _assignments(state, node, now)
    assignments = _with_items(state, assignments)
    record = state.roster.record(node_id)
    return DesiredState(
        epoch=epoch,
        lease_s=lease_s,
        interval_s=state.limits.interval_for(size),
        assignments=assignments,
        more=more,
        protocol=PROTOCOL,
        refused=refusal(node.beat.protocol) if node.beat else "",
        prefetches=record.prefetches if record else (),
    )


def _assignments(state: State, node: Node, now: Now) -> tuple[tuple[Assignment, ...], bool]:
    held = {(a.job_id, a.attempt): a for a in node.beat.attempts} if node.beat else {}
    found = [_of_held(state, node, key, held[key], now) for key in sorted(held)]
    room = state.limits.answer_bytes_max
    for job_id in node.jobs:
        tracked = state.jobs[job_id]
        key = (job_id, tracked.job.attempt)
        if key in held:
            continue
        if reason := stop_reason(tracked, node, now, state.limits):
            found.append(_stop(state, tracked, reason))
        elif tracked.job.state is JobState.PLACED and key not in node.accepted:
            if gang_wiring.is_withheld(state, tracked.job):
                continue
            start = Assignment(job_id=job_id, attempt=tracked.job.attempt, action="start", order=_order(state, tracked))
            room -= len(start.to_bytes())
            if room < 0 and any(a.action == "start" for a in found):
                return tuple(found), True
            found.append(start)
    return tuple(found), False


def _with_items(state: State, assignments: tuple[Assignment, ...]) -> tuple[Assignment, ...]:
    """Return *assignments* with what workers are to have, as far as there is room: the smallest hands first."""
    room = state.limits.items_answer_bytes_max
    found: dict[int, Assignment] = {}
    workers: list[tuple[int, int, sharing.Given]] = []
    for index, one in enumerate(assignments):
        tracked = state.jobs.get(one.job_id) if one.action in ("start", "keep") else None
        place = tracked.job.member_of if tracked is not None and mapping.is_worker(tracked.job) else None
        if place is not None:
            given = sharing.given(one.job_id, state.books.get(place.gang_id))
            workers.append((given.size, index, given))
    for size, index, given in sorted(workers, key=lambda one: one[:2]):
        room -= size
        items = given.items if room >= 0 else None
        found[index] = assignments[index].model_copy(update={"items": items, "close": given.close})
    return tuple(found.get(index, one) for index, one in enumerate(assignments))


def _of_held(state: State, node: Node, key: Key, held: HeldAttempt, now: Now) -> Assignment:
    job_id, attempt = key
    if held.seq > state.position:  # ordered by another scheduler a moment ago: what it wrote is still to be read
        return Assignment(job_id=job_id, attempt=attempt, action="keep")
    tracked = state.jobs.get(job_id)
    if tracked is None or job_id not in node.jobs or tracked.job.attempt != attempt:
        return Assignment(job_id=job_id, attempt=attempt, action="forget")
    reason = stop_reason(tracked, node, now, state.limits)
    # The program has just ended, and the report of it is on its way: to stop it now would drop what it left.
    is_ahead = held.state == AttemptState.FINISHING and tracked.job.state is not JobState.FINISHING
    if reason is None or is_ahead:
        return Assignment(job_id=job_id, attempt=attempt, action="keep")
    return _stop(state, tracked, reason)


def _stop(state: State, tracked: Tracked, reason: EndReason) -> Assignment:
    parent, job = _parent(state, tracked), tracked.job
    stop = Assignment(job_id=job.id, attempt=job.attempt, action="stop", reason=reason)
    grace_s = service.grace_s(parent.spec, state.limits) if parent is not None else None
    return stop if grace_s is None else stop.model_copy(update={"grace_s": grace_s})


def _parent(state: State, tracked: Tracked) -> Job | None:
    """Return the map job or service that a job is a member of, if it is."""
    place = tracked.job.member_of
    parent = state.jobs.get(place.gang_id) if place is not None else None
    return parent.job if parent is not None and crew.is_parent(parent.job) else None


def _order(state: State, tracked: Tracked) -> Order:
    job, parent = tracked.job, _parent(state, tracked)
    return Order(
        job_id=job.id,
        owner_id=job.owner.id,
        attempt=job.attempt,
        spec=job.spec,
        gpus=job.attempts[-1].gpus,
        seq=tracked.seq,
        image_digest=pinned_image(job),
        parent=parent.id if parent is not None else None,
        map=sharing.for_worker(parent.spec) if parent is not None else None,
        service=parent.spec.service if parent is not None else None,
        wiring=gang_wiring.wiring(state, job),
    )
