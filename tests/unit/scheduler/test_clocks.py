from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core import clocks, retry
from services.scheduler.core import lifecycle as lc
from services.scheduler.core.limits import Limits
from shared.job import Failure
from shared.states import AttemptState, EndReason, JobState

LIMITS = Limits()
LONG = 10**6
TIMEOUTS = {"pull": 100, "stage_in": 50, "run": 1000, "total": 100_000}
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def follow(make, job, *steps):
    for second, event in steps:
        change = lc.step(job, event, make.at(second).at, LIMITS)
        assert change is not None, f"{event} changed nothing in {job.state}"
        job = change.job
    return job


def at_phase(make, phase: str, **spec):
    """A job placed at 1, starting at 2, running at 3, finishing at 4: as far as *phase*."""
    job = follow(make, make.job(timeouts=TIMEOUTS, **spec), (1, lc.Placed("n1", (), {})))
    reports = {
        "pull": make.starting(s=2),
        "stage_in": make.starting(phase="stage_in", s=2),
        "running": make.running(s=3),
        "finishing": make.finishing(s=4),
    }
    for name, report in reports.items() if phase != "placed" else ():
        job = follow(make, job, (5, lc.Report("n1", report)))
        if name == phase:
            return job
    return job


def stop_reason(make, job, second: float, heard_s: float = LONG):
    stop = clocks.current_stop(job, make.at(second).at, heard_s, LIMITS)
    return stop and stop.reason


@pytest.mark.parametrize(
    ("phase", "second", "reason"),
    [
        ("placed", 1 + 300, EndReason.AGENT_LOST_CONTAINER),
        ("pull", 2 + 150 + 60, EndReason.PULL_TIMEOUT),
        ("stage_in", 2 + 150 + 60, EndReason.STAGE_IN_TIMEOUT),
        ("running", 3 + 1000 + 60, EndReason.RUN_TIMEOUT),
        ("finishing", 4 + 3600, EndReason.FINISHING_TIMEOUT),
    ],
)
def test_every_phase_has_a_limit_beyond_the_nodes_own(make, phase, second, reason) -> None:
    job = at_phase(make, phase)
    assert stop_reason(make, job, second - 1) is None
    assert stop_reason(make, job, second) is reason
    # A node that has just come back may have reported long ago what is not taken in yet.
    assert stop_reason(make, job, second, heard_s=59) is None
    assert stop_reason(make, job, second, heard_s=60) is reason
    assert clocks.next_deadline(job, make.at(10).at, LIMITS) == make.at(second).at


def test_a_cancel_counts_at_once_but_for_what_an_ended_program_left_which_has_a_minute(make) -> None:
    running = follow(make, at_phase(make, "running"), (50, lc.Cancel("u1")))
    assert stop_reason(make, running, 50, heard_s=0) is EndReason.CANCELLED_BY_USER
    ended = follow(make, running, (55, lc.Report("n1", make.finishing(s=55))))
    assert stop_reason(make, ended, 55 + 59) is None
    assert stop_reason(make, ended, 55 + 60) is EndReason.CANCELLED_BY_USER
    late = follow(make, at_phase(make, "finishing"), (50, lc.Cancel("u1")))
    assert stop_reason(make, late, 50 + 59) is None
    assert stop_reason(make, late, 50 + 60) is EndReason.CANCELLED_BY_USER


def test_past_the_total_limit_what_an_ended_program_left_has_a_minute(make) -> None:
    job = at_phase(make, "finishing")
    ended = job.attempts[-1].model_copy(update={"finishing_at": make.at(99_990).at})
    job = job.model_copy(update={"attempts": (ended,)})
    assert stop_reason(make, job, 100_059) is None
    assert stop_reason(make, job, 100_060) is EndReason.TOTAL_TIMEOUT


