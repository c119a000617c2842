"""What follows from a node's heartbeats, or from its silence, for the attempts on it."""

from dataclasses import replace

import pytest

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Recorded
from services.scheduler.core.limits import Limits
from shared.states import AttemptState, EndReason, JobState

TIMEOUTS = {"pull": 100, "stage_in": 50, "run": 1000, "total": 100_000}


@pytest.fixture
def world(make):
    return make.World()


def begin(make, world, phase="running", **spec):
    """Let node n1 have job j1, as far as *phase*."""
    world.hear()
    world.turn(world.create(make.job(timeouts=TIMEOUTS, **spec)))
    assert world.job().attempts[-1].node == "n1"
    hold(world)
    reports = {"pull": make.starting(), "running": make.running(), "finishing": make.finishing()}
    for name, report in reports.items() if phase != "placed" else ():
        world.turn(world.report("n1", "j1", report))
        if name == phase:
            return


def hold(world, node="n1", **beat):
    world.hear(node, held=(("j1", 1),) if world.job().attempt else (), **beat)


def pass_time(world, to, *, step=5, heard=True, until=None, **beat):
    """Tick, with a heartbeat each time, up to second *to* or until the job is no longer where it was."""
    before = world.job().state
    while world.now < to:
        world.now += step
        if heard:
            hold(world, **beat)
        world.tick(world.now)
        if until is not None and world.job().state is not before:
            return


def read_back(world):
    """Let what the scheduler has written come back to it, as it does on the stream."""
    world.turn(*(entry for entry in world.log if entry.seq in world.state.written))


def stopped(world, make, node="n1"):
    """Return why the node is told to stop the job, or None if it is not told to."""
    [told] = desired_state(world.state, node, 1, make.at(world.now)).assignments
    return told.reason if told.action == "stop" else None


@pytest.mark.parametrize(
    ("phase", "limit", "reason", "state"),
    [
        ("placed", 300, EndReason.AGENT_LOST_CONTAINER, JobState.QUEUED),
        ("pull", 150 + 60, EndReason.PULL_TIMEOUT, JobState.TIMED_OUT),
        ("running", 1000 + 60, EndReason.RUN_TIMEOUT, JobState.TIMED_OUT),
        ("finishing", 3600, EndReason.FINISHING_TIMEOUT, JobState.QUEUED),
    ],
)
def test_a_node_that_does_not_keep_a_limit_is_told_to_and_then_no_longer_waited_for(
    make, world, phase, limit, reason, state
) -> None:
    begin(make, world, phase)
    pass_time(world, limit - 10)
    assert stopped(world, make) is None
    pass_time(world, limit + 10)
    assert stopped(world, make) is reason
    obey_s = 60 if phase == "finishing" else 300
    pass_time(world, limit + obey_s - 10)
    assert not world.job().is_terminal
    pass_time(world, limit + obey_s + 20, until="moved")
    assert world.job().state is state
    [attempt] = world.job().attempts
    assert (attempt.state, attempt.error.reason) == (AttemptState.LOST, reason)
    assert "name-n1 was told to stop it and did not" in attempt.error.message


def test_a_new_leader_finds_an_attempt_that_should_long_be_over(make, world) -> None:
    begin(make, world)
    world.now = 5000
    world.state = type(world.state)(world.limits, make.at(world.now))
    world.state.position = world.seq
    world.turn(Recorded(world.seq, world.job(), 0))
    pass_time(world, 5055)
    assert stopped(world, make) is None  # it may have reported its end while nobody led
    pass_time(world, 5070)
    assert stopped(world, make) is EndReason.RUN_TIMEOUT
    pass_time(world, 5290)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 5320, until="ended")
    assert world.job().state is JobState.TIMED_OUT


def test_a_node_that_comes_back_has_a_minute_to_deliver_what_it_did_meanwhile(make, world) -> None:
    begin(make, world, "pull", replace_after="2h")
    pass_time(world, 1000, heard=False)
    assert world.job().state is JobState.STARTING
    pass_time(world, 1055)
    assert stopped(world, make) is None
    world.turn(world.report("n1", "j1", make.running(s=900)))
    pass_time(world, 1500)
    assert stopped(world, make) is None
    assert world.job().state is JobState.RUNNING


def test_a_cancelled_job_whose_outputs_never_come_home_ends_cancelled_without_them(make, world) -> None:
    begin(make, world, "finishing")
    world.turn(world.cancel("j1"))
    assert stopped(world, make) is None  # it may be done any moment
    pass_time(world, 65)
    assert stopped(world, make) is EndReason.FINISHING_TIMEOUT
    pass_time(world, 110)
    assert world.job().state is JobState.FINISHING
    pass_time(world, 130, until="ended")
    assert (world.job().state, world.job().outputs) == (JobState.CANCELLED, None)


