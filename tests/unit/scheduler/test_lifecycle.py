from dataclasses import replace
from itertools import pairwise

import pytest

from services.scheduler.core import clocks
from services.scheduler.core import lifecycle as lc
from services.scheduler.core.limits import Limits
from shared.events import AttemptFinished, AttemptFinishing, AttemptRunning, AttemptStarting
from shared.job import BlobRef, Job, OutputsRef
from shared.states import ATTEMPT_TERMINAL, JOB_TERMINAL, AttemptState, EndReason, JobEventName, JobState

NEEDED = "j" + "a" * 25
LIMITS = Limits(losses_max=1, backoff_failure_s=10, backoff_failure_max_s=600)
#: Under which the tables list what moves jobs and attempts.
NAMES = {
    lc.Placed: "placed",
    lc.Waiting: "pending",
    lc.NeedsMet: "needs_met",
    lc.NeedFailed: "need_failed",
    lc.Cancel: "cancel",
    lc.Lost: "lost",
    lc.Remarked: "remarked",
    lc.Expired: "expired",
    AttemptStarting: "starting",
    AttemptRunning: "running",
    AttemptFinishing: "finishing",
    AttemptFinished: "finished",
}
EARLY, LATE = 5, 5000  # before and after the total limit of the walked job


def walked_events(make, numbers):
    ends = [
        (AttemptState.SUCCEEDED, None),
        (AttemptState.FAILED, EndReason.EXIT_CODE),
        (AttemptState.FAILED, EndReason.RUNTIME_ERROR),
        (AttemptState.TIMED_OUT, EndReason.RUN_TIMEOUT),
        (AttemptState.CANCELLED, None),
        (AttemptState.LOST, EndReason.AGENT_LOST_CONTAINER),
        (AttemptState.RUNNING, None),  # no end at all: a broken agent
    ]
    for n in numbers:
        yield lc.Lost(n, EndReason.NODE_LOST, "gone")
        yield lc.Lost(n, EndReason.RUN_TIMEOUT, "not stopped", may_run=True)
        for node in ("n1", "other"):
            for data in (
                make.starting(n),
                make.starting(n, "stage_in"),
                make.running(n),
                make.finishing(n),
                *(make.finished(n, state, reason) for state, reason in ends),
            ):
                yield lc.Report(node, data)
    yield lc.Placed("n1", (), {})
    yield lc.Waiting(())
    yield lc.Cancel("u1")
    yield lc.Expired()
    yield lc.Remarked("something")
    yield lc.NeedsMet()
    yield lc.NeedFailed("j9 has failed", is_cancel=False)
    yield lc.NeedFailed("j9 has been cancelled", is_cancel=True)


def test_every_reachable_step_is_legal_and_every_legal_move_is_reachable(make) -> None:
    limits = {"total": 1000, "queue": 100}
    starts = [make.job(max_attempts=2, timeouts=limits), make.job(timeouts=limits, needs=[NEEDED])]
    seen, todo = {what_matters(start) for start in starts}, starts
    moves, attempt_moves = set(), set()
    while todo:
        old = todo.pop()
        for event in walked_events(make, range(old.attempt - 1, old.attempt + 2)):
            for now in (EARLY, LATE):
                change = lc.step(old, event, make.at(now).at, LIMITS)
                if change is None:
                    continue
                new = change.job
                name = NAMES[type(event.data if isinstance(event, lc.Report) else event)]
                moves.add((old.state, name, new.state))
                check_step(old, event, new, change.name)
                if old.state in lc.HOLDING and name not in ("cancel", "remarked"):
                    attempt_moves.add((old.attempts[-1].state, name, new.attempts[-1].state))
                if what_matters(new) not in seen:
                    seen.add(what_matters(new))
                    todo.append(new)
    assert moves == {(a, event, b) for a, by in lc.MOVES.items() for event, to in by.items() for b in to}
    expected = {(a, event, b) for a, by in lc.ATTEMPT_MOVES.items() for event, to in by.items() for b in to}
    assert attempt_moves == expected


