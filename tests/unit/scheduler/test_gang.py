"""Gangs: all members at once or none, and one end for all."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.scheduler.core import gang
from services.scheduler.core.limits import Limits
from shared.fleet import Quota
from shared.job import Job
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, EndReason, JobState, PendingCode

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


def _beat(world: Any) -> None:
    for node in tuple(world.state.nodes.values()):
        held = tuple((job_id, world.job(job_id).attempt) for job_id in node.jobs)
        world.hear(node.id, held=held)


def _places(count: int) -> list[Any]:
    return [SimpleNamespace(node="n1", gpus=(), score={}) for _ in range(count)]
