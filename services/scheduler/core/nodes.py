"""What happens to one node's record. `step` says what follows an event; the tables say what is legal at all.

A condition is damped: the record tells people what to expect of a node, and a flapping one must not fill the log.
Whether a node gets work also depends on when it was really last heard, which is not damped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.core.limits import Limits
from shared.fleet import HISTORY_KEPT, PREFETCHES_MAX, PROTOCOL, NodeChange, NodeRecord, NodeWish, Prefetch, PrefetchEnd
from shared.states import EndReason, NodeCondition, NodeDuty

#: The only legal moves of a node's condition: condition -> event -> conditions that it may lead to.
CONDITION_MOVES: Mapping[NodeCondition, Mapping[str, frozenset[NodeCondition]]] = {
    NodeCondition.ONLINE: {
        "silent": frozenset({NodeCondition.SUSPECT}),
        "lost": frozenset({NodeCondition.LOST}),
        "empty": frozenset({NodeCondition.LEFT}),
    },
    NodeCondition.SUSPECT: {
        "heard": frozenset({NodeCondition.ONLINE}),
        "lost": frozenset({NodeCondition.LOST}),
        "empty": frozenset({NodeCondition.LEFT}),
    },
    NodeCondition.LOST: {
        "heard": frozenset({NodeCondition.ONLINE}),
        "empty": frozenset({NodeCondition.LEFT}),
    },
    NodeCondition.LEFT: {"heard": frozenset({NodeCondition.ONLINE})},
}

#: The same for its duty. "empty" is that nothing runs there any more, "trouble" that job after job was lost there.
DUTY_MOVES: Mapping[NodeDuty, Mapping[str, frozenset[NodeDuty]]] = {
    NodeDuty.ACTIVE: {
        "cordon": frozenset({NodeDuty.CORDONED}),
        "trouble": frozenset({NodeDuty.CORDONED}),
        "drain": frozenset({NodeDuty.DRAINING}),
        "leaving": frozenset({NodeDuty.DRAINING}),
    },
    NodeDuty.CORDONED: {
        "cordon": frozenset({NodeDuty.CORDONED}),
        "undrain": frozenset({NodeDuty.ACTIVE}),
        "drain": frozenset({NodeDuty.DRAINING}),
        "leaving": frozenset({NodeDuty.DRAINING}),
    },
    NodeDuty.DRAINING: {
        "cordon": frozenset({NodeDuty.CORDONED}),
        "undrain": frozenset({NodeDuty.ACTIVE}),
        "drain": frozenset({NodeDuty.DRAINING}),
        "empty": frozenset({NodeDuty.DRAINED}),
        "heard": frozenset({NodeDuty.ACTIVE}),  # it leaves by itself, and its agent was started again
    },
    NodeDuty.DRAINED: {
        "cordon": frozenset({NodeDuty.CORDONED}),
        "undrain": frozenset({NodeDuty.ACTIVE}),
        "drain": frozenset({NodeDuty.DRAINED}),  # it had left by itself, and is not to work when it is back
        "heard": frozenset({NodeDuty.ACTIVE}),  # back after it had left by itself
    },
}

#: Losses that speak against the node that they happened on. Silence and reboots have the condition; an upload that
#: failed is storage's trouble as often as the node's.
TROUBLES = frozenset(
    {
        EndReason.AGENT_LOST_CONTAINER,
        EndReason.REPORT_MISSING,
        EndReason.UNKILLABLE,
        EndReason.FINISHING_TIMEOUT,
        EndReason.RUNTIME_ERROR,
    }
)

#: Conditions in which a node is expected to be heard.
THERE = frozenset({NodeCondition.ONLINE, NodeCondition.SUSPECT})

_SCHEDULER = "scheduler"
_NODE = "node"  # who set the duty of a node that leaves by itself
_TROUBLED_KEPT = 20
_DRAIN_MAX_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat: what it says of the node, and how many came in a row without a longer gap."""

    name: str
    session: str
    boot_id: str
    steady: int
    leaving: bool = False
    problem: str = ""
    refused: str = ""
    prefetched: tuple[PrefetchEnd, ...] = ()


