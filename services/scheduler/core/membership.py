"""The nodes' part of a turn: what has become of them, and what is to be recorded about that."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.core import nodes, watch
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, QuotaGiven, Wish
from services.scheduler.core.limits import Now
from services.scheduler.core.quarantine import taking_in
from shared.fleet import Heartbeat, NodeRecord
from shared.job import Job
from shared.states import JOB_TERMINAL, NodeCondition, NodeDuty

_FORMER_KEPT = 8


@dataclass(frozen=True, slots=True)
class NodeDecision:
    """An event to be recorded about a node: the record after it, and the last sequence that it follows."""

    record: NodeRecord
    expect_seq: int
    cause: str | None = None


@dataclass(slots=True)
class Membership:
    """What this turn makes of the nodes; at most one event about each comes of it."""

    state: State
    now: Now
    drafts: dict[str, NodeRecord] = field(default_factory=dict[str, NodeRecord])
    causes: dict[str, str] = field(default_factory=dict[str, str])
    given_up: list[str] = field(default_factory=list[str])  # forgotten: what they still have is lost

    def decisions(self) -> tuple[NodeDecision, ...]:
        """Return what is to be recorded."""
        roster = self.state.roster
        return tuple(
            NodeDecision(
                record.model_copy(update={"input_seq": max(record.input_seq, roster.position)}),
                roster.seq(node_id),
                self.causes.get(node_id),
            )
            for node_id, record in self.drafts.items()
        )

    # --- what is on the log ----------------------------------------------------------------------------------------

    def take_in(self, facts: Iterable[FleetFact]) -> None:
        """Believe records and quotas, then decide about wishes: one that a record already holds is done."""
        roster = self.state.roster
        wishes: list[Wish] = []
        for fact in facts:
            roster.position = max(roster.position, fact.seq)
            with taking_in("fleet", str(fact.seq), fact.seq):
                match fact:
                    case NodeRecorded(seq, record):
                        self.state.believe_node(record, seq, self.now)
                    case QuotaGiven(seq, owner, quota):
                        if roster.grant(owner, quota, seq):
                            self.state.set_quota(owner, quota)
                    case Wish():
                        wishes.append(fact)
        for wish in sorted(wishes, key=lambda one: one.seq):
            with taking_in("fleet", str(wish.seq), wish.seq):
                self._take_wish(wish)

    def _take_wish(self, fact: Wish) -> None:
        record = self._record(fact.node_id)
        if record is None or fact.seq <= record.input_seq:
            return
        if not self._step(record, nodes.Wished(fact.verb, fact.wish, self._fence_s(fact.node_id))):
            return
        self.causes[record.id] = fact.cause
        if self.drafts[record.id].forgotten:
            self.given_up.append(record.id)

    def _fence_s(self, node_id: str) -> float:
        """Return for how many seconds more an exclusive job may run on the node, whoever is cut off."""
        node = self.state.nodes.get(node_id)
        if node is None or not any(self.state.jobs[job_id].job.spec.exclusive for job_id in node.jobs):
            return 0.0
        lease_s = self.state.limits.lease_for(self.state.fleet_size)
        return max(0.0, watch.fence_s(node, lease_s, self.state.limits) - (self.now.mono - node.seen))

    # --- heartbeats ------------------------------------------------------------------------------------------------

    def admits(self, node_id: str, beat: Heartbeat) -> bool:
        """Return whether *beat* is of the agent that has the node's identity now.

        A session that was not heard before takes over: an agent was started again, or there are two. There are two if
        the one before is heard once more, and then again in answer to what it was told: one heartbeat of it may have
        been under way for long.
        """
        node = self.state.nodes.get(node_id)
        if node is None or node.beat is None or beat.session == node.beat.session:
            return True
        if beat.session not in node.former:
            node.former[node.beat.session] = 0
            while len(node.former) > _FORMER_KEPT:
                del node.former[next(iter(node.former))]
            return True
        node.former[beat.session] += 1
        record = self._record(node_id)
        if node.former[beat.session] == 2 and record is not None:
            self._step(record, nodes.Clashed(beat.session))
        return False

    def heard(self, node_id: str) -> None:
        """Note in the record what the last heartbeat has changed."""
        node = self.state.nodes[node_id]
        beat, record = node.beat, self._record(node_id)
        if beat is None:
            return
        heard = nodes.Heard(
            name=beat.node.name,
            session=beat.session,
            boot_id=beat.boot_id,
            steady=node.steady,
            leaving=beat.leaving,
            problem=beat.problem,
            refused=nodes.refusal(beat.protocol),
            prefetched=beat.prefetched,
        )
        if record is None:
            self._keep(nodes.joined(node_id, heard, self.now.at))
        else:
            self._step(record, heard)
        self._empty(node_id)

    # --- time ------------------------------------------------------------------------------------------------------

    def lose(self, node: Node) -> None:
        """Note that *node* is lost."""
        if record := self._record(node.id):
            self._step(record, nodes.Gone(self.now.mono - node.seen))

    def watch(self) -> set[str]:
        """Suspect who is silent, finish drains; return the nodes that are to hear that a drain's deadline is over."""
        state, now = self.state, self.now
        for listed in tuple(state.roster.listed.values()):
            if listed.record.duty is NodeDuty.DRAINING and not listed.record.forgotten:
                self._empty(listed.record.id)
        for node in silent_nodes(state, now):
            if record := self._record(node.id):
                self._step(record, nodes.Silent(now.mono - node.seen))
        due: set[str] = set()
        for node in state.nodes.values():
            record = state.roster.record(node.id)
            if record is None:
                continue
            if record.condition is NodeCondition.LEFT and not node.jobs and now.mono - node.seen > state.fresh_s:
                state.lose(node)  # it is not missed
            elif node.is_lost:
                self.lose(node)
            is_due = node.empty_from is not None and now.at >= node.empty_from
            if is_due and not node.was_emptied:
                due.add(node.id)
            node.was_emptied = is_due
        return due

    def _empty(self, node_id: str) -> None:
        """Finish the drain of a node that has nothing of ours any more, as far as anybody can know."""
        record, node = self._record(node_id), self.state.nodes.get(node_id)
        if record is None or record.duty not in (NodeDuty.DRAINING, NodeDuty.DRAINED):
            return
        beat = node.beat if node is not None and not node.is_lost else None
        if node is not None and (node.jobs or (beat is not None and beat.attempts)):
            return
        if node is not None and beat is None and not node.is_lost:
            return  # not heard yet since this scheduler leads
        self._step(record, nodes.Emptied(leaving=beat.leaving if beat else nodes.left_by_itself(record)))

    # --- trouble ---------------------------------------------------------------------------------------------------

    def blame(self, changed: Iterable[Job]) -> None:
        """Note on which nodes attempts of the *changed* jobs came to nothing, through no fault of the jobs."""
        lost: dict[str, list[str]] = {}
        for job in changed:
            before = self.state.jobs.get(job.id)
            attempt = before.job.current if before is not None and before.job.state not in JOB_TERMINAL else None
            ended = next((a for a in job.attempts if attempt is not None and a.number == attempt.number), None)
            if ended is not None and ended.ended_at and ended.error and ended.error.reason in nodes.TROUBLES:
                lost.setdefault(ended.node, []).append(job.id)
        to_spare = self._to_spare() if lost else 0
        for node_id, jobs in lost.items():
            if record := self._record(node_id):
                self._step(record, nodes.Troubled(tuple(jobs), may_cordon=to_spare > 0))
                to_spare -= nodes.is_open(record) and not nodes.is_open(self.drafts.get(node_id, record))

    def _to_spare(self) -> int:
        """Return how many nodes more may be cordoned until half of those that are there are."""
        records = [self._record(node_id) for node_id in self.state.roster.listed]
        there = [one for one in records if one is not None and one.condition in nodes.THERE and not one.forgotten]
        return len(there) // 2 - sum(not nodes.is_open(one) for one in there)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _record(self, node_id: str) -> NodeRecord | None:
        return self.drafts.get(node_id) or self.state.roster.record(node_id)

    def _step(self, record: NodeRecord, event: nodes.Event) -> bool:
        after = nodes.step(record, event, self.now.at, self.state.limits)
        if after is None:
            return False
        self._keep(after)
        return True

    def _keep(self, record: NodeRecord) -> None:
        self.drafts[record.id] = record
        self.state.restrict(record)  # nothing new from this moment on; what is opened waits until it is recorded


def silent_nodes(state: State, now: Now) -> list[Node]:
    """Return the nodes that are to be suspected, at most so many at a time; nobody, if it may be us who were away."""
    limits = state.limits
    if now.mono < state.quiet_until:
        return []
    fresh_s = state.fresh_s
    there = [node for node in state.nodes.values() if not node.is_lost]
    silent = [node for node in there if now.mono - node.seen > fresh_s]
    if len(silent) >= limits.mass_loss_nodes_min and len(silent) >= limits.mass_loss_fraction * len(there):
        return []
    return silent[: limits.suspects_per_tick]
