"""Jobs that wait for others to end."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core.facts import Recorded
from services.scheduler.core.machine import Batch, handle
from services.scheduler.core.replay import Replay
from shared.states import AttemptState, EndReason, JobState, PendingCode

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def name(letter: str) -> str:
    return "j" + letter * 25


A, B, C, D = (name(letter) for letter in "abcd")


@pytest.fixture
def world(make):
    world = make.World()
    world.hear(cpus=64)
    return world


def end(make, world, job_id, state=AttemptState.SUCCEEDED, reason=None):
    """Let the job's current attempt end, and all settle that follows from it."""
    attempt = world.job(job_id).attempt
    world.turn(world.report("n1", job_id, make.finished(attempt, state, reason, s=world.now)))
    world.settle()


def cancel(make, world, job_id):
    world.turn(world.cancel(job_id))
    if world.job(job_id).state is not JobState.CANCELLED:
        end(make, world, job_id, AttemptState.CANCELLED)
    world.settle()


def fail(make, world, job_id):
    end(make, world, job_id, AttemptState.FAILED, EndReason.EXIT_CODE)


def names(world, job_id):
    return [event for job, event in world.events if job == job_id]


def states(world, *job_ids):
    return [world.job(job_id).state.value for job_id in job_ids]


def test_a_job_waits_for_the_one_it_needs_and_is_placed_when_that_has_succeeded(make, world) -> None:
    world.turn(world.create(make.job(A)))
    world.turn(world.create(make.job(B, needs=[A])))
    assert states(world, A, B) == ["placed", "queued"]
    [reason] = world.job(B).pending
    assert (reason.code, reason.message) == (PendingCode.NEEDS, f"waits for {A} to end")
    assert B not in world.state.line
    world.now = 5
    end(make, world, A)
    assert names(world, B) == ["pending", "pending", "placed"]
    assert (world.job(B).ready_at, world.job(B).pending) == (make.at(5).at, ())
    assert len(world.state.needs) == 0


def test_both_may_come_in_the_same_turn(make, world) -> None:
    world.turn(world.create(make.job(A)), world.create(make.job(B, needs=[A])))
    assert states(world, A, B) == ["placed", "queued"]
    end(make, world, A)
    assert world.job(B).state is JobState.PLACED


@pytest.mark.parametrize(
    ("on", "how", "state"),
    [
        ("ok", end, "placed"),
        ("ok", fail, "failed"),
        ("ok", cancel, "cancelled"),
        ("any", end, "placed"),
        ("any", fail, "placed"),
        ("any", cancel, "cancelled"),
        ("always", end, "placed"),
        ("always", fail, "placed"),
        ("always", cancel, "placed"),
    ],
)
@pytest.mark.parametrize("ended_before", [False, True])
def test_what_becomes_of_a_job_when_the_one_it_needs_has_ended(make, world, on, how, state, ended_before) -> None:
    world.turn(world.create(make.job(A)))
    needing = make.job(B, needs=[{"job": A, "on": on}])
    if ended_before:
        how(make, world, A)
        assert world.state.jobs == {}
        effects = world.turn(world.create(needing))
        assert (effects.lookups, effects.again) == ((A,), True)
        world.settle()
    else:
        world.turn(world.create(needing))
        how(make, world, A)
    assert world.job(B).state.value == state
    if state in ("failed", "cancelled"):
        assert world.job(B).error.reason is EndReason.NEEDS_FAILED
        assert A in world.job(B).error.message


def test_an_input_from_another_jobs_outputs_needs_its_success(make, world) -> None:
    world.turn(world.create(make.job(A)), world.create(make.job(C)))
    inputs = {"model": f"job:{A}/model.bin", "data": f"job:{A}", "more": f"job:{C}"}
    world.turn(world.create(make.job(B, inputs=inputs)))
    end(make, world, A)
    assert world.job(B).state is JobState.QUEUED
    fail(make, world, C)
    assert (world.job(B).state, world.job(B).error.reason) == (JobState.FAILED, EndReason.NEEDS_FAILED)


def test_a_cancel_and_a_failure_go_down_the_whole_chain(make, world) -> None:
    world.turn(*(world.create(make.job(name(x))) for x in "ae"))
    for first, rest in (("a", "bcd"), ("e", "fgh")):
        for before, job in zip(first + rest, rest, strict=False):
            world.turn(world.create(make.job(name(job), needs=[name(before)])))
    cancel(make, world, A)
    fail(make, world, name("e"))
    assert states(world, *map(name, "abcd")) == ["cancelled"] * 4
    assert states(world, *map(name, "efgh")) == ["failed"] * 4


def test_a_job_that_is_nowhere_in_the_log_is_a_need_that_failed(make, world) -> None:
    world.turn(world.create(make.job(B, needs=[{"job": A, "on": "always"}])))
    world.settle()
    assert (world.job(B).state, world.job(B).error.reason) == (JobState.FAILED, EndReason.NEEDS_FAILED)
    assert f"job {A}, which it needs, is not known" in world.job(B).error.message


