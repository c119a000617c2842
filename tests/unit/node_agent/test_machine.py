"""The agent's decisions: by story, and by walking through everything that can happen to one attempt."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.node_agent.core import machine as m
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from shared.fleet import Assignment, DesiredState, Order
from shared.job import BlobRef, Failure, OutputsRef
from shared.spec import JobSpec, Timeouts
from shared.states import AttemptEventName, AttemptState, EndReason

T0 = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("j1", 1)
ORDER = Order(
    job_id="j1", owner_id="u1", attempt=1, seq=5,
    spec=JobSpec(image="i", command="run", timeouts=Timeouts(pull=10, stage_in=20, run=30)),
)  # fmt: skip
OUTPUTS = OutputsRef(manifest=BlobRef(sha256="0" * 64, size=1), files=1, bytes=1)
BROKEN = Failure(reason=EndReason.BAD_SOURCE, message="bad")
LOST = Outcome(None, failure=Failure(reason=EndReason.AGENT_LOST_CONTAINER, message="gone"))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def desired(action: Any, epoch: int = 1, order: Order | None = ORDER, **more: Any) -> m.Desired:
    order = order if action == "start" else None
    return m.Desired(DesiredState(epoch=epoch, assignments=(
        Assignment(job_id=KEY.job_id, attempt=KEY.attempt, action=action, order=order, **more),
    )))  # fmt: skip


FACTS: dict[str, m.Fact] = {
    "start": desired("start"),
    "keep": desired("keep"),
    "stop": desired("stop", grace_s=3),
    "forget": desired("forget"),
    "missing": m.ImageMissing(KEY),
    "image": m.ImageFound(KEY, "repo@sha256:1"),
    "staged": m.Staged(KEY, "c1"),
    "started": m.Started(KEY),
    "failed": m.Failed(KEY, BROKEN),
    "exited": m.Exited(KEY, Outcome(0)),
    "collected": m.Collected(KEY, OUTPUTS),
    "delivered": m.Delivered(KEY),
    "cleared": m.Cleared(KEY),
}


def fresh() -> m.Machine:
    return m.Machine(recovered={"docker"})


def after(*names: str) -> m.Machine:
    machine = fresh()
    for name in names:
        machine.handle(FACTS[name], T0)
    return machine


def acts(effects: list[m.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def reports(effects: list[m.Effect]) -> list[tuple[str, Any]]:
    return [(effect.name.value, effect.data) for effect in effects if isinstance(effect, m.Report)]


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
    assert isinstance(effects[0], m.Save)
    assert (effects[0].held.phase, effects[0].held.handle) == (m.Phase.STARTING, "c1")


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
        if isinstance(effect, m.Report)
    ]
    assert ids[:2] == ids[2:] == ["j1-1-starting-pull", "j1-1-starting-stage_in"]


def test_stop_and_forget_of_what_is_unknown_do_nothing() -> None:
    machine = fresh()
    machine.epoch = 1
    for name in ("stop", "forget", "keep"):
        assert machine.handle(FACTS[name], T0) == []


def test_an_epoch_below_the_highest_is_refused_and_a_higher_one_kept() -> None:
    machine = fresh()
    assert machine.handle(desired("start", epoch=5), T0)[0] == m.SaveEpoch(5)
    assert machine.handle(desired("stop", epoch=4), T0) == []
    assert acts(machine.handle(desired("keep", epoch=6), T0)) == ["SaveEpoch"]


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [(Outcome(0), "succeeded", None), (Outcome(2), "failed", "exit_code"), (LOST, "failed", "agent_lost_container")],
)
def test_the_end_says_how_the_program_did(outcome: Outcome, state: str, reason: str | None) -> None:
    machine = after(*TO_RUNNING)
    machine.handle(m.Exited(KEY, outcome), T0)
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert said.state == state
    assert (said.error and said.error.reason) == reason
    assert said.outputs == OUTPUTS
    assert said.running_at == T0
    assert said.image_digest == "repo@sha256:1"


def test_results_that_cannot_be_stored_make_a_failure_but_do_not_hide_one() -> None:
    unstored = m.Collected(KEY, None, failure=Failure(reason=EndReason.UPLOAD_FAILED, message="no"))
    for outcome, reason in ((Outcome(0), "upload_failed"), (Outcome(9), "exit_code")):
        machine = after(*TO_RUNNING)
        machine.handle(m.Exited(KEY, outcome), T0)
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
    assert acts(machine.handle(FACTS["stop"], T0)) == ["Save"]
    effects = machine.handle(FACTS["started"], T0)
    assert acts(effects) == ["Save", "Report", "Stop"]
    assert effects[-1] == m.Stop(machine.held[KEY], 3)


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
    assert machine.handle(m.Tick(), at(limit - 0.1)) == []
    assert acts(machine.handle(m.Tick(), at(limit))) == then
    assert machine.handle(m.Tick(), at(limit + 1)) == []
    end = machine.held[KEY].end or machine.held[KEY].stop
    assert end
    assert (end.state, end.failure and end.failure.reason) == (AttemptState.TIMED_OUT, reason)


@pytest.mark.parametrize("before", [("start", "image", "staged"), (*TO_RUNNING, "exited"), TO_END])
def test_where_there_is_no_limit_time_changes_nothing(before: tuple[str, ...]) -> None:
    assert after(*before).handle(m.Tick(), at(10**7)) == []


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
    effects = restarted.handle(m.Recovered("docker", {KEY: ("c1", found)} if found else {}), T0)
    assert acts(effects) == expected


def test_a_lost_program_is_the_machine_s_fault() -> None:
    restarted = m.Machine(dict(after(*TO_RUNNING).held))
    restarted.handle(m.Recovered("docker", {}), T0)
    ((_, said),) = reports(restarted.handle(FACTS["collected"], T0))
    assert (said.state, said.error.reason) == ("failed", "agent_lost_container")


def test_an_order_for_a_runtime_that_has_not_answered_waits_for_it() -> None:
    machine = m.Machine()
    assert acts(machine.handle(FACTS["start"], T0)) == ["SaveEpoch", "Save"]
    assert acts(machine.handle(m.Recovered("process", {}), T0)) == []
    effects = machine.handle(m.Recovered("docker", {}), T0)
    assert effects[1:] == [m.Prepare(ORDER, again=True)]


def test_the_heartbeat_names_each_attempt_with_its_state() -> None:
    states = [after(*TO_END[:count]).attempts()[0].state for count in range(1, len(TO_END) + 1)]
    assert states == ["starting", "starting", "starting", "running", "finishing", "succeeded"]


def test_in_every_order_of_facts_the_promises_hold() -> None:
    """Walk through all that can be reached: one start, one end, journal before act, nothing after forget."""
    seen: set[str] = set()
    todo: list[tuple[m.Machine, int, int, bool]] = [(fresh(), 0, 0, False)]
    finished = 0
    while todo:
        machine, starts, ends, gone = todo.pop()
        for name, fact in {**FACTS, "tick": m.Tick()}.items():
            if gone and name == "start":
                continue  # the scheduler never starts an attempt that it had forgotten
            copy = m.Machine(dict(machine.held), machine.epoch, set(machine.recovered))
            effects = copy.handle(fact, at(1000) if name == "tick" else T0)
            kinds = acts(effects)
            now_starts = starts + kinds.count("Start")
            now_ends = ends + sum(r == AttemptEventName.FINISHED for r, _ in reports(effects))
            assert now_starts <= 1, f"{name} started it again"
            assert now_ends <= 1, f"{name} ended it again"
            if {"Prepare", "Start", "Stop", "Collect", "Clear", "Abort", "Report"} & set(kinds):
                assert "Save" in kinds, f"{name} acts without writing down"
            assert "Start" not in kinds or copy.held[KEY].phase is m.Phase.STARTING
            finished += now_ends
            now_gone = gone or "Drop" in kinds
            state = f"{copy.held} {now_starts} {now_ends} {now_gone}"
            if state not in seen:
                seen.add(state)
                todo.append((copy, now_starts, now_ends, now_gone))
    assert finished
    assert 20 < len(seen) < 2000
