"""Why a job waits or is where it is, and whether one would start: what `explain` and `plan` answer.

Nothing here decides or changes anything: placements are tried on a copy of what is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.scheduler.core import clocks, crew, gang, gang_network, lifecycle, reservation
from services.scheduler.core.closest import closest
from services.scheduler.core.explain_crew import explain_crew
from services.scheduler.core.fleet.columns import Mask
from services.scheduler.core.fleet.share import Ledger
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.limits import Now
from services.scheduler.core.need import inputs_of, need_of
from services.scheduler.core.placement import Placement, Trial
from services.scheduler.core.refusal import refuse
from services.scheduler.core.suggest import suggest
from services.scheduler.core.waiting import refusal
from services.scheduler.core.words import count
from shared.job import Job, Owner, PendingReason
from shared.requests.explain import Explanation, NodeFit, Suggestion
from shared.spec import JobSpec
from shared.states import JobState, PendingCode

_CLOSEST = 3
#: Ahead of it or not: priority (negative), the owner's rank in the fair share, when it came and the id.
_Order = tuple[int, float, float, str]

_PLACED_WORDS = {
    JobState.PLACED: "is about to start",
    JobState.STARTING: "is starting",
    JobState.RUNNING: "is running",
    JobState.FINISHING: "has ended its program, and what it left is being stored,",
}


def explain(state: State, tracked: Tracked, now: Now) -> Explanation:
    """Return why an active job waits, or why it is where it is."""
    job = tracked.job
    if crew.is_parent(job) and not clocks.waits_for_needs(job):
        return explain_crew(state, job, lambda member: explain(state, member, now))
    if job.state is not JobState.QUEUED:
        return _where(state, job)
    asked = _Asked(state, now, job.spec, job.owner.id, lifecycle.failed_nodes(job), _order(state, tracked, now))
    found = asked.answer()
    if job.id not in state.line:  # its needs, or a back-off: the nodes are not what it waits for
        told = job.pending or (_reason(PendingCode.BEHIND_OTHERS, "it is looked at in a moment"),)
        found = replace(found, reasons=told, ahead=None, fits=False)
    elif found.fits:
        found = replace(found, reasons=refusal(state, tracked, now, {}).reasons)
    return found.explanation(job.state, would_start=False)


def plan(state: State, owner: Owner, spec: JobSpec, now: Now) -> Explanation:
    """Return where a job of *spec* would go if *owner* handed it in now, or why it would wait."""
    rank = Ledger(state.shares, now.at.timestamp()).rank(owner.id)
    order = (-spec.priority, rank, now.at.timestamp(), "")
    found = _Asked(state, now, spec, owner.id, frozenset(), order).answer()
    if spec.needed():
        jobs = ", ".join(need.job for need in spec.needed())
        found = replace(
            found, fits=False, reasons=(_reason(PendingCode.NEEDS, f"waits for {jobs} to end"), *found.reasons)
        )
    return found.explanation(JobState.QUEUED, would_start=found.fits)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a trial has shown. `places` are of the members of a gang, else one."""

    places: tuple[Placement, ...]
    fits: bool
    never: bool
    reasons: tuple[PendingReason, ...]
    nearest: tuple[NodeFit, ...]
    suggestion: Suggestion | None
    ahead: int | None
    queue_length: int
    nodes: int
    names: tuple[str, ...]

    def explanation(self, state: JobState, *, would_start: bool) -> Explanation:
        first = self.places[0] if self.places and would_start else None
        return Explanation(
            state=state.value,
            would_start=would_start,
            never=self.never,
            node=first.node if first else None,
            score=dict(first.score) if first else {},
            reasons=self.reasons,
            closest=self.nearest,
            ahead=self.ahead,
            queue_length=self.queue_length,
            suggestion=self.suggestion,
            nodes_considered=self.nodes,
            text=self._text(would_start=would_start),
        )

    def _text(self, *, would_start: bool) -> str:
        if would_start:
            where = ", ".join(dict.fromkeys(self.names))
            return f"It would start now on {where}{_score(self.places[0])}."
        said = ["It can never run on the nodes that are there." if self.never else "It waits."]
        said += [f"{_capital(reason.message)}{_count(reason)}." for reason in self.reasons]
        if self.nearest and not self.fits:
            said.append(f"{_closest(self.nodes)} {self.nearest[0].name}: {self.nearest[0].message}.")
        if self.ahead is not None:
            said.append(f"{count(self.ahead, 'waiting job comes', 'waiting jobs come')} before it.")
        if self.suggestion is not None:
            said.append(self.suggestion.message)
        return " ".join(said)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question about one spec of one owner, at one moment."""

    state: State
    now: Now
    spec: JobSpec
    owner: str
    failed: frozenset[str]
    order: _Order

    def answer(self) -> _Found:
        state, now = self.state, self.now
        state.settle(now)
        trial = self._trial()
        units = gang.member_specs(self.spec) or (self.spec,)
        places: list[Placement] = []
        missing: JobSpec | None = None
        over: str | None = None
        ledger = Ledger(state.shares, now.at.timestamp())
        only, apart = self._connected(trial, units)
        mark = trial.mark()
        for unit in units:
            found = trial.place(need_of(unit), unit.image, self.failed, inputs_of(unit), only)
            if found is None:
                missing = unit
                over = over or ledger.over_quota(self.owner, need_of(unit))
                break
            places.append(found)
            over = over or ledger.over_quota(self.owner, need_of(unit))
            ledger.charge(self.owner, need_of(unit))
        short = self._short(trial, missing, places) if missing is not None else ""
        trial.undo(mark)
        known = sum(node.beat is not None for node in state.nodes.values())
        nodes = (state.nodes[place.node] for place in places)
        whole = _Found(
            places=tuple(places),
            fits=missing is None and over is None and apart is None,
            never=False,
            reasons=(*((_reason(PendingCode.QUOTA, over),) if over is not None else ()), *((apart,) if apart else ())),
            nearest=(),
            suggestion=None,
            ahead=sum(_before(one, self.order) for one in self._waiting()),
            queue_length=len(state.line),
            nodes=known,
            names=tuple(node.info.name for node in nodes),
        )
        return whole if missing is None else self._missing(whole, missing, trial, len(units), short)

    def _connected(self, trial: Trial, units: Sequence[JobSpec]) -> tuple[Mask | None, PendingReason | None]:
        """Return where the members of a connected gang would go, or why they fit only where they are not connected."""
        need, columns = need_of(self.spec), self.state.columns
        if not need.connected:
            return None, None
        rows = gang_network.rows_for(columns, trial, need, units, self.failed)
        return rows, None if rows is not None else gang_network.not_connected(columns, trial, need, units)

    def _short(self, trial: Trial, unit: JobSpec, places: Sequence[Placement]) -> str:
        """Return what the node of the member placed last has too little of for the next, once it has those."""
        if not places:
            return ""
        need, slot = need_of(unit), self.state.columns.slots[places[-1].node]
        wanted = (need.ucpus, need.memory, need.disk, need.gpus)
        pairs = zip(trial.free(slot, need), wanted, ("CPUs", "memory", "disk", "GPUs"), strict=True)
        words = [word for free, want, word in pairs if free < want]
        name = self.state.nodes[places[-1].node].info.name
        return f"; with them {name} has too little left of {' and '.join(words)} for another" if words else ""

    def _missing(self, found: _Found, unit: JobSpec, trial: Trial, members: int, short: str) -> _Found:
        """Return what is to be said of the first part that found no node; *short* is of a gang's members."""
        state, need = self.state, need_of(unit)
        after = self._heard_after()
        refused = refuse(state.columns, need, after, state.limits)
        reasons = list(refused.reasons)
        if not reasons and members > 1:
            text = f"{len(found.places)} of {members} members fit at once; they start together{short}"
            reasons.append(_reason(PendingCode.GANG, text))
        elif not reasons:
            reasons.append(_reason(PendingCode.RESERVED, "it fits only where room is kept for a job that is before it"))
        suggestion = None
        if members == 1 and not found.reasons:
            suggestion = suggest(unit, state.columns, trial, after, state.limits)
        return replace(
            found,
            never=not refused.is_possible,
            reasons=(*found.reasons, *reasons),
            nearest=closest(state.columns, need, after, state.limits, _CLOSEST),
            suggestion=suggestion,
        )

    def _trial(self) -> Trial:
        """Return what is free, less the room that is kept for a job before this one."""
        state = self.state
        trial = Trial(state.columns, self._heard_after(), state.limits)
        kept = state.reservation
        ahead = state.jobs.get(kept.job_id) if kept is not None else None
        if kept is None or ahead is None or kept.job_id == self.order[3] or -self.order[0] > kept.priority:
            return trial
        if (renewed := reservation.renew(state, trial, ahead, kept, self.now)) is not None:
            trial.keep(renewed[1])
        return trial

    def _heard_after(self) -> float:
        return self.now.mono - self.state.fresh_s

    def _waiting(self) -> list[_Order]:
        """Return the order of every job in the line."""
        ledger = Ledger(self.state.shares, self.now.at.timestamp())
        ranks: dict[str, float] = {}
        found: list[_Order] = []
        for owner, priority, (came_s, job_id) in self.state.line.waiting():
            if owner not in ranks:
                ranks[owner] = ledger.rank(owner)
            found.append((-priority, ranks[owner], came_s, job_id))
        return found


