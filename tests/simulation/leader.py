"""A scheduler around the real core: its turn in the shell's parts, between any two of which it may die or be paused."""

from dataclasses import dataclass, field

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Fact, Input
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Batch, Beat, Effects, handle
from services.scheduler.core.replay import Replay
from shared.fleet import DesiredState
from shared.job import Job
from tests.simulation.log import Log


class Deposed(Exception):
    """A later leader has written."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a leader keeps outside of itself."""

    position: int
    jobs: tuple[tuple[Job, int], ...]


@dataclass(slots=True)
class _Turn:
    batch: Batch
    effects: Effects
    recorded: int = 0  # of its decisions


@dataclass(slots=True)
class Leader:
    """One term: what it believes ends with it. It leads for as long as it believes so, whoever else does too."""

    log: Log
    limits: Limits
    epoch: int
    state: State
    cursor: int  # what it has read of the log
    since: int  # the log's end when it was elected
    beats: list[Beat] = field(default_factory=list)
    position: int = 0
    _retry: list[Input] = field(default_factory=list)
    _first: tuple[Fact, ...] = ()
    _turn: _Turn | None = None

    @classmethod
    def elect(cls, log: Log, limits: Limits, epoch: int, now: Now, snapshot: Snapshot | None = None) -> "Leader":
        """Return a leader that has caught up with the log."""
        replayed = Replay()
        if snapshot is not None:
            replayed = Replay(snapshot.position, {job.id: (job, seq) for job, seq in snapshot.jobs})
        for fact in log.after(replayed.position):
            replayed.feed(fact)
        leader = cls(log, limits, epoch, State(limits, now), log.end, log.end)
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
        return bool(self.beats or self._retry or self.cursor < self.log.end)

    def decide(self, now: Now, *, reads: int | None = None, tick: bool = False, was_cut_off: bool = False) -> Effects:
        """Begin a turn: take what has arrived, *reads* facts at most, and decide."""
        read = self.log.after(self.cursor, reads)
        self.cursor += len(read)
        batch = Batch(
            facts=(*self._first, *self._retry, *read),
            beats=tuple(self.beats),
            tick=tick,
            was_cut_off=was_cut_off,
        )
        self._first, self._retry, self.beats = (), [], []
        effects = handle(self.state, batch, now)
        self._turn = _Turn(batch, effects)
        return effects

    def record(self, now: Now, *, until: int | None = None) -> list[Job]:
        """Record what was decided, all or the first *until*, and believe what was stored; return it.

        Raises:
            Deposed: a later leader has written about one of the jobs.
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
        return stored

    def answer(self, now: Now) -> list[tuple[Beat, DesiredState]]:
        """End the turn with an answer to each of its heartbeats."""
        assert self._turn is not None
        beats = self._turn.batch.beats
        self._turn = None
        if not self._retry:
            self.position = self.state.position
        return [(beat, desired_state(self.state, beat.node_id, self.epoch, now)) for beat in beats]

    def snapshot(self) -> Snapshot:
        """Return what the next leader may begin with."""
        jobs = tuple((tracked.job, tracked.seq) for tracked in self.state.jobs.values())
        return Snapshot(self.position, jobs)

    def _reload(self, job_id: str, facts: tuple[Fact, ...], now: Now) -> None:
        last = self.log.jobs[job_id]
        if last.epoch > self.epoch:
            raise Deposed
        self.state.assign(last.job, last.seq, now)
        self.state.refused(job_id, last.seq, now)
        self._retry += [fact for fact in facts if isinstance(fact, Input) and fact.job_id == job_id]
