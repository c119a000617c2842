import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core import snapshot
from services.scheduler.core.facts import Input, Recorded, read_fact
from services.scheduler.core.fleet.invariants import check
from services.scheduler.core.fleet.state import State
from services.scheduler.core.lifecycle import Report
from services.scheduler.core.machine import Batch, handle
from services.scheduler.core.replay import Replay
from shared import channels
from shared.events import Event, JobChanged
from shared.states import AttemptState, EndReason, JobState

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def live_a_while(make, seed: int, turns: int = 60):
    """Let a world with two nodes and a few jobs take random turns; return it and the states at the ends of turns."""
    dice = random.Random(seed)
    world = make.World()
    history = []
    for turn in range(turns):
        world.now += dice.choice([0, 0, 1, 7])
        facts, held = [], {"n1": [], "n2": []}
        if dice.random() < 0.3:
            facts.append(world.create(make.job(f"j{turn}", max_attempts=2, created_s=world.now)))
        for job_id, tracked in world.state.jobs.items():
            attempt = tracked.job.current
            if tracked.job.state is JobState.QUEUED or attempt is None:
                if dice.random() < 0.05:
                    facts.append(world.cancel(job_id))
                continue
            if dice.random() < 0.9:
                held[attempt.node].append((job_id, attempt.number))
            number = attempt.number if dice.random() < 0.9 else attempt.number - 1
            options = [
                make.starting(number),
                make.running(number),
                make.finishing(number),
                make.finished(number),
                make.finished(number, AttemptState.FAILED, EndReason.EXIT_CODE),
                make.finished(number, AttemptState.FAILED, EndReason.UPLOAD_FAILED),
            ]
            if dice.random() < 0.5:
                facts.append(world.report(attempt.node, job_id, dice.choice(options)))
        beats = tuple(make.beat(n, seq=turn + 1, held=tuple(h), cpus=2) for n, h in held.items() if dice.random() < 0.8)
        world.turn(*facts, beats=beats, tick=dice.random() < 0.5)
        history.append((world.seq, {key: (t.job, t.seq) for key, t in world.state.jobs.items()}))
    return world, history


@quick
@given(seed=st.integers(0, 10**6))
def test_the_log_up_to_any_point_between_turns_gives_the_state_of_that_point(make, seed) -> None:
    world, history = live_a_while(make, seed)
    replay, done = Replay(), 0
    for seq, jobs in history:
        for fact in world.log[done:seq]:
            replay.feed(fact)
        done = seq
        assert replay.jobs == jobs


@quick
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_crash_at_any_entry_of_the_log_decides_the_same_again(make, seed, data) -> None:
    """Cut the log anywhere, also between what one turn recorded: the rebuilt machine goes on from there."""
    world, history = live_a_while(make, seed)
    cut = data.draw(st.integers(0, len(world.log)))
    replay = Replay()
    for fact in world.log[:cut]:
        replay.feed(fact)
    state = State(world.limits, make.at(world.now))
    state.position = replay.position
    effects = handle(state, Batch(facts=replay.facts()), make.at(world.now))
    for number, decision in enumerate(effects.records, 1):
        assert decision.expect_seq == state.jobs[decision.job.id].seq
        state.believe(decision.job, cut + number, make.at(world.now))
    assert check(state) == []
    inputs = tuple(fact for fact in replay.facts() if isinstance(fact, Input))
    assert handle(state, Batch(facts=inputs), make.at(world.now)).records == ()  # nothing is taken in twice
    # What the first life had recorded of the inputs before the cut, the second decides too, but for its times.
    first = next((jobs for seq, jobs in history if seq >= cut), {})
    for job_id, tracked in state.jobs.items():
        if job_id in first and first[job_id][0].input_seq <= cut and first[job_id][0].attempt == tracked.job.attempt:
            reached = first[job_id][0]
            assert (reached.tries, reached.losses) >= (tracked.job.tries, tracked.job.losses)