def test_a_cancelled_program_that_its_node_does_not_stop_is_no_longer_waited_for(make, world) -> None:
    begin(make, world)
    world.turn(world.cancel("j1"))
    pass_time(world, 290)
    assert world.job().state is JobState.RUNNING
    assert stopped(world, make) is EndReason.CANCELLED_BY_USER
    pass_time(world, 310, until="ended")
    assert world.job().state is JobState.CANCELLED


def test_a_program_that_has_just_ended_by_itself_is_not_told_to_stop_before_its_report_is_here(make, world) -> None:
    begin(make, world)
    world.turn(world.cancel("j1"))
    hold(world, held_as="running")
    assert stopped(world, make) is EndReason.CANCELLED_BY_USER
    hold(world, held_as="finishing")
    assert stopped(world, make) is None


# --- silence -----------------------------------------------------------------------------------------------------


def test_a_job_with_replace_after_stays_on_its_silent_node_with_a_remark_and_goes_on_when_it_is_back(
    make, world
) -> None:
    begin(make, world, replace_after="10m")
    world.events.clear()
    pass_time(world, 500, heard=False)
    assert world.state.nodes["n1"].is_lost
    assert world.events == [("j1", "remarked")]
    [remark] = world.job().remarks
    assert remark == "node name-n1 is silent; the job stays there until it has been so for 600 s"
    pass_time(world, 505)
    assert world.job().remarks[1:] == ("node name-n1 is heard again",)
    world.turn(world.report("n1", "j1", make.finished()))
    assert (world.job().state, world.job().losses, world.job().attempt) == (JobState.SUCCEEDED, 0, 1)


def test_a_job_with_replace_after_is_placed_elsewhere_once_that_has_passed(make, world) -> None:
    begin(make, world, replace_after="10m")
    pass_time(world, 600, heard=False)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 610, heard=False, until="lost")
    assert (world.job().state, world.job().losses) == (JobState.QUEUED, 1)
    assert world.job().attempts[0].error.reason is EndReason.NODE_LOST
    assert world.job().attempts[0].heard_at == make.START


def test_a_new_leader_counts_the_silence_before_it_led(make, world) -> None:
    begin(make, world, replace_after="10m")
    pass_time(world, 500, heard=False)
    world.state = type(world.state)(world.limits, make.at(500))
    world.state.position = world.seq
    world.turn(Recorded(world.seq, world.job(), 0), fleet=tuple(world.fleet))
    pass_time(world, 595, heard=False)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 610, heard=False, until="lost")
    assert world.job().state is JobState.QUEUED


def test_a_job_that_is_cancelled_while_its_node_is_silent_ends_after_the_lease(make, world) -> None:
    begin(make, world, replace_after="10h")
    pass_time(world, 20, heard=False)
    world.turn(world.cancel("j1"))
    assert world.job().state is JobState.RUNNING
    pass_time(world, 40, heard=False, until="ended")
    assert world.job().state is JobState.CANCELLED


def test_nobody_is_given_up_while_the_scheduler_itself_may_have_been_away(make, world) -> None:
    begin(make, world, replace_after=60)
    pass_time(world, 50, heard=False)
    world.tick(51, was_cut_off=True)
    pass_time(world, 76, heard=False)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 90, heard=False, until="lost")
    assert world.job().state is JobState.QUEUED


@pytest.mark.parametrize(("exclusive", "given_up_after"), [(False, 30), (True, 120)])
def test_an_exclusive_job_waits_for_the_longest_lease_that_a_leader_before_may_have_granted(
    make, world, exclusive, given_up_after
) -> None:
    begin(make, world, exclusive=exclusive)
    world.now = 100
    world.state = type(world.state)(world.limits, make.at(100))
    world.state.position = world.seq
    world.turn(Recorded(world.seq, world.job(), 0))
    pass_time(world, 100 + given_up_after, heard=False)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 100 + given_up_after + 10, heard=False, until="lost")
    assert world.job().state is JobState.QUEUED


def test_an_exclusive_job_waits_for_the_longest_lease_that_its_node_was_granted(make) -> None:
    world = make.World(replace(Limits(), heartbeats_per_s_max=0.04))  # one node: a heartbeat each 25 s, a lease of 75
    begin(make, world, exclusive=True)
    desired_state(world.state, "n1", 1, make.at(0))
    world.state.limits = world.limits = Limits()
    pass_time(world, 75, heard=False)
    assert world.job().state is JobState.RUNNING
    pass_time(world, 85, heard=False, until="lost")
    assert world.job().state is JobState.QUEUED


def test_an_exclusive_job_that_its_node_does_not_stop_fails_rather_than_run_twice(make, world) -> None:
    begin(make, world, exclusive=True, max_attempts=5, retry_on=["timed_out"])
    pass_time(world, 1400, until="ended")
    assert (world.job().state, world.job().error.reason) == (JobState.TIMED_OUT, EndReason.RUN_TIMEOUT)


