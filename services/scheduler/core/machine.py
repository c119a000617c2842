"""The one door into the core: all that has arrived goes in, what is to be recorded and who is to be woken comes out."""

import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

from services.scheduler.core import (
    clocks,
    crew,
    gang,
    gang_network,
    gang_wiring,
    lifecycle,
    mapping,
    placing,
    service,
    sharing,
    waiting,
    watch,
)
from services.scheduler.core.facts import Fact, Input, LookedUp, Recorded
from services.scheduler.core.fleet.node import Key, Node
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.fleet_facts import FleetFact
from services.scheduler.core.limits import Now
from services.scheduler.core.membership import Membership, NodeDecision
from services.scheduler.core.need import Need, inputs_of
from services.scheduler.core.placement import Trial
from services.scheduler.core.quarantine import taking_in
from services.scheduler.core.refusal import Refusal
from shared.events import AttemptFinished
from shared.fleet import Heartbeat
from shared.job import Failure, Item, Job, PendingReason
from shared.states import EndReason, JobEventName, JobState, NodeDuty, PendingCode


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat of *node_id* (by the subject)."""

    node_id: str
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class Batch:
    """All that has arrived since the turn before.

    Attributes:
        facts: from the log, in its order.
        fleet: from the log of the fleet, in its order.
        beats: heartbeats.
        tick: whether a second has passed: lost nodes and pending reasons are looked at.
        was_cut_off: whether the scheduler itself was without the bus since the last tick.
        looked_up: answers to what the turn before had asked for.
    """

    facts: tuple[Fact, ...] = ()
    beats: tuple[Beat, ...] = ()
    tick: bool = False
    was_cut_off: bool = False
    looked_up: tuple[LookedUp, ...] = ()
    fleet: tuple[FleetFact, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """An event to be recorded about a job: the job after it, and the last sequence that it follows.

    *items*: of a map job, those that it changes.
    """

    job: Job
    name: JobEventName
    expect_seq: int
    cause: str | None = None
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Effects:
    """What to do, in this order: record the decisions, believe them, then wake nodes.

    Jobs are believed by `State.believe`, nodes by `State.believe_node`.

    Attributes:
        again: there is more to decide without waiting for anything else to arrive.
        lookups: jobs of which the log is to be asked; the answers come with the next batch.
        broken: inputs that could not be decided about and changed nothing: their sequences, and why.
        deferred: inputs that are to come again with the next batch, first of all: an event had no room for them.
    """

    records: tuple[Decision, ...]
    wakes: tuple[str, ...]
    again: bool
    lookups: tuple[str, ...] = ()
    nodes: tuple[NodeDecision, ...] = ()
    broken: tuple[tuple[int, str], ...] = ()
    deferred: tuple[Input, ...] = ()


def handle(state: State, batch: Batch, now: Now) -> Effects:
    """Decide about *batch*. What is decided is not believed yet: the log decides that.

    Raises:
        PoisonError: something could not be believed, and the state is of no use any more.
    """
    turn = _Turn(state, now, Membership(state, now))
    turn.take_in_fleet(batch.fleet)
    turn.take_in(batch.facts)
    for beat in batch.beats:
        with taking_in("node", beat.node_id):
            turn.hear(beat)
    turn.expire()
    if batch.tick:
        turn.tick(was_cut_off=batch.was_cut_off, answered={beat.node_id for beat in batch.beats})
    turn.meet_needs(batch.looked_up)
    turn.follow_gangs(batch.looked_up)
    again = turn.place()
    turn.share_items()
    if batch.tick:
        turn.review()
    # A heartbeat that is about to be answered brings everything along; only what it lacked needs another one.
    woken = (turn.fetch - {beat.node_id for beat in batch.beats}) | turn.nudge
    records = turn.decisions()
    turn.members.blame(one.job for one in records)
    # What an ended attempt held is free once its end is recorded, and not before.
    freed = any(one.job.state not in lifecycle.HOLDING for one in records)
    again = again or (freed and len(state.line) > 0) or any(turn.is_followed(one) for one in records)
    lookups = state.needs.take_unknown(state.limits.lookups_per_turn)
    lookups += state.gangs.take_unknown(state.limits.lookups_per_turn)
    return Effects(
        records,
        _wake(state, woken, now),
        again or bool(lookups),
        lookups,
        nodes=turn.members.decisions(),
        broken=tuple(turn.broken),
        deferred=tuple(turn.deferred),
    )


def _wake(state: State, node_ids: Iterable[str], now: Now) -> tuple[str, ...]:
    woken: list[str] = []
    for node_id in sorted(node_ids):
        node = state.nodes.get(node_id)
        if node is None or (node.woken is not None and now.mono - node.woken < state.limits.wake_again_s):
            continue
        node.woken = now.mono
        woken.append(node_id)
    return tuple(woken)


#: What moves no job: beside something that does, an event does not name it.
_QUIET = frozenset({JobEventName.REMARKED, JobEventName.ITEMS})


@dataclass(slots=True)
class _Draft:
    """What this turn makes of a job; at most one event comes of it, which tells of all its changes."""

    job: Job
    name: JobEventName
    expect_seq: int
    cause: str | None


@dataclass(slots=True)
class _Turn:
    state: State
    now: Now
    members: Membership
    drafts: dict[str, _Draft] = field(default_factory=dict)
    fetch: set[str] = field(default_factory=set)  # nodes for which there is something new
    nudge: set[str] = field(default_factory=set)  # nodes whose next heartbeat will settle a doubt
    broken: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    deferred: list[Input] = field(default_factory=list[Input])
    items: dict[str, mapping.Changes] = field(default_factory=dict[str, mapping.Changes])  # of map jobs
    speakers: set[str] = field(default_factory=set)  # workers that have said something about items
    to_share: set[str] = field(default_factory=set)  # map jobs whose items may be shared out otherwise

    def decisions(self) -> tuple[Decision, ...]:
        position = self.state.position
        until = {decided_for(self.state, fact): fact.seq - 1 for fact in reversed(self.deferred)}
        return tuple(
            Decision(
                draft.job.model_copy(update={"input_seq": until.get(job_id, position)}),
                draft.name,
                draft.expect_seq,
                draft.cause,
                tuple(self.items[job_id].items.values()) if job_id in self.items else (),
            )
            for job_id, draft in self.drafts.items()
        )

    def take_in_fleet(self, facts: tuple[FleetFact, ...]) -> None:
        """Take in records and wishes. What a forgotten node still had is lost."""
        self.members.take_in(facts)
        for node_id in self.members.given_up:
            node = self.state.nodes.get(node_id)
            for job_id in tuple(node.jobs) if node else ():
                tracked = self.state.jobs[job_id]
                message = f"node {node_id} was forgotten by an admin"
                self._step(tracked, lifecycle.Lost(tracked.job.attempt, EndReason.NODE_LOST, message))

    def take_in(self, facts: tuple[Fact, ...]) -> None:
        """Believe the job events, then decide about inputs: one that an event already holds is fenced off."""
        for fact in facts:
            self.state.position = max(self.state.position, fact.seq)
            is_own = fact.seq in self.state.written
            self.state.written.discard(fact.seq)
            # An event of our own is believed already. A job that it ended may be back: an older event was read late.
            if isinstance(fact, Recorded) and (not is_own or fact.job.id in self.state.jobs):
                with taking_in("job", fact.job.id, fact.seq):
                    self.state.assign(fact.job, fact.seq, self.now, fact.items)
        for fact in facts:
            if isinstance(fact, Input):
                try:
                    self._decide(fact)
                except Exception as error:  # noqa: BLE001 - one that nobody can decide about stops no other
                    self.broken.append((fact.seq, repr(error)))

    def _decide(self, fact: Input) -> None:
        """Draft what follows from an input; one that raises has changed nothing."""
        tracked = self.state.jobs.get(decided_for(self.state, fact))
        if tracked is None or fact.seq <= tracked.job.input_seq:
            return
        if self._is_to_wait(tracked, fact):
            self.deferred.append(fact)
        elif isinstance(fact.event, mapping.ItemInput):
            self._take_items(tracked, fact, fact.event)
        elif isinstance(fact.event, service.Wish):
            self._wish(tracked, fact.event, fact.cause)
        else:
            self._step(tracked, self._dated(tracked, fact.event), fact.cause)

    def _is_to_wait(self, tracked: Tracked, fact: Input) -> bool:
        """Return whether an input is for the next turn: others come before it, or an event that has to be on disk.

        A worker ends once what it said before is recorded: nobody believes an ended one.
        """
        if isinstance(fact.event, mapping.ItemsSaid):
            self.speakers.add(fact.job_id)
        elif fact.job_id in self.speakers and isinstance(fact.event, lifecycle.Report):
            return True
        return any(decided_for(self.state, one) == tracked.job.id for one in self.deferred)

    def _take_items(self, tracked: Tracked, fact: Input, said: mapping.ItemInput) -> None:
        job = self._latest(tracked) or tracked.job
        if job.spec.map is None or job.is_terminal:
            return
        worker = self.state.jobs.get(fact.job_id) if isinstance(said, mapping.ItemsSaid) else None
        some = self._changes(job)
        job, is_all = mapping.take_in(job, some, said, worker.job if worker else None, self.now, self.state.limits)
        if not is_all:
            self.deferred.append(fact)
        self._draft(tracked, lifecycle.Change(job, JobEventName.ITEMS), fact.cause)
        self.state.gangs.touch(job.id)

    def _changes(self, job: Job) -> mapping.Changes:
        if job.id not in self.items:
            self.items[job.id] = mapping.changes(job, self.state.books[job.id], self.state.limits)
        return self.items[job.id]

    def _wish(self, tracked: Tracked, wish: service.Wish, cause: str) -> None:
        change = service.decide(self._latest(tracked) or tracked.job, wish, self.now.at)
        if change is not None:
            self._draft(tracked, change, cause)
            self.state.gangs.touch(tracked.job.id)

    def hear(self, beat: Beat) -> None:
        """Take in a heartbeat. An attempt that its node should know and twice in a row does not is lost.

        Twice, because a heartbeat may have been made just before the attempt was accepted; the next one was not.
        """
        if not self.members.admits(beat.node_id, beat.heartbeat):
            return
        before = watch.before(self.state, beat.node_id)
        if not self.state.observe(beat.node_id, beat.heartbeat, self.now):
            return
        self.members.heard(beat.node_id)
        node = self.state.nodes[beat.node_id]
        self._note_uses(node, beat.heartbeat)
        self._follow(watch.heard(self.state, node, before, beat.heartbeat, self.now))
        held = {(a.job_id, a.attempt) for a in beat.heartbeat.attempts}
        for job_id in tuple(node.jobs):
            tracked = self.state.jobs[job_id]
            key = (job_id, tracked.job.attempt)
            if key in held:
                node.accepted.add(key)
                node.missing.pop(key, None)
            elif tracked.job.state is not JobState.PLACED or key in node.accepted or self._is_stopping(tracked):
                self._miss(node, tracked, key)

    def _note_uses(self, node: Node, heartbeat: Heartbeat) -> None:
        for held in heartbeat.attempts:
            if (held.served or held.in_flight) and held.job_id in node.jobs:
                place = self.state.jobs[held.job_id].job.member_of
                if place is not None:
                    self.state.uses.heard(place.gang_id, held, self.now.at)

    def expire(self) -> None:
        """Look at the jobs for which a limit or a back-off has passed."""
        for job_id in self.state.due(self.now):
            tracked = self.state.jobs[job_id]
            self._step(tracked, lifecycle.Expired())
            if tracked.job.spec.kind != "run":
                self.state.gangs.touch(job_id)
            elif tracked.job.state in lifecycle.HOLDING and self._is_stopping(tracked):
                self.fetch.add(tracked.job.attempts[-1].node)

    def meet_needs(self, looked_up: tuple[LookedUp, ...]) -> None:
        """Let go on, or end, what waits for jobs that have ended."""
        needs = self.state.needs
        for one in looked_up:
            if one.job is None or one.job.is_terminal:
                needs.ended(one.job_id, one.job.state if one.job else None)
        for job_id, verdict in needs.take_due():
            tracked = self.state.jobs[job_id]
            if not isinstance(verdict, lifecycle.Waiting) or PendingCode.NEEDS not in _codes(tracked.job.pending):
                self._step(tracked, verdict)

    def follow_gangs(self, looked_up: tuple[LookedUp, ...]) -> None:
        """Let gangs become what has become of their members, and stop the members of a round that is over."""
        gangs = self.state.gangs
        for one in looked_up:
            gangs.answer(one.job_id, one.job)
        for gang_id, changed in gangs.take_changed().items():
            tracked = self.state.jobs.get(gang_id)
            if tracked is None or crew.is_parent(tracked.job):
                self._follow_crew(tracked, changed)
                self._let_end(gang_id)
                continue
            for member in changed.values():
                if not gang.belongs(member.member_of, self._latest(tracked)):
                    self._stop_member(member.id)
            if tracked.job.state in lifecycle.HOLDING:
                self._follow_gang(tracked, changed)

    def _follow_gang(self, tracked: Tracked, changed: dict[str, Job]) -> None:
        gangs, draft = self.state.gangs, self.drafts.get(tracked.job.id)
        missing = gangs.take_missing(tracked.job.id)
        members = {member_id: self.state.jobs[member_id].job for member_id in gangs.members(tracked.job.id)}
        job = draft.job if draft else tracked.job
        change = gang.follow(job, members | changed, missing, self.now.at, self.state.limits)
        if change is not None:
            self._draft(tracked, change, None)
            job = change.job
        self.fetch |= gang_wiring.released(self.state, job)
        if job.state in lifecycle.HOLDING and gang.is_to_stop(job, self.now.at):
            for member_id in gangs.members(job.id):
                self._stop_member(member_id)

    def _follow_crew(self, tracked: Tracked | None, changed: dict[str, Job]) -> None:
        """Let a map job or a service become what has become of its members; stop those of one that is no more."""
        parent = self._latest(tracked)
        for member in changed.values():
            if not crew.belongs(member, parent) and not mapping.ends_by_itself(member, parent):
                self._stop_member(member.id)
        if tracked is None or parent is None or parent.is_terminal or clocks.waits_for_needs(parent):
            return
        gangs = self.state.gangs
        missing = gangs.take_missing(parent.id)
        jobs = {member_id: self.state.jobs[member_id].job for member_id in gangs.members(parent.id)} | changed
        with taking_in("job", parent.id, tracked.seq):
            plan = self._plan_crew(parent, jobs, missing)
        if plan.change is not None:
            self._draft(tracked, plan.change, None)  # first: a member that no parent knows of is stopped
        for member in plan.hired:
            self.drafts[member.id] = _Draft(member, JobEventName.PENDING, 0, None)
        for member_id in plan.stopped:
            self._stop_member(member_id)

    def _let_end(self, gang_id: str) -> None:
        """Tell the workers of a map job that has ended so: they end by themselves. What has not begun is stopped."""
        if gang_id in self.state.jobs:
            return
        for member_id in self.state.gangs.members(gang_id):
            member = self.state.jobs[member_id].job
            if mapping.ends_by_itself(member, None):
                self.state.let_be.setdefault(member_id, self.now.mono)
                self.fetch.add(member.attempts[-1].node)
            else:
                self._stop_member(member_id)

    def _plan_crew(self, parent: Job, jobs: dict[str, Job], missing: frozenset[str]) -> crew.Plan:
        match parent.spec.kind:
            case "service":
                return service.follow(parent, self._team(parent, jobs, missing), self.now.at, self.state.limits)
            case "map":
                self.to_share.add(parent.id)
                workers = mapping.Crew(jobs, missing, self.state.jobs.keys())
                return mapping.follow(parent, self._changes(parent), workers, self.now, self.state.limits)
            case _:
                return crew.Plan()

    def _team(self, parent: Job, jobs: dict[str, Job], missing: frozenset[str]) -> service.Team:
        state = self.state
        leaving = {one.job_id for one in parent.members if self._is_leaving(one.node)}
        used_at = state.uses.at(parent.id) or parent.used_at or parent.created_at
        return service.Team(jobs, missing, frozenset(leaving), used_at, state.jobs.keys())

    def _is_leaving(self, node_id: str) -> bool:
        record = self.state.roster.record(node_id)
        return record is not None and record.duty is NodeDuty.DRAINING

    def _stop_member(self, job_id: str) -> None:
        member = self.state.jobs.get(job_id)
        if member is not None:
            self._step(member, lifecycle.Cancel("scheduler"))

    def _latest(self, tracked: Tracked | None) -> Job | None:
        draft = self.drafts.get(tracked.job.id) if tracked is not None else None
        return draft.job if draft else tracked.job if tracked is not None else None

    def is_followed(self, decision: Decision) -> bool:
        """Return whether there is something to decide as soon as *decision* is believed."""
        job = decision.job
        if job.member_of is not None or crew.is_parent(job):
            return True
        if job.spec.gang is not None and job.cancel_requested_at is not None:
            return True
        return self.state.needs.is_needed(job.id) if job.is_terminal else job.id in self.state.needs

    def tick(self, *, was_cut_off: bool, answered: Container[str]) -> None:
        """Declare silent nodes lost, unless it may be us who were away. A node that is *answered* is not forgotten."""
        state, now, limits = self.state, self.now, self.state.limits
        if was_cut_off or (state.ticked is not None and now.mono - state.ticked > limits.stall_s):
            state.quiet_until = now.mono + limits.lease_for(state.fleet_size)
        state.ticked = now.mono
        for node in lost_nodes(state, now):
            state.lose(node)
        self.fetch |= self.members.watch()
        self._follow(watch.silent(state, now))
        self._follow(watch.disobeyed(state, now))
        for gang_id in state.gangs.placed:
            state.gangs.doubt(state.jobs[gang_id].job, state.jobs)
            if service.is_watched(state.jobs[gang_id].job, self._is_leaving):
                state.gangs.touch(gang_id)
        self._watch_workers()
        for node in tuple(state.nodes.values()):
            record = state.roster.record(node.id)
            is_over = now.mono - node.seen > limits.node_forgotten_s or (record is not None and record.forgotten)
            if node.is_lost and not node.jobs and is_over and node.id not in answered:
                state.forget(node)
        if now.mono - state.retried >= limits.retry_all_s:
            state.retried = now.mono
            state.blocked.clear()

    def _watch_workers(self) -> None:
        """Look at the map jobs in which time alone may change something, and stop workers that do not end."""
        state = self.state
        for job_id, book in state.books.items():
            tracked = state.jobs.get(job_id)  # none: the job was set aside
            if tracked is not None and mapping.is_restless(tracked.job, book):
                state.gangs.touch(job_id)
        for worker_id, since in tuple(state.let_be.items()):
            if worker_id not in state.jobs:
                del state.let_be[worker_id]
            elif self.now.mono - since > state.limits.worker_close_s:
                self._stop_member(worker_id)

    def share_items(self) -> None:
        """Give items to workers, as far as that is believed which they are shared out by."""
        to_share = self.to_share & self.state.books.keys()
        is_crowded = bool(to_share and self.state.line.full.firsts())
        for job_id in to_share:
            if job_id in self.items and self.items[job_id].items:
                continue  # once those are believed
            workers = {one: self.state.jobs[one].job for one in self.state.gangs.members(job_id)}
            book, job = self.state.books[job_id], self.state.jobs[job_id].job
            has = self._begun(sharing.strangers(book, workers.values()))
            if has is None:
                continue
            now, limits = self.now, self.state.limits
            shared = sharing.share(job, book, workers, has, self._is_leaving, now, limits, is_crowded=is_crowded)
            for worker_id in shared:
                if worker_id in workers:
                    self.fetch.add(workers[worker_id].attempts[-1].node)

    def _begun(self, workers: Iterable[Job]) -> dict[str, tuple[str, ...]] | None:
        """Return the items that *workers* have begun, as their nodes say; None: a node is still to be heard."""
        found: dict[str, tuple[str, ...]] = {}
        for worker in workers:
            node = self.state.nodes[worker.attempts[-1].node]
            if node.beat is not None:
                held = (one for one in node.beat.attempts if (one.job_id, one.attempt) == (worker.id, worker.attempt))
                found[worker.id] = next((one.items for one in held), ())
            elif self.now.mono - node.seen < self.state.fresh_s:
                return None
        return found

    def place(self) -> bool:
        """Place what fits, best first. Return whether there may be more to place at once.

        A need that does not fit is passed over with all who share it, until something is gained.
        """
        return placing.place(self.state, self.now, self.drafts, self._place_one)

    def review(self) -> None:
        """Tell why jobs wait: not for short waits, not again without news, and not too many at a time."""
        state, now, limits = self.state, self.now, self.state.limits
        refusals: dict[Need, Refusal] = {}
        told = 0
        for _ in range(10 * limits.pending_per_tick):
            if told >= limits.pending_per_tick or not state.reviews or state.reviews[0][0] > now.mono:
                break
            _, job_id = heapq.heappop(state.reviews)
            tracked = state.jobs.get(job_id)
            if tracked is None or job_id not in state.line or job_id in self.drafts:
                continue
            told += self._review_one(tracked, refusals)
            heapq.heappush(state.reviews, (now.mono + limits.pending_every_s, job_id))

    def _review_one(self, tracked: Tracked, refusals: dict[Need, Refusal]) -> bool:
        state, now, limits = self.state, self.now, self.state.limits
        refusal = waiting.refusal(state, tracked, now, refusals)
        waited_s = (now.at - clocks.queued_since(tracked.job)).total_seconds()
        if not refusal.reasons or (waited_s < limits.pending_after_s and not waiting.is_lasting(refusal)):
            return False
        never = not refusal.is_possible
        if _codes(tracked.job.pending) == _codes(refusal.reasons) and tracked.never in (None, never):
            return False
        tracked.never = never
        return self._step(tracked, lifecycle.Waiting(refusal.reasons))

    def _place_one(self, trial: Trial, tracked: Tracked) -> bool:
        job = tracked.job
        if job.spec.gang is not None:
            return self._place_gang(trial, tracked)
        failed, beside = lifecycle.failed_nodes(job), self._nodes_of_others(job)
        if job.member_of is not None and (book := self.state.books.get(job.member_of.gang_id)):
            failed |= book.shunned
        found = trial.place(tracked.need, job.spec.image, failed, inputs_of(job.spec), beside=beside)
        if found is None:
            return False
        self.state.line.discard(job.id)
        self._step(tracked, lifecycle.Placed(found.node, found.gpus, found.score))
        self.fetch.add(found.node)
        return True

    def _nodes_of_others(self, job: Job) -> tuple[str, ...]:
        """Return where the other replicas of the same service are, those placed in this turn among them."""
        parent = self.state.jobs.get(job.member_of.gang_id) if job.member_of is not None else None
        if parent is None or parent.job.spec.service is None:
            return ()
        active = (self._latest(self.state.jobs.get(other)) for other in self.state.gangs.members(parent.job.id))
        held = (one for one in active if one is not None and one.state in lifecycle.HOLDING and not one.is_terminal)
        return tuple(one.attempts[-1].node for one in held if one.cancel_requested_at is None)

    def _place_gang(self, trial: Trial, tracked: Tracked) -> bool:
        """Place all members, or none."""
        state, mark, job = self.state, trial.mark(), tracked.job
        specs, failed = gang.member_specs(job.spec), lifecycle.failed_nodes(job)
        found = gang_network.seat(state.columns, trial, tracked.need, specs, failed)
        if found is None:
            return False
        change, members = gang.place(job, found.places, self.now.at, state.limits)
        addresses = {place.node: state.nodes[place.node].info.address for place in found.places}
        others = gang_wiring.others(state, (draft.job for draft in self.drafts.values()))
        wired = gang_wiring.wired(change.job, found.network, addresses, others, state.limits)
        if wired is None:
            trial.undo(mark)
            return False
        change = replace(change, job=wired)
        self.state.line.discard(job.id)
        self._draft(tracked, change, None)  # first: a member that no gang knows of is stopped
        for member in members:
            self.drafts[member.id] = _Draft(member, JobEventName.PLACED, 0, None)
            self.fetch.add(member.attempts[-1].node)
        return True

    def _miss(self, node: Node, tracked: Tracked, key: Key) -> None:
        node.missing[key] = node.missing.get(key, 0) + 1
        if node.missing[key] == 1:
            self.nudge.add(node.id)
            return
        what = "no longer has" if key in node.accepted or tracked.job.state is not JobState.PLACED else "never took"
        message = f"node {node.info.name} {what} the attempt"
        was_moved = what == "never took" and self._stop_reason(tracked) is EndReason.NODE_DRAINED
        reason = EndReason.NODE_DRAINED if was_moved else EndReason.AGENT_LOST_CONTAINER
        self._step(tracked, lifecycle.Lost(tracked.job.attempt, reason, message))

    def _follow(self, follows: watch.Follows) -> None:
        for tracked, event in follows:
            self._step(tracked, event)

    def _is_stopping(self, tracked: Tracked) -> bool:
        return self._stop_reason(tracked) is not None

    def _stop_reason(self, tracked: Tracked) -> EndReason | None:
        node = self.state.nodes[tracked.job.attempts[-1].node]
        return watch.stop_reason(tracked, node, self.now, self.state.limits)

    def _dated(self, tracked: Tracked, event: lifecycle.Event) -> lifecycle.Event:
        """Return *event*; of a reboot that a node reports, with when the node had last been heard before."""
        match event:
            case lifecycle.Report(node_id, AttemptFinished(error=Failure(reason=EndReason.NODE_REBOOTED))):
                node = self.state.nodes.get(node_id)
                return replace(event, heard_at=watch.died_at(node, tracked, self.now) if node else None)
            case _:
                return event

    def _step(self, tracked: Tracked, event: lifecycle.Event, cause: str | None = None) -> bool:
        draft = self.drafts.get(tracked.job.id)
        job = draft.job if draft else tracked.job
        with taking_in("job", job.id, tracked.seq):
            change = lifecycle.step(job, event, self.now.at, self.state.limits)
        if change is None:
            return False
        if change.name is JobEventName.CANCELLING and change.job.spec.kind == "run":
            self.fetch.add(change.job.attempts[-1].node)
        self._draft(tracked, change, cause)
        return True

    def _draft(self, tracked: Tracked, change: lifecycle.Change, cause: str | None) -> None:
        draft = self.drafts.get(tracked.job.id)
        # A remark beside something that moves the job does not name what has happened.
        name = draft.name if draft and change.name in _QUIET else change.name
        cause = cause or (draft.cause if draft else None)
        self.drafts[tracked.job.id] = _Draft(change.job, name, tracked.seq, cause)


def decided_for(state: State, fact: Input) -> str:
    """Return the job whose event tells what comes of *fact*: what a worker says is about its parent's items."""
    worker = state.jobs.get(fact.job_id) if isinstance(fact.event, mapping.ItemsSaid) else None
    place = worker.job.member_of if worker is not None else None
    return place.gang_id if place is not None else fact.job_id


def lost_nodes(state: State, now: Now) -> list[Node]:
    """Return the nodes that are to be given up: silent past their lease, and not most of the fleet at once.

    If nearly all are silent, it is the network or ourselves; then they get much longer. Many are given up over
    several ticks, those silent for longest first, so that what ran on them is not all placed again at once.
    """
    if now.mono < state.quiet_until:
        return []
    limits = state.limits
    there = [node for node in state.nodes.values() if not node.is_lost]
    lease_s = limits.lease_for(len(there))
    silent = [node for node in there if now.mono - node.seen > lease_s]
    if len(silent) >= limits.mass_loss_nodes_min and len(silent) >= limits.mass_loss_fraction * len(there):
        silent = [node for node in silent if now.mono - node.seen > limits.mass_loss_patience_s]
    at_once = max(limits.losses_per_tick_min, int(limits.losses_per_tick_fraction * len(there)))
    return sorted(silent, key=lambda node: node.seen)[:at_once]


def _codes(reasons: Iterable[PendingReason]) -> frozenset[PendingCode]:
    return frozenset(reason.code for reason in reasons)