@quick
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_snapshot_and_the_log_after_it_are_as_good_as_the_whole_log(make, seed, data) -> None:
    world, history = live_a_while(make, seed)
    position, jobs = data.draw(st.sampled_from(history))
    head, parts = snapshot.encode(position, jobs.values())
    found = snapshot.decode(head, parts)
    short = Replay(found.position, {job.id: (job, seq) for job, seq in found.jobs})
    whole = Replay()
    for fact in world.log:
        short.feed(fact)
        whole.feed(fact)
    assert short.jobs == whole.jobs
    # Inputs that had changed nothing before the snapshot are in the one and not in the other, and change nothing still.
    first, second = (State(world.limits, make.at(world.now)) for _ in "ab")
    decided = handle(first, Batch(facts=short.facts()), make.at(world.now)).records
    expected = handle(second, Batch(facts=whole.facts()), make.at(world.now)).records
    assert [(d.job.id, d.name, d.expect_seq) for d in decided] == [(d.job.id, d.name, d.expect_seq) for d in expected]


def test_an_input_that_came_while_nobody_led_is_decided_about(make) -> None:
    world = make.World()
    world.hear()
    world.turn(world.create(make.job()))
    world.report("n1", "j1", make.running())
    world.report("n1", "j1", make.finished())
    replay = Replay()
    for fact in world.log:
        replay.feed(fact)
    effects = handle(State(world.limits, make.at(9)), Batch(facts=replay.facts()), make.at(9))
    assert [(d.name, d.job.attempts[0].running_at) for d in effects.records] == [("succeeded", make.at(2).at)]


def test_large_snapshots_are_cut_into_parts_and_damage_is_seen(make) -> None:
    jobs = [(make.job(f"j{n}", env={"X": "x" * 5000}), n) for n in range(500)]
    head, parts = snapshot.encode(77, jobs)
    assert len(parts) > 2
    assert snapshot.read_head(head) == (77, len(parts))
    assert snapshot.decode(head, parts) == snapshot.Snapshot(77, tuple(jobs))
    assert snapshot.decode(head, parts[:-1]) is None
    assert snapshot.decode(head, [parts[1], *parts[1:]]) is None
    assert snapshot.read_head(b"{") is None
    assert snapshot.read_head(b'{"version": 99, "position": 1, "parts": []}') is None


def event_of(data, subject="j1"):
    return Event(
        id="e1",
        source="/wherry/test",
        type="t",
        time=data.at if hasattr(data, "at") else None,
        subject=subject,
        data=data,
    )


def test_the_subject_says_which_node_and_job_a_report_is_about(make) -> None:
    data = make.finished(3)
    subject = channels.ATTEMPT_FINISHED.subject(node_id="n1", job_id="j1")
    assert read_fact(subject, 9, event_of(data)) == Input(9, "j1", Report("n1", data), "e1")
    asked = make.cancel_requested()
    subject = channels.CANCEL_REQUESTED.subject(owner="u1", job_id="j1")
    assert read_fact(subject, 9, event_of(asked)).event.by == "u1"


@pytest.mark.parametrize(
    ("owner", "job_id", "event", "kept"),
    [("u1", "j1", "created", True), ("u2", "j1", "created", False), ("u1", "j2", "placed", False)],
)
def test_a_job_event_must_agree_with_its_subject(make, owner, job_id, event, kept) -> None:
    job = make.job()
    changed = Event(id="e", source="s", type="t", time=make.START, subject="j1", data=JobChanged(job=job, epoch=4))
    subject = channels.JOB_CHANGED.subject(owner=owner, job_id=job_id, event=event)
    assert read_fact(subject, 5, changed) == (Recorded(5, job, 4) if kept else None)


def test_a_created_job_that_claims_to_have_a_past_is_refused(make) -> None:
    job = make.job().model_copy(update={"input_seq": 10**9})
    changed = Event(id="e", source="s", type="t", time=make.START, subject="j1", data=JobChanged(job=job))
    subject = channels.JOB_CREATED.subject(owner="u1", job_id="j1")
    assert read_fact(subject, 5, changed) is None


def test_a_job_that_ended_does_not_come_back_when_older_events_of_it_are_read_late(make) -> None:
    """After a conflict a job is believed ahead of the log. What is then read of it is older than its end."""
    world = make.World()
    job = make.job()
    placed = job.model_copy(update={"state": JobState.QUEUED, "input_seq": 1})
    ended = placed.model_copy(update={"state": JobState.CANCELLED})
    world.state.assign(placed, 5, make.at(0))
    world.state.believe(ended, 6, make.at(0))
    world.turn(Recorded(5, placed, 1), Recorded(6, ended, 1))
    assert not world.state.jobs
    assert not world.state.written
