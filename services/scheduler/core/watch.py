"""What a node's heartbeats, or its silence, say about the attempts on it. Returns what follows; changes no job."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.core import clocks
from services.scheduler.core.fleet.node import Delivered, Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.lifecycle import HOLDING, Event, Lost, Remarked
from services.scheduler.core.limits import Limits, Now
from shared.fleet import Heartbeat
from shared.states import ATTEMPT_TERMINAL, AttemptState, EndReason, JobState, NodeCondition

Follows = Iterator[tuple[Tracked, Event]]


@dataclass(frozen=True, slots=True)
class Before:
    """A node as it was before a heartbeat of it was taken in."""

    boot_id: str | None
    seen: float
    was_lost: bool


def before(state: State, node_id: str) -> Before:
    """Return what a heartbeat of the node is about to overwrite."""
    node = state.nodes.get(node_id)
    if node is None or node.beat is None:
        return Before(None, 0.0, was_lost=False)
    return Before(node.beat.boot_id, node.seen, node.is_lost)


def heard(state: State, node: Node, was: Before, beat: Heartbeat, now: Now) -> Follows:
    """Yield what follows from a heartbeat of *node*, but for attempts that it should hold and does not."""
    if was.boot_id is not None and was.boot_id != beat.boot_id:
        node.died = was.seen
        yield from _rebooted(state, node, beat, now)
    elif was.was_lost:
        for job_id in node.jobs:
            yield state.jobs[job_id], Remarked(f"node {node.info.name} is heard again")
    yield from _undelivered(state, node, beat, now)


def silent(state: State, now: Now) -> Follows:
    """Yield what becomes of the attempts on nodes that are lost: given up, or waited for as their jobs want it."""
    if now.mono < state.quiet_until:
        return  # it may have been us who could not hear
    lease_s = state.limits.lease_for(state.fleet_size)
    for node in state.nodes.values():
        if not node.is_lost:
            continue
        silent_s = _silent_for(state, node, lease_s, now)
        heard_at = now.at - timedelta(seconds=now.mono - node.seen)
        for job_id in node.jobs:
            tracked = state.jobs[job_id]
            spec = tracked.job.spec
            fenced_s = fence_s(node, lease_s, state.limits) if spec.exclusive else lease_s
            is_fenced = now.mono - node.seen > fenced_s
            wait_s = max(fenced_s, spec.replace_after or 0.0)
            if clocks.is_unwanted(tracked.job, now.at):
                is_kept = spec.exclusive and tracked.job.member_of is not None and not is_fenced  # its gang goes on
            else:
                is_kept = not (silent_s > wait_s and is_fenced)
            if is_kept:
                text = f"node {node.info.name} is silent; the job stays there until it has been so for {wait_s:g} s"
                yield tracked, Remarked(text)
            elif silent_s > lease_s:
                message = f"node {node.info.name} was not heard for {silent_s:.0f} s"
                yield tracked, Lost(tracked.job.attempt, EndReason.NODE_LOST, message, heard_at=heard_at)


def disobeyed(state: State, now: Now) -> Follows:
    """Yield the attempts that were to be stopped long ago, on nodes that are heard and do not do it."""
    for job_id in sorted(state.stopping):
        tracked = state.jobs.get(job_id)
        if tracked is None or tracked.job.state not in HOLDING:
            state.stopping.discard(job_id)
            continue
        node = state.nodes[tracked.job.attempts[-1].node]
        heard_s = heard_for(node, now)
        stop = clocks.current_stop(tracked.job, now.at, heard_s, state.limits)
        if stop is None or node.is_lost or not clocks.is_disobeyed(stop, now.at, heard_s):
            continue
        why = clocks.say(stop.reason, tracked.job.spec.timeouts, state.limits)
        message = f"{why}; node {node.info.name} was told to stop it and did not in {stop.obey_s:g} s"
        is_running = tracked.job.state not in (JobState.PLACED, JobState.FINISHING)
        yield tracked, Lost(tracked.job.attempt, stop.reason, message, may_run=is_running)


def stop_reason(tracked: Tracked, node: Node, now: Now, limits: Limits) -> EndReason | None:
    """Return why the current attempt of a job on *node* is to be stopped, or None if it is to go on.

    Of a program that has ended there is only the storing of what it left to be stopped.
    """
    stop = clocks.current_stop(tracked.job, now.at, heard_for(node, now), limits)
    if stop is None:
        is_moved = node.empty_from is not None and now.at >= node.empty_from
        return EndReason.NODE_DRAINED if is_moved and tracked.job.state is not JobState.FINISHING else None
    if tracked.job.state is JobState.FINISHING:
        return EndReason.FINISHING_TIMEOUT
    return stop.reason


def heard_for(node: Node, now: Now) -> float:
    """Return the seconds for which *node* has been heard without a gap."""
    return now.mono - node.back if node.beat is not None else 0.0


def fence_s(node: Node, lease_s: float, limits: Limits) -> float:
    """Return the seconds of silence of *node* after which it has certainly ended what is exclusive by itself.

    It does so some time into the lease that it was granted last, which is one of this leader's or of one before.
    """
    granted_s = node.lease_s or max(lease_s, limits.fence_unknown_s)
    return max(granted_s, granted_s * limits.fence_fraction + limits.fence_kill_s)


def _silent_for(state: State, node: Node, lease_s: float, now: Now) -> float:
    """Return the seconds for which a lost node has been silent, also before this scheduler led."""
    silent_s = now.mono - node.seen
    record = state.roster.record(node.id)
    if node.beat is not None or record is None or record.condition is not NodeCondition.LOST:
        return silent_s
    return max(silent_s, lease_s + (now.at - record.since).total_seconds())


def _rebooted(state: State, node: Node, beat: Heartbeat, now: Now) -> Follows:
    """Nothing runs on after a reboot. What had ended before is in the node's journal and comes yet."""
    held = {(a.job_id, a.attempt): a.state for a in beat.attempts}
    for job_id in node.jobs:
        tracked = state.jobs[job_id]
        key = (job_id, tracked.job.attempt)
        was_only_placed = tracked.job.state is JobState.PLACED and key not in node.accepted
        is_gone = key not in held and not was_only_placed
        if is_gone or held.get(key) == AttemptState.RUNNING:
            message = f"node {node.info.name} has rebooted"
            yield (
                tracked,
                Lost(tracked.job.attempt, EndReason.NODE_REBOOTED, message, heard_at=died_at(node, tracked, now)),
            )


