"""A scheduler around the real core: its turn in the shell's parts, between any two of which it may die or be paused."""

from dataclasses import dataclass, field

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Fact, Input, LookedUp, Recorded
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, Wish
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Batch, Beat, Effects, handle
from services.scheduler.core.replay import Replay
from services.scheduler.core.snapshot import Carried
from shared.fleet import DesiredState
from shared.job import Job
from tests.simulation.log import FleetLog, Log


class Deposed(Exception):
    """A later leader has written."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a leader keeps outside of itself."""

    position: int
    jobs: tuple[tuple[Job, int], ...]
    carried: Carried = field(default_factory=Carried)


@dataclass(slots=True)
class _Turn:
    batch: Batch
    effects: Effects
    recorded: int = 0  # of its decisions about jobs
    is_recorded: bool = False  # those about nodes too


@dataclass(slots=True)
class Leader:
    """One term: what it believes ends with it. It leads for as long as it believes so, whoever else does too."""

    log: Log
    fleet: FleetLog
    limits: Limits
    epoch: int
    state: State
    cursor: int  # what it has read of the log
    fleet_cursor: int = 0
    beats: list[Beat] = field(default_factory=list)
    position: int = 0
    _retry: list[Input] = field(default_factory=list)
    _first: tuple[Fact, ...] = ()
    _wishes: list[Wish] = field(default_factory=list)  # about nodes that had moved on
    _looked_up: tuple[LookedUp, ...] = ()
    _turn: _Turn | None = None

    @classmethod
    def elect(
        cls, log: Log, fleet: FleetLog, limits: Limits, epoch: int, now: Now, snapshot: Snapshot | None = None
    ) -> "Leader":
        """Return a leader that has caught up with the logs."""
        replayed = Replay()
        leader = cls(log, fleet, limits, epoch, State(limits, now), log.end)
        if snapshot is not None:
            replayed = Replay(snapshot.position, {job.id: (job, seq) for job, seq in snapshot.jobs})
            leader.state.restore(snapshot.carried)
        for fact in log.after(replayed.position):
            replayed.feed(fact)
        leader.state.position = leader.position = replayed.position
        leader._first = replayed.facts()
        leader.decide(now)
        leader.record(now)
        leader.answer(now)
        return leader

    @property
    def is_deciding(self) -> bool:
        """Return whether a turn has begun and not ended."""
        return self._turn is not None

    @property
    def has_work(self) -> bool:
        """Return whether something waits for the next turn."""
        waiting = self.beats or self._retry or self._wishes or self._looked_up
        return bool(waiting) or self.cursor < self.log.end or self.fleet_cursor < self.fleet.end

    def decide(self, now: Now, *, reads: int | None = None, tick: bool = False, was_cut_off: bool = False) -> Effects:
        """Begin a turn: take what has arrived, *reads* facts at most, and decide.

        Raises:
            Deposed: a later leader has written.
        """
        read = self.log.after(self.cursor, reads)
        self.cursor += len(read)
        fleet = (*self._wishes, *(self.fleet.facts[self.fleet_cursor :] if reads != 0 else ()))
        self.fleet_cursor += len(fleet) - len(self._wishes)
        self._check_epochs((*read, *fleet))
        batch = Batch(
            facts=(*self._first, *self._retry, *read),
            beats=tuple(self.beats),
            tick=tick,
            was_cut_off=was_cut_off,
            looked_up=self._looked_up,
            fleet=fleet,
        )
        self._first, self._retry, self._wishes, self._looked_up, self.beats = (), [], [], (), []
        effects = handle(self.state, batch, now)
        self._turn = _Turn(batch, effects)
        return effects

    def record(self, now: Now, *, until: int | None = None) -> list[Job]:
        """Record what was decided, all or the first *until*, and believe what was stored; return the jobs of it.

        Raises:
            Deposed: a later leader has written.
        """
        assert self._turn is not None
        turn = self._turn
        stored: list[Job] = []
        for decision in turn.effects.records[turn.recorded : until]:
            turn.recorded += 1
            fact = self.log.record(decision.job, decision.expect_seq, self.epoch)
            if fact is None:
                self._reload(decision.job.id, turn.batch.facts, now)
            else:
                self.state.believe(decision.job, fact.seq, now)
                stored.append(decision.job)
        if until is None and not turn.is_recorded:
            turn.is_recorded = True
            self._record_nodes(turn, now)
        return stored

    def answer(self, now: Now) -> list[tuple[Beat, DesiredState]]:
        """End the turn with an answer to each of its heartbeats."""
        assert self._turn is not None
        turn, self._turn = self._turn, None
        self._looked_up = tuple(map(self._look_up, turn.effects.lookups))
        if not self._retry:
            self.position = self.state.position
        return [
            (beat, desired_state(self.state, beat.node_id, self.epoch, now, beat.heartbeat.session))
            for beat in turn.batch.beats
        ]

    def snapshot(self, now: Now) -> Snapshot:
        """Return what the next leader may begin with."""
        jobs = tuple((tracked.job, tracked.seq) for tracked in self.state.jobs.values())
        return Snapshot(self.position, jobs, self.state.carried(now))

    def _reload(self, job_id: str, facts: tuple[Fact, ...], now: Now) -> None:
        last = self.log.jobs[job_id]
        if last.epoch > self.epoch:
            raise Deposed
        self.state.assign(last.job, last.seq, now)
        self.state.refused(job_id, last.seq, now)
        self._retry += [fact for fact in facts if isinstance(fact, Input) and fact.job_id == job_id]

    def _record_nodes(self, turn: _Turn, now: Now) -> None:
        for decision in turn.effects.nodes:
            node_id = decision.record.id
            fact = self.fleet.record(decision.record, decision.expect_seq, self.epoch)
            if fact is not None:
                self.state.believe_node(decision.record, fact.seq, now)
                continue
            last = self.fleet.nodes[node_id]
            self._check_epochs((last,))
            self.state.believe_node(last.record, last.seq, now)
            self.state.roster.refused(node_id, last.seq)
            self._wishes += [one for one in turn.batch.fleet if isinstance(one, Wish) and one.node_id == node_id]

    def _look_up(self, job_id: str) -> LookedUp:
        last = self.log.jobs.get(job_id)
        return LookedUp(job_id, last.job if last else None)

    def _check_epochs(self, facts: tuple[Fact | FleetFact, ...]) -> None:
        if any(fact.epoch > self.epoch for fact in facts if isinstance(fact, Recorded | NodeRecorded)):
            raise Deposed