@dataclass(frozen=True, slots=True)
class Silent:
    """Not heard for longer than it should be."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Not heard for longer than its lease."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class Wished:
    """An admin wants something: `verb` is drain, undrain, cordon, forget or prefetch.

    `fence_s`: for how many seconds more something may run there that must never run twice.
    """

    verb: str
    wish: NodeWish
    fence_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Troubled:
    """Attempts of these jobs came to nothing there at the same moment, through no fault of the jobs.

    `may_cordon`: there are enough other nodes. If most have trouble, it is not the nodes.
    """

    jobs: tuple[str, ...]
    may_cordon: bool


@dataclass(frozen=True, slots=True)
class Emptied:
    """Nothing of ours is on it any more."""

    leaving: bool


@dataclass(frozen=True, slots=True)
class Clashed:
    """Another agent with the same identity was heard after a newer one had taken over."""

    session: str


Event = Heard | Silent | Gone | Wished | Troubled | Emptied | Clashed


def step(record: NodeRecord, event: Event, now: datetime, limits: Limits) -> NodeRecord | None:
    """Return the record after *event*, or None where it changes nothing."""
    if record.forgotten:
        return _join(record, event, now) if isinstance(event, Heard) else None
    match event:
        case Heard():
            after = _heard(record, event, now, limits)
        case Silent(silent_s):
            after = _silent(record, silent_s, now, limits)
        case Gone(silent_s):
            after = _lost(record, silent_s, now)
        case Wished(verb, wish, fence_s):
            after = _wished(record, verb, wish, fence_s, now)
        case Troubled():
            after = _troubled(record, event, now, limits)
        case Emptied(leaving):
            after = _emptied(record, now, leaving=leaving)
        case Clashed(session):
            reason = f"two agents had this identity; the one that was here first (session {session}) was told to end"
            after = _told(record, now, "evicted", reason)
    return None if after is record or after == record else after


def joined(node_id: str, heard: Heard, now: datetime) -> NodeRecord:
    """Return the record of a node that is heard for the first time."""
    return _join(NodeRecord(id=node_id, since=now), heard, now)


def is_open(record: NodeRecord) -> bool:
    """Return whether the node is to get new work, as a person or the scheduler has decided."""
    return record.duty is NodeDuty.ACTIVE


def is_fit(record: NodeRecord) -> bool:
    """Return whether the node can be trusted with new work."""
    return record.condition is NodeCondition.ONLINE and not record.refused and not record.forgotten


def empty_from(record: NodeRecord) -> datetime | None:
    """Return when what still runs on the node is to be stopped and placed elsewhere: a drain's deadline, or never."""
    return record.deadline if record.duty is NodeDuty.DRAINING else None


def left_by_itself(record: NodeRecord) -> bool:
    """Return whether the node is drained because its agent has said goodbye."""
    return record.by == _NODE


def refusal(protocol: int) -> str:
    """Return why an agent that speaks *protocol* gets nothing new, in words; empty when it is one of ours."""
    if abs(protocol - PROTOCOL) <= 1:
        return ""
    age = "old" if protocol < PROTOCOL else "new"
    return (
        f"This agent is too {age}: it speaks version {protocol} of the protocol, this scheduler {PROTOCOL}, and only "
        "neighbours understand each other. What runs goes on; nothing new comes until one of them is updated."
    )


# --- condition -----------------------------------------------------------------------------------------------------


def _join(record: NodeRecord, heard: Heard, now: datetime) -> NodeRecord:
    fresh = NodeRecord(
        id=record.id,
        name=heard.name,
        since=now,
        boot_id=heard.boot_id,
        session=heard.session,
        problem=heard.problem,
        history=record.history,
        input_seq=record.input_seq,
    )
    fresh = _refused(_told(fresh, now, "joined"), heard.refused, now)
    return _left_by_itself(fresh, now) if heard.leaving else fresh


def _heard(record: NodeRecord, heard: Heard, now: datetime, limits: Limits) -> NodeRecord:
    if heard.boot_id != record.boot_id and record.boot_id:
        record = _told(record, now, "rebooted")
    if (heard.name, heard.session, heard.boot_id) != (record.name, record.session, record.boot_id):
        facts = {"name": heard.name, "session": heard.session, "boot_id": heard.boot_id}
        record = record.model_copy(update=facts)
    record = _refused(record, heard.refused, now)
    record = _prefetched(_problem(record, heard.problem, now, limits), heard.prefetched, now)
    if heard.leaving:
        return _left_by_itself(record, now)
    return _stayed(_returned(record, heard.steady, now, limits), now)