def test_the_log_is_asked_once_for_a_job_that_many_need_and_in_measure(make, world) -> None:
    world.turn(world.create(make.job(A)))
    end(make, world, A)
    effects = world.turn(*(world.create(make.job(name(x), needs=[A])) for x in "bcdefg"))
    assert effects.lookups == (A,)
    assert world.turn().lookups == ()
    world.settle()
    assert {world.job(name(x)).state for x in "bcdefg"} == {JobState.PLACED}
    many = tuple("j" + f"{n:025b}".replace("0", "a").replace("1", "b") for n in range(250))
    for job_id in many:
        world.latest[job_id] = world.job(A)
    first = world.turn(*(world.create(make.job(f"w{n}", needs=[job_id])) for n, job_id in enumerate(many)))
    assert (len(first.lookups), first.again) == (100, True)
    world.settle()
    assert {world.job(f"w{n}").state for n in range(250)} <= {JobState.PLACED, JobState.QUEUED}
    assert len(world.state.needs) == 0


def test_a_job_that_waits_can_be_cancelled_and_overdue(make, world) -> None:
    world.turn(world.create(make.job(A)))
    world.turn(world.create(make.job(B, needs=[A])), world.create(make.job(C, needs=[A], timeouts={"total": 60})))
    world.turn(world.cancel(B))
    world.tick(61)
    assert states(world, B, C) == ["cancelled", "timed_out"]
    assert len(world.state.needs) == 0


def test_a_job_tried_again_does_not_wait_for_its_needs_again(make, world) -> None:
    world.turn(world.create(make.job(A)))
    world.turn(world.create(make.job(B, needs=[A], max_attempts=2)))
    end(make, world, A)
    fail(make, world, B)
    world.now = 20
    world.hear(cpus=64)
    world.tick(20)
    world.settle()
    assert (world.job(B).state, world.job(B).attempt) == (JobState.PLACED, 2)


def take_over(make, world):
    """A new leader: nothing but the log is left."""
    replay = Replay()
    for fact in world.log:
        replay.feed(fact)
    world.state = type(world.state)(world.limits, make.at(world.now))
    world.state.position = replay.position
    world.looked_up = ()
    world.turn(*replay.facts())
    world.settle()
    world.hear(cpus=64)
    world.settle()


def test_a_new_leader_finds_out_about_needs_that_ended_while_nobody_led(make, world) -> None:
    world.turn(world.create(make.job(A)), world.create(make.job(C)))
    world.turn(world.create(make.job(B, needs=[A, C])), world.create(make.job(D, needs=[A])))
    ended = world.job(A).model_copy(update={"state": JobState.SUCCEEDED, "ended_at": make.START})
    world.log.append(Recorded(world.seq + 1, ended, 1))
    world.seq += 1
    world.latest[A] = ended
    take_over(make, world)
    assert states(world, B, C, D) == ["queued", "placed", "placed"]
    end(make, world, C)
    assert world.job(B).state is JobState.PLACED


def test_what_was_not_recorded_is_decided_again(make, world) -> None:
    world.turn(world.create(make.job(A)))
    world.turn(world.create(make.job(B, needs=[A])))
    world.turn(world.report("n1", A, make.finished()))
    effects = handle(world.state, Batch(), make.at(1))
    assert [(d.job.id, d.name) for d in effects.records] == [(B, "pending")]
    world.state.refused(B, 77, make.at(1))
    effects = handle(world.state, Batch(), make.at(1))
    assert [(d.job.id, d.name, d.expect_seq) for d in effects.records] == [(B, "pending", 77)]


@quick
@given(seed=st.integers(0, 10**6))
def test_no_job_runs_before_its_needs_have_ended_and_every_job_ends_in_whatever_order(make, seed) -> None:
    dice = random.Random(seed)
    world = make.World()
    world.hear(cpus=64)
    ids = [name(letter) for letter in "abcdefgh"]
    left = [
        make.job(
            job_id,
            needs=[{"job": dice.choice(ids[:n]), "on": dice.choice(["ok", "any", "always"])} for _ in range(min(n, 3))],
        )
        for n, job_id in enumerate(ids)
    ]
    for _ in range(200):
        if not left and not world.state.jobs:
            break
        placed = [job_id for job_id, one in world.state.jobs.items() if one.job.state is JobState.PLACED]
        if left and dice.random() < 0.4:
            world.turn(world.create(left.pop(0)))
        elif placed:
            dice.choice([end, end, fail, cancel])(make, world, dice.choice(placed))
        if dice.random() < 0.1:
            take_over(make, world)
        world.settle()
    assert set(world.latest) == set(ids)
    assert all(job.is_terminal for job in world.latest.values())
    for job in world.latest.values():
        ends = [world.latest[need.job].state for need in job.spec.needed()]
        good = all(is_met(need, state) for need, state in zip(job.spec.needed(), ends, strict=True))
        if job.attempts:
            assert good
        elif job.error.reason is EndReason.NEEDS_FAILED:
            assert not good
            failed = [s for need, s in zip(job.spec.needed(), ends, strict=True) if not is_met(need, s)]
            assert job.state is JobState.CANCELLED if set(failed) == {JobState.CANCELLED} else JobState.FAILED in failed


def is_met(need, state):
    return need.on == "always" or state is JobState.SUCCEEDED or (need.on == "any" and state is not JobState.CANCELLED)
