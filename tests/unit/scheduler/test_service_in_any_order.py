"""Services under any sequence of reports, wishes, drained nodes and schedulers that die between two records."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.scheduler.core import crew
from services.scheduler.core.facts import Recorded
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import NodeRecorded
from services.scheduler.core.lifecycle import Cancel
from services.scheduler.core.limits import Limits
from services.scheduler.core.machine import Batch, handle
from services.scheduler.core.replay import Replay
from shared.events import AttemptFinishing, ServiceAsked, ServiceUpdated
from shared.job import Job
from shared.states import JOB_TERMINAL, AttemptState, EndReason, JobEventName, JobState

NODES = ("n1", "n2", "n3")
ENDS = (
    (AttemptState.FAILED, EndReason.EXIT_CODE),
    (AttemptState.FAILED, EndReason.IMAGE_NOT_FOUND),
    (AttemptState.LOST, EndReason.AGENT_LOST_CONTAINER),
    (AttemptState.FAILED, EndReason.RUNTIME_ERROR),
    (AttemptState.SUCCEEDED, None),
)


class Fleet:
    """Three nodes that may do anything with the replicas of one service."""

    def __init__(self, make: SimpleNamespace, data: st.DataObject) -> None:
        self.make, self.data = make, data
        self.world = make.World(Limits(trouble_jobs_min=1000))
        self.world.may_conflict = True
        self.draining: set[str] = set()

    def draw(self, options: Any) -> Any:
        return self.data.draw(st.sampled_from(tuple(options)))

    def job(self) -> Job:
        return self.world.job("s1")

    def beat(self) -> None:
        """Let all nodes be heard, each with the replicas that it should have."""
        for node in NODES:
            held = tuple((t.job.id, t.job.attempt) for t in self.world.state.jobs.values() if self._is_on(t.job, node))
            self.world.hear(node, held=held, cpus=8)

    def _is_on(self, job: Job, node: str) -> bool:
        return job.current is not None and job.current.node == node and job.state is not JobState.QUEUED

    def replicas(self, *states: JobState) -> list[Job]:
        found = (t.job for t in self.world.state.jobs.values() if t.job.member_of is not None)
        return sorted((job for job in found if job.state in states), key=lambda job: job.id)

    def step(self) -> None:
        what: Callable[[], None] = self.draw((self.report, self.report, self.report, self.want, self.drain, self.crash))
        what()
        self.wait(self.draw((0, 1, 5, 40)))

    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.beat()
        self.world.tick(self.world.now)
        self.world.settle()

    def report(self) -> None:
        active = self.replicas(JobState.PLACED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING)
        if not active:
            return
        job, make = self.draw(active), self.make
        if job.cancel_requested_at is not None:
            said = make.finished(state=AttemptState.CANCELLED, s=self.world.now)
        elif self.draw((True, True, False)):
            said = self.draw((make.running, make.running, make.running, make.finishing))(s=self.world.now)
        else:
            state, reason = self.draw(ENDS)
            said = make.finished(state=state, reason=reason, s=self.world.now)
        self.world.turn(self.world.report(job.attempts[-1].node, job.id, said))

    def want(self) -> None:
        what, at = self.draw(("scale", "spec", "ask", "restart")), self.make.at(self.world.now).at
        if what == "restart" and (active := self.replicas(JobState.RUNNING, JobState.PLACED)):
            self.world.turn(self.world.cancel(self.draw(active).id))
        elif what == "scale":
            count = self.draw((0, 1, 2, 4))
            self.world.turn(self.world.wish_of("s1", ServiceUpdated(by="u1", at=at, replicas=count)))
        elif what == "spec":
            spec = self.make.job(
                kind="service", service={"port": 1, "replicas": self.draw((1, 3))}, command=f"v{self.world.seq}"
            ).spec
            self.world.turn(self.world.wish_of("s1", ServiceUpdated(by="u1", at=at, spec=spec)))
        else:
            self.world.turn(self.world.wish_of("s1", ServiceAsked(by="u1", at=at)))

    def drain(self) -> None:
        node = self.draw(NODES)
        self.world.wish("undrain" if node in self.draining else "drain", node)
        self.draining ^= {node}

    def crash(self) -> None:
        """End the scheduler when it has recorded some of what it had just decided; the next one reads the log."""
        world = self.world
        at = self.make.at(world.now).at
        fact = world.wish_of("s1", ServiceUpdated(by="u1", at=at, replicas=self.draw((1, 2, 3))))
        effects = handle(world.state, Batch(facts=(fact,)), self.make.at(world.now))
        for decision in effects.records:
            if self.draw((True, False)):
                world._append(lambda seq, job=decision.job: Recorded(seq, job, 1))
        self.take_over()

    def take_over(self) -> None:
        world, replay = self.world, Replay()
        for entry in world.log:
            replay.feed(entry)
        world.state = State(world.limits, self.make.at(world.now))
        world.looked_up = ()
        fleet = tuple(one for one in world.fleet if isinstance(one, NodeRecorded))
        world.turn(*replay.facts(), fleet=fleet)
        self.beat()

    def calm_down(self) -> None:
        """Let everything go well from now on, for a while."""
        if len(self.draining) == len(NODES):
            self.world.wish("undrain", NODES[0])
            self.draining.discard(NODES[0])
        for _ in range(60):
            for job in self.replicas(JobState.PLACED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING):
                self._go_on(job)
            self.wait(10)

    def _go_on(self, job: Job) -> None:
        said = None
        if job.cancel_requested_at is not None or job.state is JobState.FINISHING:
            said = self.make.finished(state=AttemptState.CANCELLED, s=self.world.now)
        elif job.state is not JobState.RUNNING:
            said = self.make.running(s=self.world.now)
        if said is not None:
            self.world.turn(self.world.report(job.attempts[-1].node, job.id, said))


def going_on(job: Job) -> list[Any]:
    return [one for one in job.members if one.state is not JobState.FINISHING]


def running(job: Job) -> set[str]:
    return {one.job_id for one in job.members if one.state is JobState.RUNNING}


def check_story(world: Any) -> None:
    """Check every two events of the service that follow each other."""
    story = [one.job for one in world.log if isinstance(one, Recorded) and one.job.id == "s1"]
    inputs = [one for one in world.log if not isinstance(one, Recorded)]
    by_itself = {one.job_id for one in inputs if isinstance(one.event, Cancel)}
    by_itself |= {one.job_id for one in inputs if isinstance(getattr(one.event, "data", None), AttemptFinishing)}
    for before, after in pairwise(story):
        assert after.state in {to for found in crew.PARENT_MOVES[before.state].values() for to in found}
        assert after.attempt >= before.attempt
        assert len({one.job_id for one in after.members}) == len(after.members)
        assert len({one.index for one in after.members}) == len(after.members)
        if after.is_terminal or after.cancel_requested_at:
            continue
        assert len(going_on(after)) <= max(after.replicas + 1, len(going_on(before)))
        told = running(before) - running(after) - by_itself
        told = {one.job_id for one in after.members if one.job_id in told}  # told to stop, and not ended by itself
        if told:
            assert len(running(after)) >= after.replicas


@settings(
    max_examples=60,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_whatever_happens_a_service_comes_to_have_the_replicas_that_are_wanted(
    make: SimpleNamespace, data: st.DataObject
):
    fleet = Fleet(make, data)
    fleet.beat()
    world = fleet.world
    world.turn(world.create(make.job("s1", kind="service", service={"port": 1, "replicas": 2})))
    for _ in range(data.draw(st.integers(0, 20))):
        fleet.step()
    fleet.calm_down()
    job = fleet.job()
    assert [one.state for one in job.members] == [JobState.RUNNING] * job.spec.service.replicas
    assert {one.revision for one in job.members} <= {job.revision}
    assert {one.node for one in job.members}.isdisjoint(fleet.draining)
    assert {one.job.id for one in fleet.world.state.jobs.values()} == {"s1", *(one.job_id for one in job.members)}
    check_story(world)
    events = len(world.events)
    fleet.take_over()
    world.settle()
    assert len(world.events) == events  # whoever reads the log believes the same, and has nothing to decide
    world.turn(world.cancel("s1"))
    world.settle()
    fleet.calm_down()
    assert fleet.job().state is JobState.CANCELLED
    assert world.state.jobs == {}
    ends = [one.job.id for one in world.log if isinstance(one, Recorded) and one.job.state in JOB_TERMINAL]
    assert len(ends) == len(set(ends))
    assert JobEventName.CANCELLED.value in [name for job_id, name in world.events if job_id == "s1"]