def _returned(record: NodeRecord, steady: int, now: datetime, limits: Limits) -> NodeRecord:
    if record.condition is NodeCondition.ONLINE:
        return record
    wanted = limits.steady_beats if record.condition is NodeCondition.LOST else 1
    if steady < wanted or not (_is_calm(record, now, limits) or _is_held(record, now, limits)):
        return record
    return _moved(record, NodeCondition.ONLINE, now)


def _stayed(record: NodeRecord, now: datetime) -> NodeRecord:
    """Return to work a node that said goodbye and does not leave: its agent was started again."""
    if not left_by_itself(record) or "heard" not in DUTY_MOVES[record.duty] or record.condition not in THERE:
        return record
    return _on_duty(record, NodeDuty.ACTIVE, _NODE, "it is back", now)


def _is_held(record: NodeRecord, now: datetime, limits: Limits) -> bool:
    """Return whether the condition has lasted long enough to be changed."""
    return now - record.since >= timedelta(seconds=limits.condition_hold_s)


def _is_calm(record: NodeRecord, now: datetime, limits: Limits) -> bool:
    """Return whether the node has not come back lately already: only one that flaps is held back."""
    window = timedelta(seconds=limits.flap_window_s)
    return not any(change.what == "online" and now - change.at < window for change in record.history)


def _silent(record: NodeRecord, silent_s: float, now: datetime, limits: Limits) -> NodeRecord:
    if record.condition is not NodeCondition.ONLINE or not _is_held(record, now, limits):
        return record
    return _moved(record, NodeCondition.SUSPECT, now, f"not heard for {silent_s:.0f} s")


def _lost(record: NodeRecord, silent_s: float, now: datetime) -> NodeRecord:
    if record.condition not in THERE:
        return record
    return _moved(record, NodeCondition.LOST, now, f"not heard for {silent_s:.0f} s")


def _refused(record: NodeRecord, refused: str, now: datetime) -> NodeRecord:
    if refused == record.refused:
        return record
    record = record.model_copy(update={"refused": refused})
    return _told(record, now, "refused" if refused else "accepted", refused)


def _problem(record: NodeRecord, problem: str, now: datetime, limits: Limits) -> NodeRecord:
    """Note that something went wrong with the node or is well again: not each wording of it, nor each flicker."""
    if bool(problem) == bool(record.problem):
        return record
    told = [change.at for change in record.history if change.what in ("degraded", "well")]
    if told and now - told[-1] < timedelta(seconds=limits.condition_hold_s):
        return record
    record = record.model_copy(update={"problem": problem})
    return _told(record, now, "degraded" if problem else "well", problem)


def _moved(record: NodeRecord, condition: NodeCondition, now: datetime, reason: str = "") -> NodeRecord:
    record = record.model_copy(update={"condition": condition, "since": now})
    return _told(record, now, condition.value, reason)


# --- duty ----------------------------------------------------------------------------------------------------------


def _wished(record: NodeRecord, verb: str, wish: NodeWish, fence_s: float, now: datetime) -> NodeRecord:
    if verb == "prefetch":
        return _to_prefetch(record, wish, now)
    if verb == "forget":
        return _forgotten(record, wish, fence_s, now)
    if verb not in DUTY_MOVES[record.duty] or verb not in ("drain", "undrain", "cordon"):
        return record
    [duty] = DUTY_MOVES[record.duty][verb]
    if verb == "undrain":
        record = record.model_copy(update={"troubles": (), "troubled_jobs": ()})
    deadline = None
    if duty is NodeDuty.DRAINING and wish.deadline_s is not None:
        deadline = now + timedelta(seconds=min(max(0.0, wish.deadline_s), _DRAIN_MAX_S))
    return _on_duty(record, duty, wish.by, wish.reason, now, deadline)