def test_a_node_is_disobeying_only_after_it_had_its_time_since_the_stop_and_since_it_is_back(make) -> None:
    job = follow(make, at_phase(make, "running"), (50, lc.Cancel("u1")))
    stop = clocks.current_stop(job, make.at(60).at, LONG, LIMITS)
    assert not clocks.is_disobeyed(stop, make.at(349).at, LONG)
    assert clocks.is_disobeyed(stop, make.at(350).at, LONG)
    assert not clocks.is_disobeyed(stop, make.at(350).at, 299)


def test_the_queue_clock_begins_when_the_needs_are_met_and_the_total_clock_when_the_job_was_handed_in(make) -> None:
    job = make.job(needs=["j" + "a" * 25], timeouts={"queue": 60, "total": 1000})
    assert clocks.next_deadline(job, make.START, LIMITS) == make.at(1000).at
    assert lc.step(job, lc.Expired(), make.at(500).at, LIMITS) is None
    assert follow(make, job, (1000, lc.Expired())).error.reason is EndReason.TOTAL_TIMEOUT
    ready = follow(make, job, (500, lc.NeedsMet()))
    assert ready.ready_at == make.at(500).at
    assert lc.step(ready, lc.Expired(), make.at(559).at, LIMITS) is None
    assert follow(make, ready, (560, lc.Expired())).error.reason is EndReason.QUEUE_TIMEOUT


def test_a_job_that_waits_for_others_is_not_placed(make) -> None:
    job = make.job(needs=["j" + "a" * 25])
    assert lc.step(job, lc.Placed("n1", (), {}), make.START, LIMITS) is None
    ready = follow(make, job, (1, lc.NeedsMet()))
    assert lc.step(ready, lc.NeedsMet(), make.at(2).at, LIMITS) is None
    assert follow(make, ready, (2, lc.Placed("n1", (), {}))).state is JobState.PLACED


def test_an_attempt_that_has_ended_is_not_to_be_stopped(make) -> None:
    job = follow(make, at_phase(make, "running"), (10, lc.Lost(1, EndReason.NODE_LOST, "gone")))
    assert stop_reason(make, job, 50_000) is None


@quick
@given(
    phase=st.sampled_from(["placed", "pull", "stage_in", "running", "finishing"]),
    total=st.integers(1, 10**6),
    cancelled=st.booleans(),
)
def test_deadlines_rise_and_end_and_at_each_of_them_something_is_due(make, phase, total, cancelled) -> None:
    job = at_phase(make, phase)
    timeouts = job.spec.timeouts.model_copy(update={"total": total})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"timeouts": timeouts})})
    if cancelled:
        job = follow(make, job, (6, lc.Cancel("u1")))
    now, seen = make.at(6).at, []
    while (deadline := clocks.next_deadline(job, now, LIMITS)) is not None:
        seen.append(deadline)
        now = deadline
        assert clocks.current_stop(job, now, LONG, LIMITS) is not None
    assert len(seen) <= 3
    assert all(a < b for a, b in pairwise(seen))


@quick
@given(losses=st.integers(1, 30), job_id=st.text("abcdef234567", min_size=1), attempt=st.integers(1, 50))
def test_a_pause_grows_to_its_most_varies_by_a_fifth_and_is_the_same_when_decided_again(
    make, losses, job_id, attempt
) -> None:
    job = make.job(job_id).model_copy(update={"losses": losses, "attempt": attempt})
    failure = Failure(reason=EndReason.NODE_LOST, message="")
    wait_s = retry.wait_after_loss(job, failure, LIMITS)
    longest = min(60, 2 ** (losses - 1))
    assert 0.8 * longest - 0.001 <= wait_s <= longest
    assert wait_s == retry.wait_after_loss(job.model_copy(), failure, LIMITS)


def test_jobs_that_failed_together_do_not_begin_again_together(make) -> None:
    jobs = [make.job(f"j{n}").model_copy(update={"tries": 1, "attempt": 1}) for n in range(100)]
    waits = {retry.wait_after_failure(job, LIMITS) for job in jobs}
    assert len(waits) > 90
    assert max(waits) - min(waits) > 1.5