def what_matters(job: Job) -> tuple:
    """All that a later step looks at; the story so far would make the walk endless."""
    last = job.attempts[-1] if job.attempts else None
    asked = job.cancel_requested_at is not None
    attempt = last and (last.state, last.phase, last.node, bool(last.ended_at))
    spent = job.attempt, job.tries, job.losses
    waits = bool(job.pending), clocks.waits_for_needs(job), clocks.queued_since(job)
    return job.state, spent, asked, waits, attempt, bool(job.spec.needs), bool(job.remarks)


def check_step(old: Job, event: lc.Event, new: Job, name: JobEventName) -> None:
    assert old.state not in JOB_TERMINAL
    assert new.attempt == old.attempt + (new.state is JobState.PLACED and old.state is JobState.QUEUED)
    assert new.tries <= new.spec.max_attempts
    assert new.losses <= LIMITS.losses_max + 1
    assert new.is_terminal == (new.ended_at is not None)
    assert new.is_terminal == (name.value == new.state.value and name.value in {s.value for s in JOB_TERMINAL})
    assert (new.error is not None) == (new.is_terminal and new.state is not JobState.SUCCEEDED)
    assert (new.state in lc.HOLDING) == (bool(new.attempts) and new.attempts[-1].state not in ATTEMPT_TERMINAL)
    if isinstance(event, lc.Report):
        assert (event.node, event.data.attempt) == (old.attempts[-1].node, old.attempt)
    if name is JobEventName.REQUEUED:
        assert new.state is JobState.QUEUED
        assert new.not_before is not None
    if old.cancel_requested_at:
        assert new.state not in (JobState.QUEUED, JobState.FAILED, JobState.TIMED_OUT)


def follow(make, job: Job, *steps) -> Job:
    """Apply (second, event) one after the other; each must change something."""
    for second, event in steps:
        change = lc.step(job, event, make.at(second).at, Limits())
        assert change is not None, f"{event} changed nothing in {job.state}"
        job = change.job
    return job


def placed(node: str = "n1") -> lc.Placed:
    return lc.Placed(node, (), {})


def test_all_reports_but_the_last_may_be_lost(make) -> None:
    done = make.finished(s=9, running_at=make.at(5).at, exit_code=0)
    job = follow(make, make.job(), (1, placed()), (10, lc.Report("n1", done)))
    assert job.state is JobState.SUCCEEDED
    assert job.attempts[-1].running_at == make.at(5).at
    assert job.attempts[-1].ended_at == make.at(9).at
    assert job.tries == 1


def test_a_wrong_clock_of_a_node_does_not_put_times_before_the_placement_or_after_now(make) -> None:
    early = lc.Report("n1", make.running(s=-500))
    job = follow(make, make.job(), (1, placed()), (2, early), (3, lc.Report("n1", make.finished(s=9999))))
    assert job.attempts[-1].running_at == make.at(1).at
    assert job.attempts[-1].ended_at == make.at(3).at


def test_reports_about_another_attempt_or_from_another_node_change_nothing(make) -> None:
    job = follow(make, make.job(), (1, placed()))
    for event in (
        lc.Report("n2", make.finished(1)),
        lc.Report("n1", make.finished(2)),
        lc.Report("n1", make.finished(0)),
        lc.Lost(2, EndReason.NODE_LOST, ""),
    ):
        assert lc.step(job, event, make.at(2).at, Limits()) is None