def _to_prefetch(record: NodeRecord, wish: NodeWish, now: datetime) -> NodeRecord:
    wanted = wish.prefetch
    if wanted is None or any(one.id == wanted.id for one in record.prefetches):
        return record
    if len(record.prefetches) >= PREFETCHES_MAX:
        return _told(record, now, "not_prefetched", f"{PREFETCHES_MAX} others are not done yet", wish.by)
    record = record.model_copy(update={"prefetches": (*record.prefetches, wanted)})
    return _told(record, now, "prefetch", _what(wanted), wish.by)


def _prefetched(record: NodeRecord, ended: tuple[PrefetchEnd, ...], now: datetime) -> NodeRecord:
    """Note which prefetches are done. One that came to nothing is not tried again: whoever wants it asks again."""
    errors = {one.id: one.error for one in ended}
    for one in record.prefetches:
        if (error := errors.get(one.id)) is not None:
            left = tuple(other for other in record.prefetches if other.id != one.id)
            record = record.model_copy(update={"prefetches": left})
            what = "not_prefetched" if error else "prefetched"
            record = _told(record, now, what, f"{_what(one)}: {error}" if error else _what(one))
    return record


def _what(prefetch: Prefetch) -> str:
    return prefetch.input.source if prefetch.input else prefetch.image or ""


def _forgotten(record: NodeRecord, wish: NodeWish, fence_s: float, now: datetime) -> NodeRecord:
    if record.condition in THERE:
        reason = f"only a node that is lost or has left can be forgotten; this one is {record.condition}"
        return _told(record, now, "not_forgotten", reason, wish.by)
    if fence_s > 0 and not wish.force:
        reason = (
            f"an exclusive job may still run there for {math.ceil(fence_s)} s; ask again after that, or with force "
            "if the machine is certainly down"
        )
        return _told(record, now, "not_forgotten", reason, wish.by)
    return _told(record.model_copy(update={"forgotten": True}), now, "forgotten", wish.reason, wish.by)


def _left_by_itself(record: NodeRecord, now: datetime) -> NodeRecord:
    if "leaving" not in DUTY_MOVES[record.duty]:
        return record
    return _on_duty(record, NodeDuty.DRAINING, _NODE, "the node is leaving", now)


def _emptied(record: NodeRecord, now: datetime, *, leaving: bool) -> NodeRecord:
    if record.duty is NodeDuty.DRAINING:
        record = _on_duty(record, NodeDuty.DRAINED, record.by, record.reason, now)
    if leaving and record.duty is NodeDuty.DRAINED and record.condition is not NodeCondition.LEFT:
        record = _moved(record, NodeCondition.LEFT, now)
    return record


def _troubled(record: NodeRecord, event: Troubled, now: datetime, limits: Limits) -> NodeRecord:
    """Count a job once, and what happens at one moment once: a node that lost all it had is not a bad node yet."""
    window = timedelta(seconds=limits.trouble_window_s)
    before = zip(record.troubles, record.troubled_jobs, strict=False)
    recent = [(at, job) for at, job in before if now - at < window and job not in event.jobs]
    recent = [*recent, *((now, job) for job in event.jobs)][-_TROUBLED_KEPT:]
    times, jobs = tuple(at for at, _ in recent), tuple(job for _, job in recent)
    record = record.model_copy(update={"troubles": times, "troubled_jobs": jobs})
    is_bad = min(len(set(times)), len(jobs)) >= limits.trouble_jobs_min
    if not is_bad or not event.may_cordon or record.duty is not NodeDuty.ACTIVE:
        return record
    reason = f"{len(jobs)} jobs were lost here within {limits.trouble_window_s:g} s: {', '.join(jobs)}"
    return _on_duty(record, NodeDuty.CORDONED, _SCHEDULER, reason, now)


def _on_duty(
    record: NodeRecord, duty: NodeDuty, by: str, reason: str, now: datetime, deadline: datetime | None = None
) -> NodeRecord:
    record = record.model_copy(update={"duty": duty, "by": by, "reason": reason, "deadline": deadline})
    return _told(record, now, duty.value, reason, by)


def _told(record: NodeRecord, now: datetime, what: str, reason: str = "", by: str = _SCHEDULER) -> NodeRecord:
    change = NodeChange(at=now, what=what, by=by, reason=reason)
    return record.model_copy(update={"history": (*record.history, change)[-HISTORY_KEPT:]})
