"""What should be on a node: the answer to its heartbeat."""

from services.scheduler.core.fleet.node import Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.lifecycle import must_stop, pinned_image
from services.scheduler.core.limits import Now
from shared.fleet import Assignment, DesiredState, Order
from shared.states import JobState


def desired_state(state: State, node_id: str, epoch: int, now: Now) -> DesiredState:
    """Return what the node is to start, keep, stop and forget, from what is believed, which is all recorded.

    A job that is not known has ended, for every active job is known: its attempt is forgotten.
    """
    node = state.nodes[node_id]
    size = state.fleet_size
    assignments, more = _assignments(state, node, now)
    return DesiredState(
        epoch=epoch,
        lease_s=state.limits.lease_for(size),
        interval_s=state.limits.interval_for(size),
        assignments=assignments,
        more=more,
    )


def _assignments(state: State, node: Node, now: Now) -> tuple[tuple[Assignment, ...], bool]:
    held = {(a.job_id, a.attempt) for a in node.beat.attempts} if node.beat else set()
    found = [_of_held(state, node, job_id, attempt, now) for job_id, attempt in sorted(held)]
    room = state.limits.answer_bytes_max
    for job_id in node.jobs:
        tracked = state.jobs[job_id]
        key = (job_id, tracked.job.attempt)
        if key in held:
            continue
        if must_stop(tracked.job, now.at):
            found.append(Assignment(job_id=job_id, attempt=tracked.job.attempt, action="stop"))
        elif tracked.job.state is JobState.PLACED and key not in node.accepted:
            start = Assignment(job_id=job_id, attempt=tracked.job.attempt, action="start", order=_order(tracked))
            room -= len(start.to_bytes())
            if room < 0 and any(a.action == "start" for a in found):
                return tuple(found), True
            found.append(start)
    return tuple(found), False


def _of_held(state: State, node: Node, job_id: str, attempt: int, now: Now) -> Assignment:
    tracked = state.jobs.get(job_id)
    if tracked is None or job_id not in node.jobs or tracked.job.attempt != attempt:
        return Assignment(job_id=job_id, attempt=attempt, action="forget")
    action = "stop" if must_stop(tracked.job, now.at) else "keep"
    return Assignment(job_id=job_id, attempt=attempt, action=action)


def _order(tracked: Tracked) -> Order:
    job = tracked.job
    return Order(
        job_id=job.id,
        owner_id=job.owner.id,
        attempt=job.attempt,
        spec=job.spec,
        gpus=job.attempts[-1].gpus,
        seq=tracked.seq,
        image_digest=pinned_image(job),
    )