def test_a_user_failure_is_tried_again_as_often_as_was_asked_with_growing_waits(make) -> None:
    job, second, waits = make.job(max_attempts=8), 1.0, []
    while not job.is_terminal:
        failed = lc.Report("n1", make.finished(job.attempt + 1, AttemptState.FAILED, EndReason.EXIT_CODE, exit_code=1))
        job = follow(make, job, (second, placed()), (second, failed))
        if job.not_before:
            waits.append((job.not_before - make.at(second).at).total_seconds())
        second += 1000
    longest = [10, 20, 40, 80, 160, 320, 600]
    assert all(0.8 * most <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert (job.state, job.tries, job.losses, job.error.reason) == (JobState.FAILED, 8, 0, EndReason.EXIT_CODE)
    assert [a.number for a in job.attempts] == list(range(1, 9))


def test_losses_have_a_budget_of_their_own_and_never_use_up_the_users(make) -> None:
    job, second, waits = make.job(max_attempts=1), 1.0, []
    while not job.is_terminal:
        lost = lc.Lost(job.attempt + 1, EndReason.NODE_LOST, "gone")
        job = follow(make, job, (second, placed()), (second, lost))
        if job.not_before:
            waits.append((job.not_before - make.at(second).at).total_seconds())
        second += 100
    assert all(0.8 * most <= wait <= most for wait, most in zip(waits, [1, 2, 4, 8, 16], strict=True))
    assert (job.state, job.tries, job.losses, job.error.reason) == (JobState.FAILED, 0, 6, EndReason.NODE_LOST)


@pytest.mark.parametrize(
    ("retry_on", "state", "reason", "exit_code", "again"),
    [
        (("failed",), AttemptState.FAILED, EndReason.EXIT_CODE, 1, True),
        (("failed",), AttemptState.TIMED_OUT, EndReason.RUN_TIMEOUT, None, False),
        (("timed_out",), AttemptState.TIMED_OUT, EndReason.RUN_TIMEOUT, None, True),
        (("timed_out",), AttemptState.FAILED, EndReason.EXIT_CODE, 1, False),
        (("oom",), AttemptState.FAILED, EndReason.OOM, 137, True),
        (("oom",), AttemptState.FAILED, EndReason.EXIT_CODE, 137, False),
        (("exit:75",), AttemptState.FAILED, EndReason.EXIT_CODE, 75, True),
        (("exit:75",), AttemptState.FAILED, EndReason.EXIT_CODE, 7, False),
        ((), AttemptState.FAILED, EndReason.EXIT_CODE, 1, False),
    ],
)
def test_only_the_named_kinds_of_failure_are_tried_again(make, retry_on, state, reason, exit_code, again) -> None:
    job = make.job(max_attempts=3, retry_on=retry_on)
    end = lc.Report("n1", make.finished(1, state, reason, exit_code=exit_code))
    job = follow(make, job, (1, placed()), (2, end))
    assert (job.state is JobState.QUEUED) is again
    assert job.tries == 1


def test_cancelling_a_queued_job_ends_it_at_once(make) -> None:
    job = follow(make, make.job(), (1, lc.Cancel("u1")))
    assert (job.state, job.error.reason) == (JobState.CANCELLED, EndReason.CANCELLED_BY_USER)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (AttemptState.CANCELLED, JobState.CANCELLED),
        (AttemptState.FAILED, JobState.CANCELLED),
        (AttemptState.SUCCEEDED, JobState.SUCCEEDED),
    ],
)
def test_a_running_job_is_cancelled_on_the_nodes_word_unless_it_had_succeeded(make, end, state) -> None:
    job = follow(
        make, make.job(max_attempts=5), (1, placed()), (2, lc.Report("n1", make.running())), (3, lc.Cancel("u1"))
    )
    assert job.state is JobState.RUNNING
    assert job.cancel_requested_at == make.at(3).at
    assert lc.step(job, lc.Cancel("u1"), make.at(4).at, Limits()) is None
    assert follow(make, job, (5, lc.Report("n1", make.finished(1, end)))).state is state
    assert follow(make, job, (5, lc.Lost(1, EndReason.NODE_LOST, ""))).state is JobState.CANCELLED