def died_at(node: Node, tracked: Tracked, now: Now) -> datetime | None:
    """Return when *node* was last heard before the reboot that ended its attempt of a job; None: it never was."""
    if node.beat is None:
        return None
    placed_at = tracked.job.attempts[-1].placed_at if tracked.job.attempts else now.at
    died = None if node.died is None else now.at - timedelta(seconds=now.mono - node.died)
    if died is not None and died >= placed_at:
        return died
    return now.at - timedelta(seconds=now.mono - node.seen)  # its report has come before its first heartbeat


def _undelivered(state: State, node: Node, beat: Heartbeat, now: Now) -> Follows:
    """Yield attempts whose last report the node knows to be in the log, where nothing of it could be read.

    The log may be read with delay: the heartbeats count once all that was written when the first came has been read.
    """
    limits = state.limits
    said: dict[tuple[str, int], Delivered] = {}
    for held in beat.attempts:
        tracked = state.jobs.get(held.job_id)
        if not held.delivered or held.state not in ATTEMPT_TERMINAL or tracked is None:
            continue
        key = (held.job_id, held.attempt)
        if held.job_id not in node.jobs or tracked.job.attempt != held.attempt:
            continue
        one = node.delivered.get(key) or Delivered(mark=max(state.written, default=0), since=now.mono)
        said[key] = one = one.once_more(now.mono, has_read=state.position >= one.mark)
        if one.beats >= limits.delivered_beats and now.mono - one.since >= limits.delivered_s:
            message = f"node {node.info.name} has delivered its last report, and it could not be read"
            yield tracked, Lost(held.attempt, EndReason.REPORT_MISSING, message)
    node.delivered = said