@pytest.mark.parametrize("reason", sorted(retry.TIMEOUTS))
def test_a_limit_that_the_node_had_to_be_told_of_counts_as_a_time_out_whoever_says_so(make, reason) -> None:
    job = at_phase(make, "running", max_attempts=2, retry_on=["timed_out"])
    told = lc.Report("n1", make.finished(1, AttemptState.FAILED, reason))
    gone = lc.Lost(1, reason, "not stopped", may_run=True)
    for event in (told, gone):
        again = follow(make, job, (3000, event))
        assert (again.state, again.tries, again.losses) == (JobState.QUEUED, 1, 0)
        once = job.model_copy(update={"spec": job.spec.model_copy(update={"max_attempts": 1})})
        assert follow(make, once, (3000, event)).state is JobState.TIMED_OUT


@pytest.mark.parametrize(
    ("event", "again"),
    [
        (lc.Lost(1, EndReason.NODE_LOST, "gone"), True),
        (lc.Lost(1, EndReason.FINISHING_TIMEOUT, "not stored", may_run=False), True),
        (lc.Lost(1, EndReason.RUN_TIMEOUT, "not stopped", may_run=True), False),
        ("unkillable", False),
    ],
)
def test_an_exclusive_job_is_not_tried_again_while_its_program_may_still_run(make, event, again) -> None:
    job = at_phase(make, "running", exclusive=True, max_attempts=5, retry_on=["failed", "timed_out"])
    if event == "unkillable":
        event = lc.Report("n1", make.finished(1, AttemptState.FAILED, EndReason.UNKILLABLE))
    assert (follow(make, job, (3000, event)).state is JobState.QUEUED) is again


def test_an_exclusive_job_that_its_node_no_longer_knows_waits_until_nothing_is_left_there(make) -> None:
    gone = lc.Lost(1, EndReason.AGENT_LOST_CONTAINER, "gone")
    job = follow(make, at_phase(make, "running", exclusive=True), (100, gone))
    assert job.not_before == make.at(190).at
    job = follow(make, at_phase(make, "running"), (100, gone))
    assert job.not_before <= make.at(101).at


def died(make, job, *, ran_s: float, reason=EndReason.NODE_LOST, node="n1", start_s=10.0):
    steps = [
        (start_s, lc.Placed(node, (), {})),
        (start_s, lc.Report(node, make.running(job.attempt + 1, s=start_s))),
        (start_s + 100, lc.Lost(job.attempt + 1, reason, "gone", heard_at=make.at(start_s + ran_s).at)),
    ]
    return follow(make, job, *steps)


@pytest.mark.parametrize(
    ("node", "ran_s", "reason", "killed"),
    [
        ("n2", 29, EndReason.NODE_LOST, True),
        ("n2", 29, EndReason.NODE_REBOOTED, True),
        ("n2", 31, EndReason.NODE_LOST, False),
        ("n1", 29, EndReason.NODE_LOST, False),
        ("n2", 29, EndReason.AGENT_LOST_CONTAINER, False),
    ],
)
def test_a_program_that_two_nodes_die_of_soon_after_its_start_is_not_given_a_third(
    make, node, ran_s, reason, killed
) -> None:
    job = died(make, make.job(max_attempts=9), ran_s=5)
    assert job.state is JobState.QUEUED
    job = died(make, job, ran_s=ran_s, reason=reason, node=node, start_s=1000)
    assert (job.state is JobState.FAILED) is killed
    if killed:
        assert job.error.reason is EndReason.SUSPECTED_NODE_KILLER
        assert "n1 and n2" in job.error.message


def test_remarks_are_told_once_and_only_while_there_is_room(make) -> None:
    job = follow(make, at_phase(make, "running"), (9, lc.Remarked("silent")))
    assert lc.step(job, lc.Remarked("silent"), make.at(10).at, LIMITS) is None
    job = follow(make, job, (10, lc.Remarked("heard")), (11, lc.Remarked("silent")))
    assert job.remarks == ("silent", "heard", "silent")
    full = job.model_copy(update={"remarks": tuple(str(n) for n in range(50))})
    assert lc.step(full, lc.Remarked("more"), make.at(12).at, LIMITS) is None
