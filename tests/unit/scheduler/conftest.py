"""Makers of jobs, heartbeats and reports for the scheduler's tests."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from services.scheduler.core import service
from services.scheduler.core.facts import Input, LookedUp, Recorded
from services.scheduler.core.fleet.invariants import check
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, Wish
from services.scheduler.core.lifecycle import Cancel, Report
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Batch, Beat, Effects, handle
from services.scheduler.core.mapping import ItemInput
from shared.events import (
    AttemptFinished,
    AttemptFinishing,
    AttemptRunning,
    AttemptStarting,
    CancelRequested,
    ServiceAsked,
    ServiceUpdated,
)
from shared.fleet import (
    PROTOCOL,
    Capacity,
    Gpu,
    Heartbeat,
    HeldAttempt,
    NodeInfo,
    NodeRecord,
    NodeWish,
    Usage,
)
from shared.job import Failure, Job, Owner
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, EndReason

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> Now:
    return Now(START + timedelta(seconds=seconds), 1000 + seconds)


def make_job(job_id: str = "j1", *, created_s: float = 0.0, **spec: Any) -> Job:
    fields = {"runtime": "process", "command": "true"} | spec
    when = START + timedelta(seconds=created_s)
    return Job(id=job_id, owner=Owner(id="u1", name="ada"), spec=JobSpec(**fields), created_at=when, updated_at=when)


def make_beat(
    node: str = "n1",
    *,
    seq: int = 1,
    session: str = "s1",
    held: tuple[tuple[str, int], ...] = (),
    held_as: str = "running",
    delivered: bool = False,
    boot_id: str = "b1",
    protocol: int = PROTOCOL,
    leaving: bool = False,
    problem: str = "",
    cpus: float = 4,
    memory: int = 16 * GIB,
    disk: int = 1000 * GIB,
    gpus: tuple[Gpu, ...] = (),
    images: tuple[str, ...] = (),
    usage: Usage | None = None,
    **info: Any,
) -> Heartbeat:
    fields = {"runtimes": ("docker", "process"), "name": f"name-{node}"} | info
    return Heartbeat(
        node=NodeInfo(id=node, **fields),
        session=session,
        boot_id=boot_id,
        seq=seq,
        capacity=Capacity(cpus=cpus, memory=memory, disk=disk, gpus=gpus),
        usage=usage or Usage(memory_available=memory, disk_free=disk),
        attempts=tuple(
            HeldAttempt(job_id=job, attempt=number, state=held_as, delivered=delivered) for job, number in held
        ),
        images=images,
        protocol=protocol,
        leaving=leaving,
        problem=problem,
        at=START,
    )


def starting(attempt: int = 1, phase: str = "pull", s: float = 1) -> AttemptStarting:
    return AttemptStarting(attempt=attempt, phase=phase, at=at(s).at)


def running(attempt: int = 1, s: float = 2) -> AttemptRunning:
    return AttemptRunning(attempt=attempt, at=at(s).at)


def finishing(attempt: int = 1, s: float = 3) -> AttemptFinishing:
    return AttemptFinishing(attempt=attempt, at=at(s).at, exit_code=0)


def finished(
    attempt: int = 1,
    state: AttemptState = AttemptState.SUCCEEDED,
    reason: EndReason | None = None,
    s: float = 4,
    **more: Any,
) -> AttemptFinished:
    error = Failure(reason=reason, message=f"because of {reason}") if reason else None
    return AttemptFinished(attempt=attempt, state=state, error=error, at=at(s).at, **more)


class World:
    """A state, and a log that stores at once what the core decides: the shell in a few lines, without a bus."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.now = 0.0
        self.state = State(self.limits, at(0))
        self.seq = 0
        self.log: list[Recorded | Input] = []
        self.events: list[tuple[str, str]] = []
        self.woken: list[str] = []
        self.latest: dict[str, Job] = {}
        self.seqs: dict[str, int] = {}  # of the last event of each job
        self.may_conflict = False  # the log may hold what this state does not know
        self.beats = 0
        self.fleet: list[FleetFact] = []
        self.looked_up: tuple[LookedUp, ...] = ()
        self.deferred: tuple[Input, ...] = ()

    def create(self, job: Job) -> Recorded:
        return self._append(lambda seq: Recorded(seq, job, 0))

    def report(self, node: str, job_id: str, data: Any) -> Input:
        return self._append(lambda seq: Input(seq, job_id, Report(node, data), f"e{seq}"))

    def cancel(self, job_id: str) -> Input:
        return self._append(lambda seq: Input(seq, job_id, Cancel("u1"), f"e{seq}"))

    def wish_of(self, job_id: str, data: ServiceUpdated | ServiceAsked) -> Input:
        return self._append(lambda seq: Input(seq, job_id, service.Wish(data), f"e{seq}"))

    def about_items(self, job_id: str, said: ItemInput) -> Input:
        return self._append(lambda seq: Input(seq, job_id, said, f"e{seq}"))

    def turn(self, *facts: Recorded | Input, beats: tuple[Heartbeat, ...] = (), **batch: Any) -> Effects:
        """Handle one batch, store and believe what was decided, and check that the state is sound."""
        heard = tuple(Beat(beat.node.id, beat) for beat in beats)
        batch = {"looked_up": self.looked_up} | batch
        effects = handle(self.state, Batch(facts=(*self.deferred, *facts), beats=heard, **batch), at(self.now))
        self.deferred = effects.deferred
        self.looked_up = tuple(LookedUp(job_id, self.latest.get(job_id)) for job_id in effects.lookups)
        conflicts: list[str] = []
        for decision in effects.records:
            tracked = self.state.jobs.get(decision.job.id)
            if self.may_conflict and decision.expect_seq != self.seqs.get(decision.job.id, 0):
                conflicts.append(decision.job.id)
                continue
            # Only a gang's member begins with what the scheduler records.
            assert decision.expect_seq == (tracked.seq if tracked else 0)
            assert tracked is not None or decision.job.member_of is not None
            record = self._append(lambda seq, one=decision: Recorded(seq, one.job, 1, one.items))
            self.state.believe(decision.job, record.seq, at(self.now), decision.items)
            self.events.append((decision.job.id, decision.name.value))
        for job_id in conflicts:  # as the shell does: believe what the log holds
            self.state.assign(self.latest[job_id], self.seqs[job_id], at(self.now))
            self.state.refused(job_id, self.seqs[job_id], at(self.now))
        for one in effects.nodes:
            assert one.expect_seq == self.state.roster.seq(one.record.id)
            seq = len(self.fleet) + 1
            self.fleet.append(NodeRecorded(seq, one.record, 1))
            self.state.believe_node(one.record, seq, at(self.now))
        self.woken += effects.wakes
        assert check(self.state) == []
        return effects

    def hear(self, node: str = "n1", **beat: Any) -> Effects:
        self.beats += 1
        return self.turn(beats=(make_beat(node, seq=self.beats, **beat),))

    def wish(self, verb: str, node: str = "n1", **wish: Any) -> Effects:
        """Let an admin want something of a node."""
        seq = len(self.fleet) + 1
        data = NodeWish(at=at(self.now).at, **({"by": "root"} | wish))
        self.fleet.append(Wish(seq, node, verb, data, f"w{seq}"))
        return self.turn(fleet=(self.fleet[-1],))

    def record(self, node: str = "n1") -> NodeRecord:
        """Return what the log of the fleet has about a node."""
        return next(f.record for f in reversed(self.fleet) if isinstance(f, NodeRecorded) and f.record.id == node)

    def settle(self) -> None:
        """Take turns until nothing more is to be decided at once."""
        for _ in range(100):
            if not self.turn().again:
                return
        raise AssertionError("the machine never comes to rest")

    def tick(self, to: float, **batch: Any) -> Effects:
        self.now = to
        return self.turn(tick=True, **batch)

    def job(self, job_id: str = "j1") -> Job:
        return self.latest[job_id]

    def _append(self, make: Callable[[int], Any]) -> Any:
        self.seq += 1
        entry = make(self.seq)
        self.log.append(entry)
        if isinstance(entry, Recorded):
            self.latest[entry.job.id] = entry.job
            self.seqs[entry.job.id] = entry.seq
        return entry


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers, for tests that cannot import this file."""
    return SimpleNamespace(
        World=World,
        START=START,
        at=at,
        job=make_job,
        beat=make_beat,
        starting=starting,
        running=running,
        finishing=finishing,
        finished=finished,
        cancel_requested=lambda s=0.0: CancelRequested(by="u1", at=at(s).at),
    )
