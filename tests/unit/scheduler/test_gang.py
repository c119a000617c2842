"""Gangs: all members at once or none, and one end for all."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core import gang
from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Recorded
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Limits
from services.scheduler.core.replay import Replay
from shared.fleet import Quota, Usage
from shared.job import BlobRef, Job, OutputsRef
from shared.spec import GIB, JobSpec
from shared.states import JOB_TERMINAL, AttemptState, EndReason, JobState, PendingCode

ROLES = {"server": {"count": 1, "command": "serve"}, "worker": {"count": 2, "resources": {"cpus": 3}}}


@pytest.fixture
def world(make: SimpleNamespace) -> Any:
    return make.World()


def gang_job(make: SimpleNamespace, job_id: str = "g1", **spec: Any) -> Job:
    wanted = {"on_failure": "stop", "roles": ROLES} | spec.pop("gang", {})
    return make.job(job_id, kind="gang", gang=wanted, **spec)


def start(world: Any, make: SimpleNamespace, *, nodes: int = 3, **spec: Any) -> Job:
    """Hand in a gang and let it be placed on as many nodes of 4 CPUs as it takes."""
    for number in range(nodes):
        world.hear(f"n{number + 1}")
    world.turn(world.create(gang_job(make, **spec)))
    world.settle()
    return world.job("g1")


def report(world: Any, make: SimpleNamespace, rank: int, data: Any) -> None:
    member = world.job("g1").members[rank]
    world.turn(world.report(member.node, member.job_id, data))
    world.settle()


def states(world: Any) -> list[JobState]:
    return [world.job(one.job_id).state for one in world.job("g1").members]


def test_members_take_from_the_job_what_their_role_does_not_name_and_know_their_place():
    wanted = {"kind": "gang", "runtime": "process", "command": "work", "env": {"A": "1"}, "gang": {"roles": ROLES}}
    spec = JobSpec.model_validate(wanted | {"notify": [{"email": "a@b"}]})
    server, first, second = gang.member_specs(spec)
    assert (server.command, first.command) == ("serve", "work")
    assert (server.resources.cpus, second.resources.cpus) == (1, 3)
    assert second.env == {
        "A": "1",
        "WHERRY_ROLE": "worker",
        "WHERRY_INDEX": "1",
        "WHERRY_RANK": "2",
        "WHERRY_GANG_SIZE": "3",
    }
    assert second.kind == "run"
    assert second.notify == ()


def test_all_members_are_placed_in_one_turn_each_as_a_job_of_its_own(world: Any, make: SimpleNamespace):
    job = start(world, make)
    assert job.state is JobState.PLACED
    assert [one.role for one in job.members] == ["server", "worker", "worker"]
    assert len({one.node for one in job.members if one.role == "worker"}) == 2  # 3 of 4 CPUs each
    assert states(world) == [JobState.PLACED] * 3
    assert all(world.job(one.job_id).member_of.gang_id == "g1" for one in job.members)


def test_a_gang_that_does_not_fit_at_once_holds_nothing_and_says_so(world: Any, make: SimpleNamespace):
    job = start(world, make, nodes=1)
    assert (job.state, job.members) == (JobState.QUEUED, ())
    assert all(not node.jobs for node in world.state.nodes.values())
    for second in range(1, 8):
        world.now = second
        world.hear("n1")
        world.tick(second)
    assert [reason.code for reason in world.job("g1").pending] == [PendingCode.GANG]


def test_a_smaller_job_goes_first_while_the_gang_waits_for_room(world: Any, make: SimpleNamespace):
    start(world, make, nodes=1)
    world.turn(world.create(make.job("small", created_s=1)))
    world.settle()
    assert world.job("small").state is JobState.PLACED


def test_the_gang_runs_when_all_members_do_and_succeeds_when_all_have(world: Any, make: SimpleNamespace):
    start(world, make)
    report(world, make, 0, make.running())
    assert world.job("g1").state is JobState.PLACED
    report(world, make, 1, make.running())
    report(world, make, 2, make.running())
    assert world.job("g1").state is JobState.RUNNING
    for rank in range(3):
        report(world, make, rank, make.finished())
    done = world.job("g1")
    assert (done.state, done.tries, done.losses) == (JobState.SUCCEEDED, 1, 0)
    assert world.state.jobs == {}
    assert [name for job_id, name in world.events if job_id == "g1"] == [
        "placed",
        "running",
        "remarked",
        "remarked",
        "succeeded",
    ]


def test_one_member_that_fails_ends_all_and_the_gang_says_which(world: Any, make: SimpleNamespace):
    start(world, make)
    for rank in range(3):
        report(world, make, rank, make.running())
    report(world, make, 1, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE))
    job = world.job("g1")
    assert job.state is JobState.RUNNING
    assert "worker-0 has failed" in job.remarks[-1]
    assert all(world.job(job.members[rank].job_id).cancel_requested_at for rank in (0, 2))
    for rank in (0, 2):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.error.reason, job.tries) == (JobState.FAILED, EndReason.EXIT_CODE, 1)
    assert job.error.message.startswith("member worker-0: ")
    stopped = world.job(job.members[0].job_id)
    assert (stopped.state, stopped.error.reason) == (JobState.CANCELLED, EndReason.GANG_FAILED)


def test_a_gang_that_may_restart_begins_anew_with_other_members(world: Any, make: SimpleNamespace):
    first = start(world, make, max_attempts=2, gang={"on_failure": "restart"})
    for rank in range(3):
        report(world, make, rank, make.running())
    report(world, make, 1, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE))
    for rank in (0, 2):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED))
    assert world.job("g1").state is JobState.QUEUED
    world.now = 60
    for number in (1, 2, 3):
        world.hear(f"n{number}")
    world.settle()
    again = world.job("g1")
    assert (again.state, again.attempt, again.tries) == (JobState.PLACED, 2, 1)
    assert {one.job_id for one in again.members}.isdisjoint(one.job_id for one in first.members)


def test_a_lost_machine_is_not_charged_to_the_user_and_all_are_placed_again(world: Any, make: SimpleNamespace):
    job = start(world, make)
    for rank in range(3):
        report(world, make, rank, make.running())
    lost = job.members[2]
    report(world, make, 2, make.finished(state=AttemptState.LOST, reason=EndReason.RUNTIME_ERROR))
    assert world.job(lost.job_id).state is JobState.FAILED  # never tried again by itself
    # A peer that failed because of that does not make it the job's fault.
    report(world, make, 0, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE))
    report(world, make, 1, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.tries, job.losses) == (JobState.QUEUED, 0, 1)


def run_until(world: Any, job: Job, silent: str, seconds: range) -> None:
    """Let time pass with all nodes of a gang heard but one; all others have their members."""
    for second in seconds:
        world.now = second
        for other in {one.node for one in job.members} - {silent}:
            held = tuple((one.job_id, 1) for one in job.members if one.node == other)
            world.hear(other, held=held)
        world.tick(second)
        world.settle()


def one_on_each_node(world: Any, make: SimpleNamespace, *, max_attempts: int = 1, **gang: Any) -> Job:
    """Start a gang of three on three nodes, all members running."""
    roles = {"worker": {"count": 3, "resources": {"cpus": 3}}}
    start(world, make, gang={"roles": roles} | gang, max_attempts=max_attempts)
    for rank in range(3):
        report(world, make, rank, make.running())
    assert len({one.node for one in world.job("g1").members}) == 3
    return world.job("g1")


def test_a_peer_that_fails_before_the_lost_machine_is_given_up_does_not_make_it_the_jobs_fault(
    world: Any, make: SimpleNamespace
):
    job = one_on_each_node(world, make)
    silent = job.members[2]
    run_until(world, job, silent.node, range(1, 9))
    for rank in (0, 1):  # they hear no more of it, and its node is not given up yet
        report(world, make, rank, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE, s=8))
    assert world.job(silent.job_id).cancel_requested_at is not None
    run_until(world, job, silent.node, range(9, 60))
    job = world.job("g1")
    assert (job.state, job.tries, job.losses) == (JobState.QUEUED, 0, 1)
    [first] = job.attempts
    assert (first.state, first.error.reason, first.node) == (AttemptState.LOST, EndReason.NODE_LOST, silent.node)
    assert first.error.message.startswith(f"member worker-2: node name-{silent.node} was not heard for ")
    assert job.remarks[-1] == f"round 1 is over: {first.error.message}; all begin anew"


def test_a_machine_that_is_lost_after_a_peer_has_failed_is_not_why(world: Any, make: SimpleNamespace):
    job = one_on_each_node(world, make)
    run_until(world, job, "", range(1, 9))
    report(world, make, 0, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE, s=8))
    run_until(world, job, "", range(9, 12))  # its node is still there to hear that it is to stop
    report(world, make, 1, make.finished(state=AttemptState.CANCELLED, s=12))
    run_until(world, job, job.members[2].node, range(12, 60))
    job = world.job("g1")
    assert (job.state, job.tries, job.error.reason) == (JobState.FAILED, 1, EndReason.EXIT_CODE)
    assert job.error.message.startswith("member worker-0: ")
    assert [one for one in job.remarks if "the others are stopped" in one] == list(job.remarks[:1])


@pytest.mark.parametrize(("on_loss", "state"), [("stop", JobState.FAILED), ("restart", JobState.QUEUED)])
def test_what_follows_the_loss_of_a_machine_is_for_the_user_to_say(
    world: Any, make: SimpleNamespace, on_loss: str, state: JobState
):
    job = one_on_each_node(world, make, on_loss=on_loss, on_failure="restart", max_attempts=3)
    lost = job.members[2]
    run_until(world, job, lost.node, range(1, 60))
    assert all(world.job(job.members[rank].job_id).cancel_requested_at for rank in (0, 1))
    for rank in (0, 1):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED, s=60))
    job = world.job("g1")
    assert job.state is state
    said = job.error if job.is_terminal else job.attempts[-1].error
    assert said.reason is EndReason.NODE_LOST
    assert said.message.startswith(f"member worker-2: node name-{lost.node} was not heard for ")
    told = [one for one in job.remarks if one.startswith(f"member worker-2 has failed (node name-{lost.node} was ")]
    assert len(told) == 1
    assert ("all begin anew" in job.remarks[-1]) is (on_loss == "restart")


def test_a_drain_moves_a_gang_also_where_a_loss_would_end_it(world: Any, make: SimpleNamespace):
    one_on_each_node(world, make, on_loss="stop")
    report(world, make, 2, make.finished(state=AttemptState.LOST, reason=EndReason.NODE_DRAINED))
    for rank in (0, 1):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.tries, job.losses) == (JobState.QUEUED, 0, 0)


def test_a_gang_whose_members_do_not_all_run_in_time_is_given_up_and_placed_anew(world: Any, make: SimpleNamespace):
    start(world, make, gang={"deadline": 20})
    report(world, make, 0, make.running())
    for second in (10, 21):
        world.now = second
        for number in (1, 2, 3):
            world.hear(
                f"n{number}", held=tuple((one.job_id, 1) for one in world.job("g1").members if one.node == f"n{number}")
            )
    world.settle()
    assert all(world.job(one.job_id).cancel_requested_at for one in world.job("g1").members)
    for rank in range(3):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED, s=22))
    job = world.job("g1")
    assert (job.state, job.losses, job.attempts[-1].error.reason) == (JobState.QUEUED, 1, EndReason.GANG_TIMEOUT)


def test_a_cancelled_gang_stops_its_members_and_ends_cancelled(world: Any, make: SimpleNamespace):
    start(world, make)
    for rank in range(3):
        report(world, make, rank, make.running())
    world.turn(world.cancel("g1"))
    world.settle()
    assert all(world.job(one.job_id).cancel_requested_at for one in world.job("g1").members)
    for rank in range(3):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.error.reason) == (JobState.CANCELLED, EndReason.CANCELLED_BY_USER)
    assert job.remarks == ()  # no member is to blame


def test_a_member_that_its_gang_does_not_name_is_stopped(world: Any, make: SimpleNamespace):
    # A scheduler died after it had recorded a member, before it recorded the gang.
    world.hear("n1", cpus=4)
    waiting = gang_job(make)
    placed, members = gang.place(waiting, _places(3), make.at(0).at, Limits())
    assert placed.job.state is JobState.PLACED
    world.turn(world.create(waiting), world.create(members[0]))
    world.settle()
    assert world.job(members[0].id).cancel_requested_at is not None


def test_a_member_that_was_never_recorded_fails_its_round(world: Any, make: SimpleNamespace):
    # A scheduler died after it had recorded the gang and one member.
    world.hear("n1", cpus=4)
    placed, members = gang.place(gang_job(make), _places(3), make.at(0).at, Limits())
    world.turn(world.create(placed.job), world.create(members[0]))
    world.tick(1)
    world.settle()
    report(world, make, 0, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.losses) == (JobState.QUEUED, 1)


def test_how_a_member_ended_before_a_restart_is_looked_up(world: Any, make: SimpleNamespace):
    world.hear("n1", cpus=4)
    placed, members = gang.place(gang_job(make), _places(3), make.at(0).at, Limits())
    ended = members[2].model_copy(update={"state": JobState.SUCCEEDED})
    world.latest[ended.id] = ended  # only in the log: the snapshot has what is active
    world.turn(world.create(placed.job), world.create(members[0]), world.create(members[1]))
    world.tick(1)
    world.settle()
    for rank in (0, 1):
        report(world, make, rank, make.finished())
    assert world.job("g1").state is JobState.SUCCEEDED


def test_a_quota_counts_all_members(world: Any, make: SimpleNamespace):
    world.state.set_quota("u1", Quota(cpus=6))
    job = start(world, make)  # needs 7
    assert job.state is JobState.QUEUED
    world.state.set_quota("u1", Quota(cpus=7, running=3))
    world.settle()
    assert world.job("g1").state is JobState.PLACED
    assert world.state.shares.holding("u1").jobs == 3


def test_a_gang_that_has_waited_for_long_is_let_through(make: SimpleNamespace):
    world = make.World(Limits(reserve_outright_s=60))
    for number in (1, 2):
        world.hear(f"n{number}")
    for number in range(4):
        world.turn(world.create(make.job(f"old{number}", resources={"cpus": 2, "memory": GIB})))
        world.settle()
    world.turn(world.create(gang_job(make, gang={"roles": {"worker": {"count": 2, "resources": {"cpus": 4}}}})))
    world.settle()
    world.turn(world.create(make.job("late", created_s=1)))
    world.settle()
    for second in range(1, 70):
        world.now = second
        _beat(world)
        world.tick(second)
    for number in range(4):
        assert world.job("late").state is JobState.QUEUED
        old = world.job(f"old{number}")
        world.turn(world.report(old.attempts[-1].node, old.id, make.finished(s=70)))
        world.settle()
    assert world.job("g1").state is JobState.PLACED


def test_a_gang_that_could_never_run_holds_up_nobody(make: SimpleNamespace):
    world = make.World(Limits(reserve_outright_s=60))
    world.hear("n1")
    world.turn(world.create(gang_job(make)))
    for second in range(1, 70):
        world.now = second
        _beat(world)
        world.tick(second)
    world.turn(world.create(make.job("late", created_s=70)))
    world.settle()
    assert world.job("late").state is JobState.PLACED


def test_an_exclusive_gang_of_which_a_member_may_still_run_is_not_placed_again(world: Any, make: SimpleNamespace):
    start(world, make, exclusive=True, max_attempts=3, gang={"on_failure": "restart"})
    for rank in range(3):
        report(world, make, rank, make.running())
    report(world, make, 0, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE))
    report(world, make, 1, make.finished(state=AttemptState.FAILED, reason=EndReason.UNKILLABLE))
    report(world, make, 2, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert (job.state, job.error.reason) == (JobState.FAILED, EndReason.UNKILLABLE)


def test_an_exclusive_gang_waits_until_what_a_silent_node_runs_has_certainly_ended(make: SimpleNamespace):
    world = make.World(Limits(fence_unknown_s=120))
    job = start(world, make, exclusive=True, gang={"on_failure": "restart"}, max_attempts=2)
    for rank in range(3):
        report(world, make, rank, make.running())
    crashed = make.World(Limits(fence_unknown_s=120))  # this one does not know which lease was granted
    crashed.latest, crashed.seq = dict(world.latest), world.seq
    facts = [crashed.create(world.job(one)) for one in ("g1", *(one.job_id for one in job.members))]
    crashed.turn(*facts)
    silent = job.members[2]
    for rank in (0, 1):
        crashed.turn(
            crashed.report(
                job.members[rank].node,
                job.members[rank].job_id,
                make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE),
            )
        )
        crashed.settle()
    assert crashed.job(silent.job_id).cancel_requested_at is not None
    for second in range(1, 115):
        crashed.now = second
        for other in {"n1", "n2", "n3"} - {silent.node}:
            crashed.hear(other)
        crashed.tick(second)
        assert not crashed.job(silent.job_id).is_terminal, second
    for second in range(115, 160):
        crashed.tick(second)
    assert crashed.job(silent.job_id).is_terminal


def test_a_gang_that_was_given_up_late_stays_so_when_its_members_run_after_all(world: Any, make: SimpleNamespace):
    start(world, make, gang={"deadline": 20})
    world.tick(21)
    world.settle()
    for rank in range(3):
        report(world, make, rank, make.running(s=22))
    assert world.job("g1").state is not JobState.RUNNING
    for rank in range(3):
        report(world, make, rank, make.finished(state=AttemptState.CANCELLED, s=23))
    job = world.job("g1")
    assert (job.state, job.tries, job.losses) == (JobState.QUEUED, 0, 1)


def test_roles_that_suit_different_nodes_are_not_said_to_fit_nowhere(make: SimpleNamespace):
    world = make.World()
    world.hear("n1", cpus=8, memory=4 * GIB)
    world.hear("n2", cpus=1, memory=64 * GIB)
    roles = {
        "thinks": {"resources": {"cpus": 8, "memory": GIB}},
        "keeps": {"resources": {"cpus": 1, "memory": 60 * GIB}},
    }
    world.turn(world.create(make.job("before", resources={"cpus": 1, "memory": 50 * GIB})))
    world.settle()
    world.turn(world.create(gang_job(make, gang={"roles": roles})))
    for second in range(1, 9):
        world.now = second
        world.hear("n1", cpus=8, memory=4 * GIB)
        world.hear("n2", cpus=1, memory=64 * GIB, held=(("before", 1),))
        world.tick(second)
    assert PendingCode.MEMORY in [reason.code for reason in world.job("g1").pending]
    assert world.state.jobs["g1"].never is False
    world.turn(world.create(make.job("after", created_s=9)))
    world.settle()
    assert world.state.reservation.job_id == "g1"


def test_room_that_others_than_us_use_is_not_waited_for_with_all_doors_closed(make: SimpleNamespace):
    world = make.World(Limits(reserve_outright_s=60))
    taken = Usage(memory_available=4 * GIB, disk_free=1000 * GIB)  # another program has 12 of 16 GiB
    for node in ("n1", "n2"):
        world.hear(node, usage=taken)
    wanted = {"roles": {"worker": {"count": 2, "resources": {"memory": 8 * GIB}}}}
    world.turn(world.create(gang_job(make, gang=wanted)))
    for second in range(1, 70):
        world.now = second
        for node in ("n1", "n2"):
            world.hear(node, usage=taken)
        world.tick(second)
    world.turn(world.create(make.job("late", created_s=70)))
    world.settle()
    assert world.job("late").state is JobState.PLACED


def test_a_turn_places_no_more_members_than_it_places_jobs(make: SimpleNamespace):
    world = make.World(Limits(placements_per_turn=10))
    world.hear("n1", cpus=1000, memory=1000 * GIB, disk=10_000 * GIB)
    wanted = {"roles": {"worker": {"count": 8}}}
    effects = world.turn(*(world.create(gang_job(make, f"g{number}", gang=wanted)) for number in range(5)))
    assert sum(one.job.member_of is not None for one in effects.records) == 16
    assert effects.again


def _beat(world: Any) -> None:
    for node in tuple(world.state.nodes.values()):
        held = tuple((job_id, world.job(job_id).attempt) for job_id in node.jobs)
        world.hear(node.id, held=held)


def _places(count: int) -> list[Any]:
    return [SimpleNamespace(node="n1", gpus=(), score={}) for _ in range(count)]


class Chaos:
    """Gangs under everything that may happen: what nodes say in any order, losses, cancels, and a new scheduler."""

    NODES = ("n1", "n2", "n3", "n4")

    def __init__(self, make: SimpleNamespace, data: st.DataObject) -> None:
        self.make, self.data = make, data
        self.world = make.World(LIMITS)
        self.world.may_conflict = True
        self.lost: set[str] = set()

    def draw(self, choices: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(list(choices)))

    def active(self) -> list[Job]:
        return [job for job in self.world.latest.values() if not job.is_terminal]

    def step(self) -> None:
        what = self.draw(("report", "report", "report", "beats", "tick", "cancel", "lose", "find", "crash", "drain"))
        getattr(self, f"_{what}")()

    def _report(self) -> None:
        running = [job for job in self.world.latest.values() if job.attempts]
        if running:
            job = self.draw(running)
            self.world.turn(self.world.report(job.attempts[-1].node, job.id, self._word(job)))

    def _word(self, job: Job) -> Any:
        make, number = self.make, job.attempt
        failed = [EndReason.EXIT_CODE, EndReason.RUNTIME_ERROR, EndReason.UNKILLABLE, EndReason.NODE_DRAINED]
        return self.draw(
            (
                make.starting(number),
                make.running(number),
                make.running(number),
                make.finishing(number),
                make.finished(number),
                make.finished(number, AttemptState.FAILED, self.draw(failed)),
                make.finished(number, AttemptState.CANCELLED),
                make.finished(number, AttemptState.TIMED_OUT),
            )
        )

    def _beats(self) -> None:
        for node_id in self.NODES:
            if node_id not in self.lost:
                self.beat(node_id, self.draw(("all", "all", "all", "none")))

    def beat(self, node_id: str, what: str) -> None:
        node = self.world.state.nodes.get(node_id)
        there = node.jobs if node and what == "all" else ()
        self.world.hear(node_id, held=tuple((job_id, self.world.job(job_id).attempt) for job_id in there))
        desired_state(self.world.state, node_id, 1, self.make.at(self.world.now))

    def _tick(self) -> None:
        self.world.tick(self.world.now + self.draw((1, 1, 4, 30)))

    def _cancel(self) -> None:
        if active := self.active():
            self.world.turn(self.world.cancel(self.draw(active).id))

    def _lose(self) -> None:
        self.lost.add(self.draw(self.NODES))

    def _find(self) -> None:
        self.lost.clear()

    def _drain(self) -> None:
        node_id = self.draw(self.NODES)
        if node_id in self.world.state.nodes:
            self.world.wish(self.draw(("drain", "undrain")), node_id, deadline_s=self.draw((0.0, 20.0)))

    def _crash(self) -> None:
        """Begin anew from the log. The last that was decided may have been recorded in part."""
        world = self.world
        world.log = self._recorded(self.draw(("all", "all", "no members", "one member", "no gang")))
        replay = Replay()
        for entry in world.log:
            replay.feed(entry)
        world.seq = world.log[-1].seq
        recorded = [one for one in world.log if isinstance(one, Recorded)]
        world.latest = {one.job.id: one.job for one in recorded}
        world.seqs = {one.job.id: one.seq for one in recorded}
        world.state = State(LIMITS, self.make.at(world.now))
        world.state.position, world.looked_up = replay.position, ()
        world.turn(*replay.facts(), fleet=tuple(world.fleet))

    def _recorded(self, what: str) -> list[Any]:
        """Return the log as it is, or as it was when a round had just been decided and *what* of it recorded."""
        log = self.world.log
        placed = [n for n, one in enumerate(log) if _is_new_round(one)]
        if what == "all" or not placed:
            return log
        first = placed[-1]
        last, round_ = log[first], log[first].job.attempt
        members = [one for one in log[first + 1 :] if _is_member_of(one, last.job.id, round_)]
        parts = {"no members": [last], "one member": [last, *members[:1]], "no gang": members[:2]}
        return [*log[:first], *parts[what]]

    def end(self) -> None:
        """Let all nodes be well and do as they are told, until all is over."""
        self.lost.clear()
        for node_id in self.world.state.nodes:
            self.world.wish("undrain", node_id)
        for _ in range(400):
            if not self.active():
                return
            self.world.tick(self.world.now + 4)
            for node_id in self.NODES:
                self.beat(node_id, "all")
                answer = desired_state(self.world.state, node_id, 1, self.make.at(self.world.now))
                self._obey(node_id, answer)
            self.world.settle()
        raise AssertionError(f"never ends: {[(job.id, job.state, job.pending) for job in self.active()]}")

    def _obey(self, node_id: str, answer: Any) -> None:
        make = self.make
        for one in answer.assignments:
            if one.action == "stop":
                ended = make.finished(one.attempt, AttemptState.CANCELLED, one.reason)
                self.world.turn(self.world.report(node_id, one.job_id, ended))
            elif one.action == "keep":
                job = self.world.job(one.job_id)
                word = make.finished if job.state in (JobState.RUNNING, JobState.FINISHING) else make.running
                self.world.turn(self.world.report(node_id, one.job_id, word(one.attempt)))


def _is_new_round(entry: Any) -> bool:
    return isinstance(entry, Recorded) and bool(entry.job.members) and entry.job.state is JobState.PLACED


def _is_member_of(entry: Any, gang_id: str, number: int) -> bool:
    """Return whether *entry* is the first about a member of that round."""
    place = entry.job.member_of if isinstance(entry, Recorded) else None
    return place is not None and (place.gang_id, place.round, entry.job.state) == (gang_id, number, JobState.PLACED)


LIMITS = Limits(losses_max=3, backoff_failure_s=2, backoff_failure_max_s=8, accept_s=60, obey_s=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_gangs_end_once_with_all_their_members_and_hold_nothing(
    make: SimpleNamespace, data: st.DataObject
):
    chaos = Chaos(make, data)
    world = chaos.world
    for node_id in chaos.NODES:
        chaos.beat(node_id, "all")
    for number in range(data.draw(st.integers(1, 2))):
        spec = {"max_attempts": 2, "exclusive": data.draw(st.booleans()), "resources": {"cpus": 2, "memory": GIB}}
        wanted = {name: chaos.draw(("stop", "restart")) for name in ("on_failure", "on_loss")}
        wanted |= {"deadline": chaos.draw((20, 1800))}
        world.turn(world.create(gang_job(make, f"g{number}", gang=wanted, **spec)))
    world.turn(world.create(make.job("alone", max_attempts=2)))
    for _ in range(data.draw(st.integers(0, 25))):
        chaos.step()
        if data.draw(st.booleans()):
            world.settle()
    chaos.end()
    for job in world.latest.values():
        assert job.is_terminal
        assert all(one.state in JOB_TERMINAL for one in job.members)
    ends = [one.job.id for one in world.log if isinstance(one, Recorded) and one.job.is_terminal]
    assert len(ends) == len(set(ends))
    assert world.state.jobs == {}
    assert all((node.ucpus, node.memory, node.disk) == (0, 0, 0) for node in world.state.nodes.values())
    assert world.state.shares.holding("u1").jobs == 0
    gangs = world.state.gangs
    assert not gangs.placed
    assert not any((gangs._members, gangs._asked, gangs._missing))


def start_served(world: Any, make: SimpleNamespace) -> None:
    """Start a gang of a server that never ends by itself and two workers; all run."""
    start(world, make, gang={"roles": ROLES | {"server": {"serves": True, "command": "serve"}}})
    for rank in range(3):
        report(world, make, rank, make.running())


@pytest.mark.parametrize("ended", [AttemptState.CANCELLED, AttemptState.FAILED])
def test_members_that_serve_are_stopped_once_the_others_have_succeeded_and_all_is_well(
    world: Any, make: SimpleNamespace, ended: AttemptState
):
    start_served(world, make)
    report(world, make, 1, make.finished())
    server = world.job(world.job("g1").members[0].job_id)
    assert server.cancel_requested_at is None  # a worker needs it yet
    report(world, make, 2, make.finished())
    assert world.job(server.id).cancel_requested_at is not None
    report(world, make, 0, make.finished(state=ended, reason=EndReason.EXIT_CODE))
    job = world.job("g1")
    assert (job.state, job.error, job.remarks, job.tries) == (JobState.SUCCEEDED, None, (), 1)


def test_what_a_gang_leaves_is_what_the_first_member_leaves_that_serves_nobody(world: Any, make: SimpleNamespace):
    start_served(world, make)
    left = {c: OutputsRef(manifest=BlobRef(sha256=c * 64, size=1), files=1, bytes=1) for c in "abc"}
    report(world, make, 1, make.finished(outputs=left["b"]))
    report(world, make, 2, make.finished(outputs=left["c"]))
    report(world, make, 0, make.finished(state=AttemptState.CANCELLED, outputs=left["a"]))
    assert world.job("g1").outputs == left["b"]


def test_a_member_that_serves_and_fails_while_it_is_needed_ends_all(world: Any, make: SimpleNamespace):
    start_served(world, make)
    report(world, make, 1, make.finished())
    report(world, make, 0, make.finished(state=AttemptState.FAILED, reason=EndReason.EXIT_CODE))
    report(world, make, 2, make.finished(state=AttemptState.CANCELLED))
    job = world.job("g1")
    assert job.state is JobState.FAILED
    assert job.error.message.startswith("member server-0: ")


def test_a_gang_in_which_all_serve_is_refused():
    with pytest.raises(ValueError, match="all roles serve"):
        JobSpec.model_validate({"kind": "gang", "command": "x", "gang": {"roles": {"server": {"serves": True}}}})