def test_outputs_are_those_of_the_attempt_that_ended_the_job_also_of_a_failed_one(make) -> None:
    outputs = [OutputsRef(manifest=BlobRef(sha256=c * 64, size=1), files=1, bytes=1) for c in "ab"]
    ends = [make.finished(n, AttemptState.FAILED, EndReason.EXIT_CODE, outputs=o) for n, o in enumerate(outputs, 1)]
    job = follow(make, make.job(max_attempts=2), (1, placed()), (2, lc.Report("n1", ends[0])))
    assert job.outputs is None
    job = follow(make, job, (20, placed("n2")), (21, lc.Report("n2", ends[1])))
    assert job.outputs == outputs[1]
    assert [a.outputs for a in job.attempts] == outputs


def test_queue_and_total_limits_end_a_waiting_job_when_they_have_passed(make) -> None:
    job = make.job(timeouts={"queue": 60, "total": 100})
    assert lc.step(job, lc.Expired(), make.at(59).at, Limits()) is None
    assert follow(make, job, (60, lc.Expired())).error.reason is EndReason.QUEUE_TIMEOUT
    assert follow(make, job, (100, lc.Expired())).error.reason is EndReason.TOTAL_TIMEOUT


def test_the_time_in_the_queue_begins_anew_after_an_attempt(make) -> None:
    job = make.job(timeouts={"queue": 60})
    job = follow(make, job, (50, placed()), (500, lc.Lost(1, EndReason.NODE_LOST, "")))
    assert lc.step(job, lc.Expired(), make.at(559).at, Limits()) is None
    assert follow(make, job, (560, lc.Expired())).state is JobState.TIMED_OUT


def test_an_attempt_past_the_total_limit_is_to_be_stopped_and_its_end_is_a_time_out(make) -> None:
    job = follow(make, make.job(max_attempts=9, timeouts={"total": 100}), (1, placed()))
    assert clocks.current_stop(job, make.at(99).at, 99, Limits()) is None
    assert clocks.current_stop(job, make.at(100).at, 99, Limits()).reason is EndReason.TOTAL_TIMEOUT
    job = follow(make, job, (101, lc.Report("n1", make.finished(1, AttemptState.CANCELLED, s=101))))
    assert (job.state, job.error.reason) == (JobState.TIMED_OUT, EndReason.TOTAL_TIMEOUT)


def test_a_stop_that_nobody_asked_for_counts_as_a_loss(make) -> None:
    job = follow(make, make.job(), (1, placed()), (2, lc.Report("n1", make.finished(1, AttemptState.CANCELLED))))
    assert (job.state, job.losses, job.tries) == (JobState.QUEUED, 1, 0)


def test_deadlines_come_one_after_the_other_until_none_is_left(make) -> None:
    job = make.job(timeouts={"queue": 60, "total": 100})
    job = follow(make, job, (1, placed()), (10, lc.Lost(1, EndReason.NODE_LOST, "")))
    seconds, now = [], make.at(10).at
    job = job.model_copy(update={"not_before": make.at(11).at})
    while (deadline := clocks.next_deadline(job, now, Limits())) is not None:
        seconds.append((deadline - make.START).total_seconds())
        now = deadline
    assert seconds == [11, 70, 100]
    assert all(a < b for a, b in pairwise(seconds))


def test_only_the_last_eight_attempts_are_kept_and_the_first_resolved_image_is_pinned(make) -> None:
    job = make.job(max_attempts=50)
    for n in range(1, 12):
        digest = "sha256:late" if n > 5 else None
        end = make.finished(n, AttemptState.FAILED, EndReason.EXIT_CODE, image_digest=digest)
        job = follow(make, job, (n * 1000, placed()), (n * 1000 + 1, lc.Report("n1", end)))
    assert [a.number for a in job.attempts] == list(range(4, 12))
    assert lc.pinned_image(job) == "sha256:late"


def test_the_limits_can_be_set(make) -> None:
    job = follow(make, make.job(), (1, placed()))
    change = lc.step(job, lc.Lost(1, EndReason.NODE_LOST, ""), make.at(2).at, replace(Limits(), losses_max=0))
    assert change is not None
    assert change.job.state is JobState.FAILED
