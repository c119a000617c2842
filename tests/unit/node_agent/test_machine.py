"""The agent's decisions: by story, and by walking through everything that can happen to one attempt."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core import machine as m
from services.node_agent.core.attempt import PREPARING, Phase
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from services.node_agent.core.problems import problem
from shared.fleet import Assignment, DesiredState, Order
from shared.job import BlobRef, Failure, OutputsRef
from shared.spec import JobSpec, Timeouts
from shared.states import AttemptEventName, AttemptState, EndReason

T0 = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("j1", 1)
ORDER = Order(
    job_id="j1", owner_id="u1", attempt=1, seq=5,
    spec=JobSpec(image="i", command="run", timeouts=Timeouts(pull=10, stage_in=20, run=30, total=40)),
)  # fmt: skip
OUTPUTS = OutputsRef(manifest=BlobRef(sha256="0" * 64, size=1), files=1, bytes=1)
BROKEN = Failure(reason=EndReason.BAD_SOURCE, message="bad")
LOST = Outcome(None, failure=Failure(reason=EndReason.AGENT_LOST_CONTAINER, message="gone"))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def desired(action: Any, epoch: int = 1, order: Order | None = ORDER, **more: Any) -> f.Desired:
    order = order if action == "start" else None
    return f.Desired(DesiredState(epoch=epoch, assignments=(
        Assignment(job_id=KEY.job_id, attempt=KEY.attempt, action=action, order=order, **more),
    )))  # fmt: skip


FACTS: dict[str, f.Fact] = {
    "start": desired("start"),
    "keep": desired("keep"),
    "stop": desired("stop", grace_s=3),
    "forget": desired("forget"),
    "missing": f.ImageMissing(KEY),
    "image": f.ImageFound(KEY, "repo@sha256:1"),
    "staged": f.Staged(KEY, "c1"),
    "started": f.Started(KEY),
    "failed": f.Failed(KEY, BROKEN),
    "exited": f.Exited(KEY, Outcome(0)),
    "unkillable": f.Unkillable(KEY),
    "collected": f.Collected(KEY, OUTPUTS),
    "delivered": f.Delivered(KEY),
    "cleared": f.Cleared(KEY),
}


def fresh() -> m.Machine:
    return m.Machine(recovered={"docker"})


def after(*names: str) -> m.Machine:
    machine = fresh()
    for name in names:
        machine.handle(FACTS[name], T0)
    return machine


def acts(effects: list[e.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def reports(effects: list[e.Effect]) -> list[tuple[str, Any]]:
    return [(effect.name.value, effect.data) for effect in effects if isinstance(effect, e.Report)]


TO_RUNNING = ("start", "image", "staged", "started")
TO_END = (*TO_RUNNING, "exited", "collected")


def test_a_good_job_goes_through_every_phase_and_says_so() -> None:
    machine, said, phases = fresh(), [], []
    for name in (*TO_END, "delivered", "cleared"):
        effects = machine.handle(FACTS[name], T0)
        said += [report for report, _ in reports(effects)]
        phases.append(machine.held[KEY].phase.value)
    assert said == ["starting", "running", "finishing", "finished"]
    assert phases == [
        "accepted", "staging", "starting", "running", "finishing", "finished", "finished", "finished",
    ]  # fmt: skip
    assert acts(machine.handle(FACTS["forget"], T0)) == ["Drop"]
    assert machine.held == {}


def test_a_start_is_written_down_before_it_is_acted_on_and_only_once() -> None:
    machine = fresh()
    assert acts(machine.handle(FACTS["start"], T0)) == ["SaveEpoch", "Save", "Prepare"]
    for name in ("start", "keep"):
        assert machine.handle(FACTS[name], T0) == []


def test_the_container_is_in_the_journal_before_it_is_started() -> None:
    effects = after("start", "image").handle(FACTS["staged"], T0)
    assert acts(effects) == ["Save", "Start"]
    assert isinstance(effects[0], e.Save)
    assert (effects[0].held.phase, effects[0].held.handle) == (Phase.STARTING, "c1")


def test_a_pull_is_reported_and_then_the_staging() -> None:
    machine = after("start")
    ((_, pull),) = reports(machine.handle(FACTS["missing"], T0))
    ((_, stage),) = reports(machine.handle(FACTS["image"], T0))
    assert (pull.phase, stage.phase) == ("pull", "stage_in")


def test_reports_have_ids_that_are_the_same_after_a_restart() -> None:
    ids = [
        effect.id
        for _ in range(2)
        for machine in [after("start")]
        for fact in ("missing", "image")
        for effect in machine.handle(FACTS[fact], T0)
        if isinstance(effect, e.Report)
    ]
    assert ids[:2] == ids[2:] == ["j1-1-starting-pull", "j1-1-starting-stage_in"]


def test_stop_and_forget_of_what_is_unknown_do_nothing() -> None:
    machine = fresh()
    machine.epoch = 1
    for name in ("stop", "forget", "keep"):
        assert machine.handle(FACTS[name], T0) == []


def test_an_epoch_below_the_highest_is_refused_and_a_higher_one_kept() -> None:
    machine = fresh()
    assert machine.handle(desired("start", epoch=5), T0)[0] == e.SaveEpoch(5)
    assert machine.handle(desired("stop", epoch=4), T0) == []
    assert acts(machine.handle(desired("keep", epoch=6), T0)) == ["SaveEpoch"]


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [(Outcome(0), "succeeded", None), (Outcome(2), "failed", "exit_code"), (LOST, "failed", "agent_lost_container")],
)
def test_the_end_says_how_the_program_did(outcome: Outcome, state: str, reason: str | None) -> None:
    machine = after(*TO_RUNNING)
    machine.handle(f.Exited(KEY, outcome), T0)
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert said.state == state
    assert (said.error and said.error.reason) == reason
    assert said.outputs == OUTPUTS
    assert said.running_at == T0
    assert said.image_digest == "repo@sha256:1"


def test_results_that_cannot_be_stored_make_a_failure_but_do_not_hide_one() -> None:
    unstored = f.Collected(KEY, None, failure=Failure(reason=EndReason.UPLOAD_FAILED, message="no"))
    for outcome, reason in ((Outcome(0), "upload_failed"), (Outcome(9), "exit_code")):
        machine = after(*TO_RUNNING)
        machine.handle(f.Exited(KEY, outcome), T0)
        ((_, said),) = reports(machine.handle(unstored, T0))
        assert said.error.reason == reason


@pytest.mark.parametrize("before", [("start",), ("start", "missing"), ("start", "image")])
def test_a_stop_before_the_program_gives_up_preparing_and_reports(before: tuple[str, ...]) -> None:
    machine = after(*before)
    effects = machine.handle(FACTS["stop"], T0)
    assert acts(effects) == ["Save", "Report", "Abort"]
    assert reports(effects)[0][1].state == "cancelled"
    for late in ("image", "staged", "failed"):
        assert machine.handle(FACTS[late], T0) == []


def test_a_stop_during_the_start_stops_as_soon_as_it_runs() -> None:
    machine = after("start", "image", "staged")
    assert acts(machine.handle(FACTS["stop"], T0)) == ["Save", "StartNoMore"]
    effects = machine.handle(FACTS["started"], T0)
    assert acts(effects) == ["Save", "Report", "Stop"]
    assert effects[-1] == e.Stop(machine.held[KEY], 3)


def test_a_stopped_program_is_cancelled_whatever_its_exit_code() -> None:
    machine = after(*TO_RUNNING)
    assert acts(machine.handle(FACTS["stop"], T0)) == ["Save", "Stop"]
    assert machine.handle(FACTS["stop"], T0) == [], "the scheduler repeats itself"
    machine.handle(FACTS["exited"], T0)
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert (said.state, said.exit_code, said.outputs) == ("cancelled", 0, OUTPUTS)


@pytest.mark.parametrize(
    ("before", "limit", "reason", "then"),
    [
        (("start",), 10, "pull_timeout", ["Save", "Report", "Abort"]),
        (("start", "missing"), 10, "pull_timeout", ["Save", "Report", "Abort"]),
        (("start", "image"), 20, "stage_in_timeout", ["Save", "Report", "Abort"]),
        (TO_RUNNING, 30, "run_timeout", ["Save", "Stop"]),
    ],
)
def test_each_clock_has_its_limit(before: tuple[str, ...], limit: float, reason: str, then: list[str]) -> None:
    machine = after(*before)
    assert machine.handle(f.Tick(), at(limit - 0.1)) == []
    assert acts(machine.handle(f.Tick(), at(limit))) == then
    assert machine.handle(f.Tick(), at(limit + 1)) == []
    end = machine.held[KEY].end or machine.held[KEY].stop
    assert end
    assert (end.state, end.failure and end.failure.reason) == (AttemptState.TIMED_OUT, reason)


@pytest.mark.parametrize("before", [("start", "image", "staged"), (*TO_RUNNING, "exited"), TO_END])
def test_where_there_is_no_limit_time_changes_nothing(before: tuple[str, ...]) -> None:
    assert after(*before).handle(f.Tick(), at(10**7)) == []


@pytest.mark.parametrize("count", range(1, len(TO_END) + 1))
def test_forget_clears_first_and_drops_then(count: int) -> None:
    machine = after(*TO_END[:count])
    assert acts(machine.handle(FACTS["forget"], T0)) == ["Save", "Clear"]
    assert machine.attempts() == ()
    assert machine.handle(FACTS["forget"], T0) == []
    for late in TO_END:
        machine.handle(FACTS[late], T0)
    assert acts(machine.handle(FACTS["cleared"], T0)) == ["Drop"]


@pytest.mark.parametrize(
    ("before", "found", "expected"),
    [
        (("start",), None, ["Save", "Prepare"]),
        (("start", "missing"), None, ["Save", "Prepare"]),
        (("start", "image"), "created", ["Save", "Prepare"]),
        (("start", "image", "staged"), "created", ["Start"]),
        (("start", "image", "staged"), "started", ["Save", "Report", "Follow"]),
        (("start", "image", "staged"), None, ["Save", "Report", "Collect"]),
        (TO_RUNNING, "started", ["Follow"]),
        (TO_RUNNING, None, ["Save", "Report", "Collect"]),
        ((*TO_RUNNING, "stop"), "started", ["Follow", "Stop"]),
        ((*TO_RUNNING, "exited"), "started", ["Collect"]),
        ((*TO_RUNNING, "exited"), None, ["Collect"]),
        (TO_END, "started", []),
        ((*TO_END, "delivered"), "started", ["Clear"]),
        ((*TO_END, "delivered", "cleared"), None, []),
        ((*TO_RUNNING, "forget"), "started", ["Clear"]),
    ],
)
def test_after_a_restart_the_work_goes_on_and_no_program_is_started_twice(
    before: tuple[str, ...], found: Any, expected: list[str]
) -> None:
    restarted = m.Machine(dict(after(*before).held), epoch=1)
    effects = restarted.handle(f.Recovered("docker", {KEY: ("c1", found)} if found else {}), T0)
    assert acts(effects) == expected


def test_a_lost_program_is_the_machine_s_fault() -> None:
    restarted = m.Machine(dict(after(*TO_RUNNING).held))
    restarted.handle(f.Recovered("docker", {}), T0)
    ((_, said),) = reports(restarted.handle(FACTS["collected"], T0))
    assert (said.state, said.error.reason) == ("failed", "agent_lost_container")


def test_an_order_for_a_runtime_that_has_not_answered_waits_for_it() -> None:
    machine = m.Machine()
    assert acts(machine.handle(FACTS["start"], T0)) == ["SaveEpoch", "Save"]
    assert acts(machine.handle(f.Recovered("process", {}), T0)) == []
    effects = machine.handle(f.Recovered("docker", {}), T0)
    assert effects[1:] == [e.Prepare(ORDER, again=True)]


def test_the_heartbeat_names_each_attempt_with_its_state() -> None:
    states = [after(*TO_END[:count]).attempts()[0].state for count in range(1, len(TO_END) + 1)]
    assert states == ["starting", "starting", "starting", "running", "finishing", "succeeded"]


# --- leases -------------------------------------------------------------------------------------------------------


def fenced_order(**more: Any) -> Order:
    return ORDER.model_copy(update={"spec": ORDER.spec.model_copy(update={"exclusive": True, **more})})


def granted(at_s: float, epoch: int = 1, lease_s: float = 30, *assignments: Assignment) -> f.Desired:
    return f.Desired(DesiredState(epoch=epoch, lease_s=lease_s, assignments=assignments), at_s)


def fenced_machine(*names: str, lease_at: float = 100) -> m.Machine:
    machine = fresh()
    start = Assignment(job_id="j1", attempt=1, action="start", order=fenced_order())
    machine.handle(granted(lease_at, 1, 30, start), T0)
    for name in names:
        machine.handle(FACTS[name], T0)
    return machine


def test_without_a_lease_for_two_thirds_of_it_an_exclusive_program_is_stopped_before_it_ends() -> None:
    machine = fenced_machine("image", "staged", "started")
    assert machine.handle(f.Tick(119.9), T0) == []
    effects = machine.handle(f.Tick(120.0), T0)
    assert acts(effects) == ["Save", "Stop"]
    assert isinstance(effects[1], e.Stop)
    assert effects[1].grace_s == 5.0
    assert machine.handle(f.Tick(121.0), T0) == []
    machine.handle(FACTS["exited"], T0)
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert (said.state, said.error.reason) == ("failed", "fenced")


@pytest.mark.parametrize(("woken_at", "grace_s"), [(121, 4), (124, 1), (125, 0), (700, 0)])
def test_a_machine_that_slept_leaves_only_the_time_that_is_left(woken_at: float, grace_s: float) -> None:
    effects = fenced_machine("image", "staged", "started").handle(f.Tick(woken_at), T0)
    assert isinstance(effects[-1], e.Stop)
    assert effects[-1].grace_s == grace_s


def test_a_program_that_may_go_on_runs_on_without_a_lease() -> None:
    machine = after(*TO_RUNNING)
    machine.handle(granted(100), T0)
    assert machine.handle(f.Tick(10_000), T0) == []


def test_a_new_lease_counts_from_when_it_was_asked_for() -> None:
    machine = fenced_machine("image", "staged", "started")
    machine.handle(granted(115), T0)
    assert machine.handle(f.Tick(134.9), T0) == []
    assert acts(machine.handle(f.Tick(135), T0)) == ["Save", "Stop"]


def test_an_older_scheduler_renews_no_lease() -> None:
    machine = fenced_machine("image", "staged", "started")
    machine.handle(granted(101, epoch=7), T0)
    assert machine.handle(granted(118, epoch=6), T0) == []
    assert acts(machine.handle(f.Tick(121), T0)) == ["Save", "Stop"]


def test_a_lease_that_is_used_up_before_the_program_runs_gives_it_up() -> None:
    effects = fenced_machine("image").handle(f.Tick(120), T0)
    assert acts(effects) == ["Save", "Report", "Abort"]
    assert reports(effects)[0][1].error.reason == "fenced"


def test_a_fence_shortens_a_longer_grace_and_the_attempt_ends_as_was_asked_first() -> None:
    machine = fenced_machine("image", "staged", "started")
    machine.handle(desired("stop", grace_s=600), T0)
    effects = machine.handle(f.Tick(120), T0)
    assert isinstance(effects[-1], e.Stop)
    assert effects[-1].grace_s == 5.0
    machine.handle(FACTS["exited"], T0)
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert said.state == "cancelled"


def test_the_lease_is_noted_while_something_depends_on_it_and_an_agent_after_this_one_goes_by_it() -> None:
    machine = fenced_machine("image", "staged", "started")
    assert acts(machine.handle(granted(110), T0)) == ["NoteLease"]
    for lease, expected in ((machine.lease, []), (None, ["Save", "Stop"])):
        restarted = m.Machine(dict(machine.held), 1, lease=lease)
        assert acts(restarted.handle(f.Tick(115), T0)) == expected
    assert acts(after(*TO_RUNNING).handle(granted(110), T0)) == []


def test_an_agent_without_a_lease_does_not_start_what_was_about_to_be_started() -> None:
    machine = fenced_machine("image", "staged")
    restarted = m.Machine(dict(machine.held), 1)
    restarted.handle(f.Tick(5.0), T0)
    effects = restarted.handle(f.Recovered("docker", {KEY: ("c1", "created")}), T0)
    assert acts(effects) == ["Save", "Report"]
    assert reports(effects)[0][1].error.reason == "fenced"


def test_what_was_fenced_gets_no_second_grace_from_an_agent_after_this_one() -> None:
    machine = fenced_machine("image", "staged", "started")
    machine.handle(f.Tick(120), T0)
    restarted = m.Machine(dict(machine.held), 1, lease=machine.lease)
    restarted.handle(f.Tick(128), T0)
    effects = restarted.handle(f.Recovered("docker", {KEY: ("c1", "started")}), T0)
    assert [effect.grace_s for effect in effects if isinstance(effect, e.Stop)] == [0]


def test_a_fenced_program_that_starts_nevertheless_is_killed_at_once() -> None:
    machine = fenced_machine("image", "staged")
    machine.handle(f.Tick(120), T0)
    effects = machine.handle(FACTS["started"], T0)
    assert [effect.grace_s for effect in effects if isinstance(effect, e.Stop)] == [0]


def test_a_stop_before_the_start_is_answered_keeps_it_from_being_tried_again() -> None:
    machine = after("start", "image", "staged")
    assert acts(machine.handle(FACTS["stop"], T0)) == ["Save", "StartNoMore"]
    ((_, said),) = reports(machine.handle(FACTS["failed"], T0))
    assert (said.state, said.error.reason) == ("cancelled", "cancelled_by_user")


FENCED = desired("start", order=fenced_order())
RUNS = PREPARING | {Phase.STARTING, Phase.RUNNING}


# --- an older scheduler, for good ------------------------------------------------------------------------------------


def test_an_older_scheduler_alone_for_a_minute_is_a_problem_and_a_newer_one_ends_it() -> None:
    machine = fresh()
    machine.handle(granted(0, epoch=5), T0)
    machine.handle(granted(10, epoch=3), T0)
    machine.handle(granted(60, epoch=3), T0)

    def said(at_s: float) -> str:
        return problem(machine.held.values(), {}, machine.older, machine.epoch, at_s)

    assert said(69) == ""
    assert "epoch 3 answers" in said(70)
    assert "5" in said(70)
    machine.handle(granted(71, epoch=6), T0)
    assert said(500) == ""


# --- bringing home, and what is in its way ---------------------------------------------------------------------------


def test_a_stop_while_results_come_home_abandons_them() -> None:
    machine = after(*TO_RUNNING, "exited")
    effects = machine.handle(FACTS["stop"], T0)
    assert acts(effects) == ["Save", "Report", "Abort"]
    ((_, said),) = reports(effects)
    assert (said.state, said.error.reason, said.outputs, said.exit_code) == ("cancelled", "cancelled_by_user", None, 0)
    assert machine.handle(FACTS["collected"], T0) == []


def test_the_stop_that_ended_the_program_does_not_abandon_what_it_left() -> None:
    machine = after(*TO_RUNNING, "stop", "exited")
    assert machine.handle(FACTS["stop"], T0) == []
    ((_, said),) = reports(machine.handle(desired("stop", reason=EndReason.FINISHING_TIMEOUT), T0))
    assert (said.state, said.outputs) == ("cancelled", None)


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("finishing_timeout", "failed", "could not be stored in time"),
        ("node_drained", "failed", "is being emptied"),
        ("total_timeout", "timed_out", "The job took longer than 40 s in all."),
        ("run_timeout", "timed_out", "The program took longer than 30 s."),
        ("pull_timeout", "timed_out", "Pulling the image took longer than 10 s."),
        ("stage_in_timeout", "timed_out", "Bringing the files took longer than 20 s."),
        ("agent_lost_container", "failed", "The node had not begun with it in time."),
    ],
)
def test_a_stop_says_why(reason: str, state: str, words: str) -> None:
    machine = after(*TO_RUNNING, "exited")
    ((_, said),) = reports(machine.handle(desired("stop", reason=EndReason(reason)), T0))
    assert (said.state, said.error.reason) == (state, reason)
    assert words in said.error.message


def test_a_program_that_sigkill_does_not_end_ends_the_attempt_and_is_a_problem_until_it_is_gone() -> None:
    machine = after(*TO_RUNNING, "stop")
    ((_, said),) = reports(machine.handle(f.Unkillable(KEY), T0))
    assert (said.state, said.error.reason) == ("failed", "unkillable")
    assert machine.handle(FACTS["exited"], T0) == []

    def told() -> str:
        return problem(machine.held.values(), {}, None, 1, 0)

    assert told() == "SIGKILL does not end j1-1"
    machine.handle(FACTS["delivered"], T0)
    assert told()
    machine.handle(FACTS["cleared"], T0)
    assert told() == ""


def test_the_heartbeat_says_which_last_words_are_in_the_log() -> None:
    assert [after(*TO_END, *more).attempts()[0].delivered for more in ((), ("delivered",))] == [False, True]


# --- a machine that was restarted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(0), None),
        (Outcome(3), "exit_code"),
        (Outcome(137), "node_rebooted"),
        (Outcome(137, is_oom=True), "oom"),
        (Outcome(255), "node_rebooted"),
        (LOST, "node_rebooted"),
    ],
)
def test_what_had_ended_before_a_reboot_counts_and_what_it_killed_is_the_machine_s_fault(
    outcome: Outcome, reason: str | None
) -> None:
    machine = m.Machine(recovered={"docker"}, boot_id="before")
    for name in TO_RUNNING:
        machine.handle(FACTS[name], T0)
    restarted = m.Machine(dict(machine.held), 1, boot_id="after")
    assert restarted.attempts()[0].state == "finishing", "nothing runs on over a reboot"
    restarted.handle(f.Recovered("docker", {KEY: ("c1", "started")}), T0)
    restarted.handle(f.Exited(KEY, outcome), T0)
    ((_, said),) = reports(restarted.handle(FACTS["collected"], T0))
    assert (said.error and said.error.reason) == reason


def test_in_every_order_of_facts_the_promises_hold() -> None:
    """Walk through all that can be reached: one start, one end, journal before act, nothing after forget."""
    seen: set[str] = set()
    todo: list[tuple[m.Machine, int, int, bool]] = [(fresh(), 0, 0, False)]
    finished = 0
    while todo:
        machine, starts, ends, gone = todo.pop()
        for name, fact in {**FACTS, "start": FENCED, "fence": f.Tick(1e9), "tick": f.Tick()}.items():
            if gone and name == "start":
                continue  # the scheduler never starts an attempt that it had forgotten
            copy = m.Machine(dict(machine.held), machine.epoch, set(machine.recovered))
            effects = copy.handle(fact, at(1000) if name == "tick" else T0)
            if name == "fence":
                assert not [held for held in copy.held.values() if held.stop is None and held.phase in RUNS]
            kinds = acts(effects)
            now_starts = starts + kinds.count("Start")
            now_ends = ends + sum(r == AttemptEventName.FINISHED for r, _ in reports(effects))
            assert now_starts <= 1, f"{name} started it again"
            assert now_ends <= 1, f"{name} ended it again"
            if {"Prepare", "Start", "Stop", "Collect", "Clear", "Abort", "Report"} & set(kinds):
                assert "Save" in kinds, f"{name} acts without writing down"
            assert "Start" not in kinds or copy.held[KEY].phase is Phase.STARTING
            finished += now_ends
            now_gone = gone or "Drop" in kinds
            state = f"{copy.held} {now_starts} {now_ends} {now_gone}"
            if state not in seen:
                seen.add(state)
                todo.append((copy, now_starts, now_ends, now_gone))
    assert finished
    assert 20 < len(seen) < 2000
