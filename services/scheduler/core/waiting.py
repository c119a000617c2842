"""Why a job in the line is not placed, as its owner is told."""

from services.scheduler.core import gang_network
from services.scheduler.core.fleet.line import Block, Reservation
from services.scheduler.core.fleet.share import Ledger
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.gang import member_specs
from services.scheduler.core.limits import Now
from services.scheduler.core.need import Need
from services.scheduler.core.placement import Trial, fits_somewhere
from services.scheduler.core.refusal import Refusal, refuse
from shared.job import PendingReason
from shared.states import PendingCode

#: What a little patience does not mend. What does not fit may fit in a moment, when something ends.
_LASTING = frozenset(
    {
        PendingCode.QUOTA, PendingCode.NODE_CORDONED, PendingCode.NODE_NAME, PendingCode.CLUSTER, PendingCode.ARCH,
        PendingCode.TAGS, PendingCode.RUNTIME, PendingCode.NETWORK,
    }
)  # fmt: skip


def is_lasting(found: Refusal) -> bool:
    """Return whether a job is told at once that it waits for *found*."""
    return not found.is_possible or all(reason.code in _LASTING for reason in found.reasons)


def refusal(state: State, tracked: Tracked, now: Now, known: dict[Need, Refusal]) -> Refusal:
    """Return what keeps a waiting job from being placed: its owner's quota, the nodes, reserved room, or its turn.

    *known* remembers what the nodes lack, for all who need the same.
    """
    over = Ledger(state.shares, now.at.timestamp()).over_quota(tracked.job.owner.id, tracked.need)
    if over is not None:
        return _one(PendingCode.QUOTA, 0, over)
    block = state.line.block_of(tracked.need)
    kept = state.reservation
    if block is Block.RESERVED and kept is not None and kept.job_id != tracked.job.id:
        return _one(PendingCode.RESERVED, 1, _reserved(state, kept, now))
    if block is not None:
        found = _of_nodes(state, tracked.need, now, known)
        if found.reasons:
            return found
        if tracked.need.connected and (reason := _not_connected(state, tracked, now)) is not None:
            return Refusal((reason,), is_possible=True)
        if tracked.need.members:
            return _one(PendingCode.GANG, 0, f"its {tracked.need.jobs} members fit one by one, and not all at once")
    return _one(PendingCode.BEHIND_OTHERS, 0, f"a node would do; {len(state.line)} jobs wait and others are before it")


def _of_nodes(state: State, need: Need, now: Now, known: dict[Need, Refusal]) -> Refusal:
    """Return what the nodes lack; for a gang, for a member that fits nowhere: best for one that never will."""
    found = known.get(need)
    if found is None:
        after, limits = now.mono - state.fresh_s, state.limits
        lacking = [one for one in dict.fromkeys(need.members) if not fits_somewhere(state.columns, one, after, limits)]
        told = [refuse(state.columns, one, after, limits) for one in (lacking if need.members else (need,))]
        found = min(told, key=lambda refusal: refusal.is_possible, default=Refusal((), is_possible=True))
        known[need] = found
    return found


def _not_connected(state: State, tracked: Tracked, now: Now) -> PendingReason | None:
    trial = Trial(state.columns, now.mono - state.fresh_s, state.limits)
    return gang_network.not_connected(state.columns, trial, tracked.need, member_specs(tracked.job.spec))


def _reserved(state: State, kept: Reservation, now: Now) -> str:
    node = state.nodes.get(kept.node)
    name = node.info.name if node is not None else kept.node
    text = f"it fits on node {name} only, whose room is kept for job {kept.job_id}, which is before it"
    wait_s = kept.free_by_s - now.at.timestamp()
    if now.at.timestamp() - kept.since_s >= state.limits.reserve_outright_s or wait_s <= 0:
        return text
    return f"{text}; a job whose limits make it end within {wait_s / 60:.0f} min could start now"


def _one(code: PendingCode, nodes: int, message: str) -> Refusal:
    return Refusal((PendingReason(code=code, nodes=nodes, message=message),), is_possible=True)