# --- reports that never come -------------------------------------------------------------------------------------


def test_an_attempt_whose_delivered_report_could_not_be_read_is_lost_after_ten_seconds(make, world) -> None:
    begin(make, world)
    read_back(world)
    for second in range(1, 11):
        world.now = second
        hold(world, held_as="succeeded", delivered=True)
        assert world.job().state is JobState.RUNNING
    world.now = 12
    hold(world, held_as="succeeded", delivered=True)
    assert world.job().attempts[0].error.reason is EndReason.REPORT_MISSING
    assert (world.job().losses, world.job().tries) == (1, 0)


def test_a_few_heartbeats_long_apart_are_not_enough_nor_is_a_report_still_on_its_way(make, world) -> None:
    begin(make, world)
    read_back(world)
    for second in (10, 20, 30, 40):
        world.now = second
        hold(world, held_as="succeeded", delivered=True)
    world.now = 41
    hold(world, held_as="succeeded")  # counted anew: it says otherwise
    for second in range(42, 70):
        world.now = second
        hold(world, held_as="succeeded", delivered=second < 50)
    assert world.job().state is JobState.RUNNING


def test_a_log_that_is_read_with_delay_is_no_missing_report(make, world) -> None:
    begin(make, world)
    for second in range(1, 60):
        world.now = second
        hold(world, held_as="succeeded", delivered=True)
    assert world.job().state is JobState.RUNNING
    read_back(world)  # its own events: none had come back until now
    for second in range(60, 71):
        world.now = second
        hold(world, held_as="succeeded", delivered=True)
    assert world.job().state is JobState.QUEUED


# --- reboots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_as", ["running", None])
def test_what_ran_on_a_node_that_has_rebooted_is_lost_at_once(make, world, held_as) -> None:
    begin(make, world)
    world.now = 20
    if held_as:
        hold(world, boot_id="b2", session="s2", held_as=held_as)
    else:
        world.hear(boot_id="b2", session="s2")
    assert world.job().state is JobState.QUEUED
    assert world.job().attempts[0].error.reason is EndReason.NODE_REBOOTED
    assert world.job().attempts[0].heard_at == make.START


def test_what_had_ended_before_a_reboot_is_waited_for(make, world) -> None:
    begin(make, world)
    hold(world, boot_id="b2", session="s2", held_as="succeeded")
    assert world.job().state is JobState.RUNNING
    world.turn(world.report("n1", "j1", make.finished()))
    assert world.job().state is JobState.SUCCEEDED


def test_what_a_rebooted_node_never_had_is_ordered_again(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(boot_id="b2", session="s2")
    [told] = desired_state(world.state, "n1", 1, make.at(0)).assignments
    assert (told.action, told.attempt) == ("start", 1)


def test_a_job_whose_program_reboots_two_nodes_is_given_up(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job()))
    boots = {"n1": "b1", "n2": "b1"}
    for number, node in ((1, "n1"), (2, "n2")):
        world.now += 100
        for _ in range(2):
            world.hear(node, held=(("j1", number),), boot_id=boots[node])
        assert world.job().attempts[-1].node == node
        world.turn(world.report(node, "j1", make.running(number, s=world.now)))
        world.now += 10
        boots[node] = "b2"
        if number == 1:
            world.hear(node, boot_id="b2", session="s2")
            world.now += 10
            world.hear("n2", boot_id="b1")
        else:  # its own word comes before its first heartbeat
            lost = make.finished(number, AttemptState.FAILED, EndReason.NODE_REBOOTED, s=world.now)
            world.turn(world.report(node, "j1", lost))
    assert (world.job().state, world.job().error.reason) == (JobState.FAILED, EndReason.SUSPECTED_NODE_KILLER)


def test_an_earlier_reboot_is_not_taken_for_the_one_that_ended_the_attempt(make, world) -> None:
    world.hear()
    world.now = 50
    world.hear(boot_id="b2", session="s2")
    world.now = 60
    world.hear(boot_id="b2", session="s2")
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.running(s=61)))
    world.now = 700
    world.hear(boot_id="b2", session="s2", held=(("j1", 1),))
    world.now = 720
    lost = make.finished(1, AttemptState.FAILED, EndReason.NODE_REBOOTED, s=720)
    world.turn(world.report("n1", "j1", lost))
    assert world.job().attempts[0].heard_at == make.at(700).at


def test_a_remark_beside_a_move_does_not_name_the_event(make, world) -> None:
    begin(make, world, "pull", replace_after="10m")
    pass_time(world, 50, heard=False)
    world.events.clear()
    world.now = 51
    beat = make.beat("n1", seq=9999, held=(("j1", 1),))
    world.turn(world.report("n1", "j1", make.running(s=51)), beats=(beat,))
    assert world.events == [("j1", "running")]
    assert world.job().remarks[-1] == "node name-n1 is heard again"