def _before(one: _Order, other: _Order) -> bool:
    return one < other


def _order(state: State, tracked: Tracked, now: Now) -> _Order:
    job = tracked.job
    rank = Ledger(state.shares, now.at.timestamp()).rank(job.owner.id)
    return -job.spec.priority, rank, job.created_at.timestamp(), job.id


def _where(state: State, job: Job) -> Explanation:
    attempt = job.current
    node = state.nodes.get(attempt.node) if attempt else None
    name = node.info.name if node is not None else attempt.node if attempt else "its nodes"
    text = f"It {_PLACED_WORDS.get(job.state, 'is')} on {name}"
    if attempt is not None:
        text += f", as attempt {attempt.number}{_parts(attempt.score)}"
    elif job.members:
        text = f"Its {len(job.members)} members are on {', '.join(dict.fromkeys(one.node for one in job.members))}"
    return Explanation(
        state=job.state.value,
        would_start=True,
        node=attempt.node if attempt else None,
        score=attempt.score if attempt else {},
        queue_length=len(state.line),
        nodes_considered=sum(one.beat is not None for one in state.nodes.values()),
        text=f"{text}.",
    )


def _score(place: Placement) -> str:
    return _parts(dict(place.score))


def _parts(score: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:g}" for name, value in score.items() if name != "total")
    if not parts:
        return ""
    return f": of the nodes that would do it had the highest score, {score.get('total', 0):g} ({parts})"


def _count(reason: PendingReason) -> str:
    return f" ({count(reason.nodes, 'node')})" if reason.nodes else ""


def _closest(nodes: int) -> str:
    return f"The closest of {nodes} nodes is" if nodes > 1 else "The only node is"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _reason(code: PendingCode, message: str) -> PendingReason:
    return PendingReason(code=code, nodes=0, message=message)
