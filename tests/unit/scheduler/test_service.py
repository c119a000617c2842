"""Services: replicas that are kept, replaced, exchanged one by one, and left out while nobody asks."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.scheduler.core import clocks, crew, service
from services.scheduler.core.desired import desired_state
from services.scheduler.core.explain import explain
from services.scheduler.core.facts import Input, read_fact
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Limits
from services.scheduler.core.replay import Replay
from shared.events import Event, JobChanged, ServiceAsked, ServiceUpdated
from shared.fleet import HeldAttempt
from shared.job import GangMember, Job
from shared.spec import JobSpec
from shared.states import AttemptState, EndReason, JobState, PendingCode

WELL_S = Limits().replica_well_s


@pytest.fixture
def world(make: SimpleNamespace) -> Any:
    return make.World()


def service_job(make: SimpleNamespace, **more: Any) -> Job:
    wanted = {"port": 8000, "replicas": 2} | more.pop("service", {})
    return make.job("s1", kind="service", service=wanted, **more)


def start(world: Any, make: SimpleNamespace, *, nodes: int = 3, run: bool = True, **more: Any) -> Job:
    """Hand in a service on nodes of 4 CPUs; its replicas run, if that is wanted."""
    for number in range(nodes):
        world.hear(f"n{number + 1}")
    world.turn(world.create(service_job(make, **more)))
    world.settle()
    if run:
        run_all(world, make)
    return world.job("s1")


def replicas(world: Any, *states: JobState) -> list[GangMember]:
    """Return the replicas that are in one of *states*, or all."""
    return [one for one in world.job("s1").members if not states or one.state in states]


def report(world: Any, member: GangMember, data: Any) -> None:
    world.turn(world.report(world.job(member.job_id).attempts[-1].node, member.job_id, data))
    world.settle()


def run_all(world: Any, make: SimpleNamespace) -> None:
    for one in replicas(world, JobState.PLACED, JobState.STARTING):
        report(world, one, make.running(s=world.now))


def end(world: Any, make: SimpleNamespace, member: GangMember, reason: EndReason | None = None) -> None:
    state = AttemptState.FAILED if reason else AttemptState.SUCCEEDED
    report(world, member, make.finished(state=state, reason=reason, s=world.now))


def end_stopped(world: Any, make: SimpleNamespace) -> None:
    """Let the replicas that were told to stop do so."""
    for one in replicas(world, JobState.FINISHING):
        report(world, one, make.finished(state=AttemptState.CANCELLED, s=world.now))


def wish(world: Any, make: SimpleNamespace, data: Any) -> None:
    world.turn(world.wish_of("s1", data))
    world.settle()


def update(world: Any, make: SimpleNamespace, **what: Any) -> None:
    wish(world, make, ServiceUpdated(by="u1", at=make.at(world.now).at, **what))


def ask(world: Any, make: SimpleNamespace) -> None:
    wish(world, make, ServiceAsked(by="u1", at=make.at(world.now).at))


def other_spec(make: SimpleNamespace, **more: Any) -> JobSpec:
    return service_job(make, command="better", **more).spec


def revisions(world: Any, *states: JobState) -> list[int]:
    return sorted(one.revision for one in replicas(world, *states))


# --- starting ------------------------------------------------------------------------------------------------------


def test_replicas_are_jobs_of_their_own_which_the_service_names(world: Any, make: SimpleNamespace):
    job = start(world, make, run=False, service={"replicas": 2}, notify=[{"email": "a@b.c"}], max_attempts=5)
    assert (job.state, job.replicas, len(job.members)) == (JobState.QUEUED, 2, 2)
    made = [world.job(one.job_id) for one in job.members]
    assert [one.state for one in made] == [JobState.PLACED] * 2
    assert [(one.member_of.gang_id, one.member_of.role, one.member_of.index) for one in made] == [
        ("s1", "replica", 0),
        ("s1", "replica", 1),
    ]
    spec = made[0].spec
    assert (spec.kind, spec.service, spec.notify, spec.max_attempts) == ("run", None, (), 1)
    assert Job.from_bytes(made[0].to_bytes()) == made[0]  # what is recorded can be read again


def test_a_service_runs_as_soon_as_one_replica_does(world: Any, make: SimpleNamespace):
    job = start(world, make, run=False)
    first, second = job.members
    report(world, first, make.starting())
    assert world.job("s1").state is JobState.QUEUED
    report(world, first, make.running())
    assert world.job("s1").state is JobState.RUNNING
    assert [one.state for one in replicas(world)] == [JobState.RUNNING, JobState.PLACED]
    assert [name for job_id, name in world.events if job_id == "s1"].count("running") == 1
    end(world, make, second, EndReason.EXIT_CODE)
    end(world, make, first, EndReason.EXIT_CODE)
    assert world.job("s1").state is JobState.QUEUED
    assert world.events[-1][0] != "s1" or world.events[-1][1] == "requeued"


def test_replicas_are_spread_over_nodes_as_far_as_there_are_any(world: Any, make: SimpleNamespace):
    job = start(world, make, nodes=3, service={"replicas": 4})
    nodes = [one.node for one in job.members]
    assert len(set(nodes)) == 3
    assert max(nodes.count(node) for node in nodes) == 2
    scores = [world.job(one.job_id).attempts[-1].score for one in job.members]
    assert sum("other_replicas" in score for score in scores) == 1


def test_what_a_service_waits_for_is_what_its_replicas_wait_for(world: Any, make: SimpleNamespace):
    start(world, make, run=False, resources={"cpus": 64})
    for second in range(1, 8):
        world.now = second
        world.hear("n1")
        world.tick(second)
    world.settle()
    assert [reason.code for reason in world.job("s1").pending] == [PendingCode.CPUS]
    found = explain(world.state, world.state.jobs["s1"], make.at(world.now))
    assert "Of its 2 replicas none runs" in found.text
    assert "One that waits: It can never run" in found.text


def test_a_service_waits_for_what_it_needs_before_it_has_replicas(world: Any, make: SimpleNamespace):
    world.hear("n1")
    needed = "j" + "a" * 25
    world.turn(world.create(make.job(needed)), world.create(service_job(make, needs=[needed])))
    world.settle()
    assert not replicas(world)
    world.turn(world.report("n1", needed, make.finished()))
    world.settle()
    assert [one.state for one in replicas(world)] == [JobState.PLACED] * 2


def test_the_order_of_a_replica_says_whose_it_is_and_how_it_is_asked(world: Any, make: SimpleNamespace):
    job = start(world, make, nodes=1, run=False, service={"replicas": 1, "health": "/ready"})
    [given] = desired_state(world.state, "n1", 1, make.at(0)).assignments
    assert (given.order.job_id, given.order.parent) == (job.members[0].job_id, "s1")
    assert given.order.service.health == "/ready"
    assert given.order.map is None


# --- replacing -----------------------------------------------------------------------------------------------------


def test_a_replica_that_a_machine_lost_is_replaced_at_once(world: Any, make: SimpleNamespace):
    first = start(world, make).members[0]
    end(world, make, first, EndReason.AGENT_LOST_CONTAINER)
    job = world.job("s1")
    assert (job.state, len(job.members), job.losses, job.tries) == (JobState.RUNNING, 2, 1, 0)
    assert first.job_id not in {one.job_id for one in job.members}
    assert len(replicas(world, JobState.PLACED)) == 1


def test_machines_that_fail_again_and_again_are_not_tried_in_a_hot_loop(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 1})
    end(world, make, replicas(world)[0], EndReason.RUNTIME_ERROR)
    end(world, make, replicas(world)[0], EndReason.RUNTIME_ERROR)
    assert not replicas(world)
    assert world.job("s1").not_before == make.at(1).at


def test_a_replica_that_fails_by_itself_is_replaced_after_a_back_off_that_doubles(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 1})
    waits = []
    for _ in range(11):
        end(world, make, replicas(world)[0], EndReason.EXIT_CODE)
        job = world.job("s1")
        assert not job.members
        assert [reason.code for reason in job.pending] == [PendingCode.BACKOFF]
        wait_s = (job.not_before - make.at(world.now).at).total_seconds()
        world.now += wait_s - 0.1
        world.hear("n1")
        world.settle()
        assert not replicas(world)
        world.now += 0.2
        world.hear("n1")
        world.settle()
        run_all(world, make)
        waits.append(round(wait_s))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert "replica 0 has ended: because of exit_code" in world.job("s1").remarks[-1]


def test_an_image_that_is_not_there_is_tried_again_with_the_same_back_off(world: Any, make: SimpleNamespace):
    start(world, make, run=False, service={"replicas": 1})
    end(world, make, replicas(world)[0], EndReason.IMAGE_NOT_FOUND)
    job = world.job("s1")
    assert (job.members, job.not_before) == ((), make.at(1).at)


def test_a_program_that_ends_well_was_not_to_end_either(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 1})
    end(world, make, replicas(world)[0])
    assert world.job("s1").tries == 1
    assert "its program has ended" in world.job("s1").remarks[-1]


def test_what_a_replica_leaves_is_not_waited_for_and_its_end_is_charged_once(world: Any, make: SimpleNamespace):
    first = start(world, make).members[0]
    report(world, first, make.finishing(s=1))
    job = world.job("s1")
    assert (job.tries, job.not_before, len(job.members)) == (1, make.at(1).at, 2)
    world.now = 2
    world.hear("n1")
    world.settle()
    assert len(replicas(world, JobState.PLACED)) == 1
    end(world, make, first, EndReason.EXIT_CODE)
    job = world.job("s1")
    assert (job.tries, len(job.members), len(job.remarks)) == (1, 2, 1)


def test_the_back_off_begins_anew_after_a_replica_that_ran_well(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 1})
    for _ in range(3):
        end(world, make, replicas(world)[0], EndReason.EXIT_CODE)
        world.now += 10
        world.hear("n1")
        world.settle()
        run_all(world, make)
    world.now += WELL_S
    world.hear("n1", held=((replicas(world)[0].job_id, 1),))
    end(world, make, replicas(world)[0], EndReason.EXIT_CODE)
    job = world.job("s1")
    assert (job.tries, job.not_before) == (1, make.at(world.now + 1).at)


def test_a_replica_that_somebody_cancels_is_replaced_and_nothing_is_charged(world: Any, make: SimpleNamespace):
    first = start(world, make).members[0]
    world.turn(world.cancel(first.job_id))
    world.settle()
    assert world.job("s1").members[0].state is JobState.FINISHING
    assert len(replicas(world, JobState.PLACED)) == 1  # in its place
    end_stopped(world, make)
    job = world.job("s1")
    assert (job.tries, job.losses, len(job.members), job.remarks) == (0, 0, 2, ())


def test_before_a_node_is_drained_another_replica_runs_elsewhere(world: Any, make: SimpleNamespace):
    start(world, make, nodes=2)
    leaving = next(one for one in replicas(world) if one.node == "n1")
    world.hear("n3")
    world.wish("drain", "n1")
    world.tick(1)
    world.settle()
    assert world.job(leaving.job_id).cancel_requested_at is None
    [fresh] = replicas(world, JobState.PLACED)
    assert fresh.node == "n3"
    report(world, fresh, make.running())
    assert world.job(leaving.job_id).cancel_requested_at is not None
    assert len(replicas(world, JobState.RUNNING)) == 2
    end_stopped(world, make)
    assert len(replicas(world)) == 2
    assert world.job("s1").losses == 0


def test_a_replica_that_is_stopped_has_its_time_for_what_it_has_begun(world: Any, make: SimpleNamespace):
    start(world, make, nodes=1, service={"replicas": 1, "drain": 40})
    [one] = replicas(world)
    world.hear("n1", held=((one.job_id, 1),))
    update(world, make, replicas=0)
    [stop] = desired_state(world.state, "n1", 1, make.at(0)).assignments
    assert (stop.action, stop.grace_s) == ("stop", 45)


def test_no_drain_is_longer_than_a_node_has_for_obeying(make: SimpleNamespace):
    limits = Limits()
    spec = service_job(make, service={"drain": 86400}).spec
    assert service.grace_s(spec, limits) < limits.obey_s


# --- scaling -------------------------------------------------------------------------------------------------------


def test_more_replicas_are_made_at_once_and_surplus_ones_are_stopped(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, replicas=5)
    job = world.job("s1")
    assert (job.replicas, job.spec.service.replicas, job.revision, len(job.members)) == (5, 5, 0, 5)
    update(world, make, replicas=1)
    assert [one.state for one in replicas(world)].count(JobState.FINISHING) == 4
    assert len(replicas(world, JobState.RUNNING)) == 1  # what runs goes on, what does not goes first
    end_stopped(world, make)
    assert len(replicas(world)) == 1
    assert "updated" in [name for job_id, name in world.events if job_id == "s1"]


def test_a_service_of_no_replicas_waits_for_somebody_to_want_some(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, replicas=0)
    end_stopped(world, make)
    job = world.job("s1")
    assert (job.state, job.members, [one.code for one in job.pending]) == (JobState.QUEUED, (), [PendingCode.IDLE])
    ask(world, make)
    assert world.job("s1").replicas == 0  # a request changes that only where it is `idle` that took them
    update(world, make, replicas=1)
    run_all(world, make)
    assert world.job("s1").state is JobState.RUNNING


# --- revisions -----------------------------------------------------------------------------------------------------


def test_a_new_revision_is_rolled_out_one_by_one_without_ever_fewer_that_run(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 3})
    update(world, make, spec=other_spec(make, service={"replicas": 3}))
    assert world.job("s1").revision == 1
    for left in (3, 2, 1):
        [fresh] = replicas(world, JobState.PLACED)
        assert (fresh.revision, revisions(world, JobState.RUNNING).count(0)) == (1, left)
        assert world.job(fresh.job_id).spec.command == "better"
        report(world, fresh, make.running())
        assert len(replicas(world, JobState.RUNNING)) == 3
        end_stopped(world, make)
    assert revisions(world) == [1, 1, 1]


def test_a_revision_that_never_runs_takes_nobodys_place_and_the_service_says_so(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, spec=other_spec(make))
    for _ in range(4):
        [fresh] = replicas(world, JobState.PLACED)
        end(world, make, fresh, EndReason.UNHEALTHY)
        world.now += 20
        for number in (1, 2, 3):
            world.hear(f"n{number}", held=tuple((o.job_id, 1) for o in replicas(world) if o.node == f"n{number}"))
        world.settle()
    assert revisions(world, JobState.RUNNING) == [0, 0]
    assert world.job("s1").state is JobState.RUNNING
    assert "; the revision before keeps 2 replicas until one of the new runs" in world.job("s1").remarks[-1]


def test_an_update_while_another_is_under_way_supersedes_it(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, spec=other_spec(make))
    [second] = replicas(world, JobState.PLACED)
    update(world, make, spec=service_job(make, command="best").spec)
    assert world.job(second.job_id).cancel_requested_at is not None  # it never ran
    end_stopped(world, make)
    for _ in range(2):
        run_all(world, make)
        end_stopped(world, make)
    assert revisions(world) == [2, 2]
    assert {world.job(one.job_id).spec.command for one in replicas(world)} == {"best"}


def test_a_better_revision_is_tried_at_once_whatever_the_last_one_did(world: Any, make: SimpleNamespace):
    start(world, make, service={"replicas": 1}, run=False)
    for _ in range(3):
        end(world, make, replicas(world)[0], EndReason.EXIT_CODE)
        world.now += 5
        world.hear("n1")
        world.settle()
    end(world, make, replicas(world)[0], EndReason.EXIT_CODE)
    assert not replicas(world)
    update(world, make, spec=other_spec(make, service={"replicas": 1}))
    assert revisions(world, JobState.PLACED) == [1]


def test_a_spec_that_is_no_service_changes_nothing(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, spec=make.job("x").spec)
    assert world.job("s1").revision == 0


# --- idling --------------------------------------------------------------------------------------------------------


def hear_replicas(world: Any, make: SimpleNamespace, *, served: int = 0, in_flight: int = 0) -> None:
    """Let every node say how its replicas are asked."""
    for number in (1, 2, 3):
        node = f"n{number}"
        world.beats += 1
        beat = make.beat(node, seq=world.beats)
        held = tuple(
            HeldAttempt(job_id=one.job_id, attempt=1, state="running", served=served, in_flight=in_flight)
            for one in replicas(world)
            if one.node == node
        )
        world.turn(beats=(beat.model_copy(update={"attempts": held}),))
    world.tick(world.now)
    world.settle()


def test_a_service_that_nobody_asks_loses_its_replicas_and_a_request_brings_them_back(
    world: Any, make: SimpleNamespace
):
    start(world, make, service={"idle": 60})
    for second in range(10, 60, 10):
        world.now = second
        hear_replicas(world, make)
        assert len(replicas(world, JobState.RUNNING)) == 2
    world.now = 61
    hear_replicas(world, make)
    assert world.job("s1").replicas == 0
    end_stopped(world, make)
    job = world.job("s1")
    assert (job.state, job.spec.service.replicas, [one.code for one in job.pending]) == (
        JobState.QUEUED,
        2,
        [PendingCode.IDLE],
    )
    ask(world, make)
    assert world.job("s1").replicas == 2
    assert len(replicas(world, JobState.PLACED)) == 2


def test_a_service_that_is_asked_keeps_its_replicas(world: Any, make: SimpleNamespace):
    start(world, make, service={"idle": 60})
    for second in range(10, 200, 10):
        world.now = second
        hear_replicas(world, make, served=second // 30)
    assert len(replicas(world, JobState.RUNNING)) == 2
    for second in range(200, 300, 10):
        world.now = second
        hear_replicas(world, make, served=6, in_flight=1)  # one long request
    assert len(replicas(world, JobState.RUNNING)) == 2
    assert world.job("s1").replicas == 2


def test_what_a_node_says_of_replicas_that_it_does_not_have_keeps_no_service_awake(world: Any, make: SimpleNamespace):
    [one] = start(world, make, service={"idle": 60, "replicas": 1}).members
    other = "n1" if one.node != "n1" else "n2"
    for second in range(10, 80, 10):
        world.now = second
        hear_replicas(world, make)
        world.beats += 1
        held = HeldAttempt(job_id=one.job_id, attempt=1, state="running", in_flight=1)
        world.turn(beats=(make.beat(other, seq=world.beats).model_copy(update={"attempts": (held,)}),))
    assert world.job("s1").replicas == 0


def test_a_service_that_was_handed_in_with_replicas_of_others_is_none(make: SimpleNamespace):
    job = service_job(make)
    stolen = GangMember(
        job_id="other", role="replica", index=0, node="n1", state=JobState.RUNNING, placed_at=make.START
    )
    for handed_in, is_read in ((job, True), (job.model_copy(update={"members": (stolen,)}), False)):
        event = Event(id="e1", source="s", type="t", time=make.START, subject="s1", data=JobChanged(job=handed_in))
        assert (read_fact("wherry.job.u1.s1.created", 7, event) is not None) is is_read


def test_a_replica_that_takes_long_to_start_is_not_taken_away_before_it_was_of_use(world: Any, make: SimpleNamespace):
    start(world, make, service={"idle": 30, "replicas": 1}, run=False)
    world.now = 100
    hear_replicas(world, make)
    assert world.job("s1").replicas == 1
    run_all(world, make)
    world.now = 120
    hear_replicas(world, make)
    assert world.job("s1").replicas == 1
    world.now = 131
    hear_replicas(world, make)
    assert world.job("s1").replicas == 0


def test_a_service_whose_replicas_only_fail_is_not_tried_for_ever_when_nobody_asks(world: Any, make: SimpleNamespace):
    start(world, make, service={"idle": 60, "replicas": 1})
    for _ in range(20):
        for one in world.job("s1").members:
            end(world, make, one, EndReason.EXIT_CODE)
        world.now += 10
        hear_replicas(world, make)
        if world.job("s1").replicas == 0:
            break
    assert (world.job("s1").replicas, world.job("s1").members) == (0, ())
    assert 60 <= world.now < 150
    ask(world, make)
    for _ in range(5):
        world.now += 10
        hear_replicas(world, make)
    assert len(world.job("s1").members) == 1


# --- ending --------------------------------------------------------------------------------------------------------


def test_a_cancelled_service_stops_its_replicas_and_ends_when_they_have(world: Any, make: SimpleNamespace):
    start(world, make)
    world.turn(world.cancel("s1"))
    world.settle()
    job = world.job("s1")
    assert (job.state, job.is_terminal) == (JobState.RUNNING, False)
    assert [one.state for one in job.members] == [JobState.FINISHING] * 2
    end_stopped(world, make)
    job = world.job("s1")
    assert (job.state, job.members, job.error.reason) == (JobState.CANCELLED, (), EndReason.CANCELLED_BY_USER)
    assert world.state.jobs == {}


def test_a_service_whose_replicas_wait_is_cancelled_with_them(world: Any, make: SimpleNamespace):
    start(world, make, run=False, resources={"cpus": 64})
    world.turn(world.cancel("s1"))
    world.settle()
    assert world.job("s1").state is JobState.CANCELLED
    assert world.state.jobs == {}


def test_a_service_ends_by_a_limit_of_its_own_alone(world: Any, make: SimpleNamespace):
    assert (clocks.overdue_at(service_job(make)) - make.START).days > 36500
    start(world, make, timeouts={"total": 1000})
    world.now = 1001
    hear_replicas(world, make)
    end_stopped(world, make)
    assert world.job("s1").state is JobState.TIMED_OUT


# --- a scheduler that dies -----------------------------------------------------------------------------------------


def test_a_replica_that_its_service_does_not_name_is_stopped(world: Any, make: SimpleNamespace):
    # A scheduler died after it had recorded the replica, before it recorded the service.
    waiting = service_job(make)
    spec = crew.member_spec(waiting.spec)
    _, [orphan, *_] = crew.hire(waiting, "replica", spec, 2, make.at(0).at)
    world.turn(world.create(waiting), world.create(orphan))
    world.settle()
    assert world.job(orphan.id).state is JobState.CANCELLED
    assert len(replicas(world)) == 2
    assert orphan.id not in {one.job_id for one in replicas(world)}


def test_a_replica_that_was_never_recorded_is_made_anew(world: Any, make: SimpleNamespace):
    # A scheduler died after it had recorded the service and one replica.
    world.hear("n1")
    spec = crew.member_spec(service_job(make).spec)
    job, [first, second] = crew.hire(service_job(make), "replica", spec, 2, make.at(0).at)
    world.turn(world.create(job), world.create(first))
    world.tick(1)
    world.settle()
    named = {one.job_id for one in replicas(world)}
    assert (first.id in named, second.id in named, len(named)) == (True, False, 2)


def test_how_a_replica_ended_before_a_restart_is_looked_up(world: Any, make: SimpleNamespace):
    world.hear("n1")
    spec = crew.member_spec(service_job(make).spec)
    job, [first, second] = crew.hire(service_job(make), "replica", spec, 2, make.at(0).at)
    world.latest[second.id] = second.model_copy(update={"state": JobState.FAILED})  # only in the log
    world.turn(world.create(job), world.create(first))
    world.tick(1)
    world.settle()
    assert world.job("s1").tries == 1


def test_the_same_replica_has_the_same_id_whoever_makes_it(make: SimpleNamespace):
    job = service_job(make)
    spec = crew.member_spec(job.spec)
    again = crew.hire(job, "replica", spec, 2, make.at(0).at)
    assert crew.hire(job, "replica", spec, 2, make.at(0).at) == again
    more, fresh = crew.hire(again[0], "replica", spec, 1, make.at(0).at)
    assert len({one.job_id for one in more.members}) == 3
    assert fresh[0].member_of.index == 2


def test_the_log_read_anew_gives_the_same_services_and_nothing_to_decide(world: Any, make: SimpleNamespace):
    start(world, make)
    update(world, make, spec=other_spec(make))
    run_all(world, make)
    replay = Replay()
    for entry in world.log:
        replay.feed(entry)
    fresh = make.World()
    fresh.state = State(fresh.limits, make.at(0))
    fresh.latest, fresh.seqs, fresh.seq = dict(world.latest), dict(world.seqs), world.seq
    fresh.turn(*replay.facts())
    fresh.settle()
    assert fresh.job("s1").members == world.job("s1").members
    assert fresh.events == []


# --- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "data"), [("update", "updated"), ("asked", "asked")])
def test_what_users_want_of_a_service_is_read_from_its_subject(make: SimpleNamespace, verb: str, data: str):
    when = make.at(0).at
    wishes = {"updated": ServiceUpdated(by="u1", at=when, replicas=3), "asked": ServiceAsked(by="u1", at=when)}
    event = Event(id="e1", source="/wherry/gateway", type="t", time=when, subject="s1", data=wishes[data])
    fact = read_fact(f"wherry.request.u1.s1.{verb}", 7, event)
    assert fact == Input(7, "s1", service.Wish(wishes[data]), "e1")
    assert read_fact("wherry.request.u1.s1.cancel", 7, event) is None
