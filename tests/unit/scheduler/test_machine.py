from dataclasses import replace

import pytest

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Recorded
from services.scheduler.core.limits import Limits
from services.scheduler.core.machine import Batch, Beat, handle
from shared.spec import GIB
from shared.states import AttemptState, EndReason, JobState, PendingCode


@pytest.fixture
def world(make):
    return make.World()


def desired(world, make, node="n1"):
    return desired_state(world.state, node, 1, make.at(world.now))


def actions(world, make, node="n1"):
    return [(a.job_id, a.attempt, a.action) for a in desired(world, make, node).assignments]


def names(world, job_id="j1"):
    return [name for job, name in world.events if job == job_id]


def test_a_job_costs_two_events_of_the_scheduler_if_its_reports_come_together(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    assert world.woken == ["n1"]
    world.hear(held=())
    assert actions(world, make) == [("j1", 1, "start")]
    order = desired(world, make).assignments[0].order
    assert (order.spec, order.seq) == (make.job().spec, world.state.jobs["j1"].seq)
    world.hear(held=(("j1", 1),))
    assert actions(world, make) == [("j1", 1, "keep")]
    reports = [make.starting(), make.running(), make.finishing(), make.finished()]
    world.turn(*(world.report("n1", "j1", data) for data in reports))
    assert names(world) == ["placed", "succeeded"]
    assert world.job().attempts[0].running_at is not None
    world.hear(held=(("j1", 1),))
    assert actions(world, make) == [("j1", 1, "forget")]
    assert not world.state.jobs


def test_a_job_that_waits_is_placed_as_soon_as_a_node_joins(make, world) -> None:
    world.turn(world.create(make.job()))
    assert names(world) == []
    world.hear()
    assert names(world) == ["placed"]
    assert world.woken == []  # the answer to this very heartbeat brings the order
    assert actions(world, make) == [("j1", 1, "start")]


def test_what_an_ended_attempt_held_is_given_on_at_once(make, world) -> None:
    world.hear(cpus=1)
    world.turn(world.create(make.job("j1")), world.create(make.job("j2")))
    assert (world.job("j1").state, world.job("j2").state) == (JobState.PLACED, JobState.QUEUED)
    effects = world.turn(world.report("n1", "j1", make.finished()))
    assert effects.again
    world.settle()
    assert world.job("j2").state is JobState.PLACED


def test_higher_priority_goes_first_and_then_who_came_first(make, world) -> None:
    jobs = [
        make.job("late", created_s=3),
        make.job("early", created_s=1),
        make.job("urgent", created_s=9, priority=90),
        make.job("small", created_s=2, resources={"cpus": 0.5}),
    ]
    world.turn(*(world.create(job) for job in jobs))
    world.hear(cpus=8)
    assert [job for job, _ in world.events] == ["urgent", "early", "small", "late"]


def test_a_job_that_fits_nowhere_does_not_hold_up_others(make, world) -> None:
    world.turn(world.create(make.job("big", priority=100, resources={"cpus": 64})), world.create(make.job("j1")))
    world.hear()
    assert world.events == [("j1", "placed")]


def test_needs_that_fit_nowhere_are_not_tried_again_until_something_is_gained(make, world) -> None:
    world.hear(cpus=1)
    world.turn(world.create(make.job("j1")), *(world.create(make.job(f"w{n}")) for n in range(50)))
    assert len(world.state.blocked) == 1
    world.hear(cpus=1, held=(("j1", 1),))
    assert len(world.state.blocked) == 1
    world.hear(cpus=2, held=(("j1", 1),))
    assert len([name for _, name in world.events if name == "placed"]) == 2


def test_a_repeated_or_stale_input_changes_nothing(make, world) -> None:
    world.hear()
    created = world.create(make.job())
    world.turn(created)
    finished = world.report("n1", "j1", make.finished(1, AttemptState.FAILED, EndReason.NODE_LOST))
    world.turn(finished)
    before = world.job()
    world.turn(finished, created)
    assert world.job() == before
    assert names(world) == ["placed", "requeued"]


def test_ones_own_events_come_back_and_change_nothing_even_after_the_end(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.finished()))
    own = [entry for entry in world.log if isinstance(entry, Recorded) and entry.epoch == 1]
    world.turn(own[0])
    assert world.state.jobs == {}
    world.turn(*own[1:])
    assert world.state.written == set()


def test_an_event_of_another_scheduler_is_believed(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    other = world.job().model_copy(update={"state": JobState.CANCELLED, "input_seq": 99})
    world.turn(Recorded(50, other, 2))
    assert world.state.jobs == {}


def test_cancelling_a_running_job_stops_it_on_its_node_and_the_nodes_word_ends_it(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(held=(("j1", 1),))
    world.turn(world.report("n1", "j1", make.running()))
    world.woken.clear()
    world.turn(world.cancel("j1"))
    assert world.woken == ["n1"]
    assert actions(world, make) == [("j1", 1, "stop")]
    world.turn(world.report("n1", "j1", make.finished(1, AttemptState.CANCELLED)))
    assert names(world) == ["placed", "running", "cancelling", "cancelled"]


def test_a_job_cancelled_in_the_turn_in_which_it_was_created_is_never_placed(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()), world.cancel("j1"))
    assert names(world) == ["cancelled"]
    world.settle()
    assert len(world.state.line) == 0


def test_a_cancelled_attempt_that_its_node_never_got_ends_without_the_nodes_word(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.cancel("j1"))
    world.hear()
    assert world.job().state is JobState.PLACED
    world.hear()
    assert world.job().state is JobState.CANCELLED


def test_an_attempt_that_a_restarted_agent_no_longer_has_is_lost_after_two_heartbeats(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(held=(("j1", 1),))
    world.woken.clear()
    world.hear(session="s2")
    assert actions(world, make) == []
    assert world.woken == ["n1"]
    world.hear(session="s2")
    assert names(world) == ["placed", "requeued"]
    assert world.job().attempts[0].error.reason is EndReason.AGENT_LOST_CONTAINER
    assert (world.job().losses, world.job().tries) == (1, 0)


def test_an_attempt_known_by_its_reports_alone_is_lost_too_when_the_node_lacks_it(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.starting()))
    world.hear()
    assert names(world) == ["placed", "starting"]
    world.hear()
    assert names(world) == ["placed", "starting", "requeued"]


def test_an_attempt_that_was_only_placed_is_simply_ordered_again(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    for session in ("s1", "s1", "s2", "s2", "s2"):
        world.hear(session=session)
        assert actions(world, make) == [("j1", 1, "start")]


def test_a_repeated_heartbeat_is_not_a_second_word(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.running()))
    beat = make.beat(seq=77)
    world.turn(beats=(beat,))
    world.turn(beats=(beat,))
    assert world.job().state is JobState.RUNNING


def test_a_silent_node_is_lost_after_its_lease_and_its_jobs_run_elsewhere(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job()))
    for second in range(1, 200):
        if second <= 100:
            world.hear("n1", held=(("j1", 1),))
        world.hear("n2")
        world.tick(second)
        if world.job().attempt == 2:
            break
    assert second == 99 + 30 + 1 + 1  # last heard, the lease, the tick after it, a second of back-off
    assert names(world) == ["placed", "requeued", "placed"]
    assert world.job().attempts[0].state is AttemptState.LOST
    world.hear("n1", held=(("j1", 1),))
    assert actions(world, make) == [("j1", 1, "forget")]
    world.turn(world.report("n1", "j1", make.finished(1)))
    assert world.job().state is JobState.PLACED


def run_fleet(world, nodes, until, silent_after, *, cut_off=()):
    """Let *nodes* heartbeat each second until they fall silent, and tick."""
    for second in range(int(world.now) + 1, until + 1):
        for node in nodes:
            if second <= silent_after.get(node, until):
                job = f"j-{node}"
                world.hear(node, held=((job, 1),) if job in world.state.jobs else ())
        world.tick(second, was_cut_off=second in cut_off)


def fleet_with_jobs(make, world, count):
    nodes = [f"n{n}" for n in range(count)]
    for node in nodes:
        world.hear(node)
    world.turn(*(world.create(make.job(f"j-{node}", placement={"node": node})) for node in nodes))
    return nodes


def test_nobody_is_lost_when_most_of_the_fleet_is_silent_at_once_until_patience_ends(make) -> None:
    world = make.World(replace(Limits(), mass_loss_patience_s=300))
    nodes = fleet_with_jobs(make, world, 5)
    run_fleet(world, nodes, 250, dict.fromkeys(nodes[:3], 50))
    assert {world.job(f"j-{n}").state for n in nodes} == {JobState.PLACED}
    run_fleet(world, nodes, 360, dict.fromkeys(nodes[:3], 50))
    assert [world.job(f"j-{n}").state for n in nodes] == [JobState.QUEUED] * 3 + [JobState.PLACED] * 2


def test_a_few_lost_nodes_of_many_are_lost(make, world) -> None:
    nodes = fleet_with_jobs(make, world, 5)
    run_fleet(world, nodes, 100, dict.fromkeys(nodes[:2], 50))
    assert [world.job(f"j-{n}").state for n in nodes] == [JobState.QUEUED] * 2 + [JobState.PLACED] * 3


def test_nobody_is_lost_for_one_lease_after_the_scheduler_itself_was_cut_off(make, world) -> None:
    nodes = fleet_with_jobs(make, world, 2)
    run_fleet(world, nodes, 108, dict.fromkeys(nodes, 50), cut_off=range(51, 80))
    assert {world.job(f"j-{n}").state for n in nodes} == {JobState.PLACED}
    run_fleet(world, nodes, 111, dict.fromkeys(nodes, 50))
    assert {world.job(f"j-{n}").state for n in nodes} == {JobState.QUEUED}


def test_a_scheduler_that_stood_still_blames_itself_first(make, world) -> None:
    nodes = fleet_with_jobs(make, world, 2)
    run_fleet(world, nodes, 50, {})
    world.tick(200)
    assert {world.job(f"j-{n}").state for n in nodes} == {JobState.PLACED}


def test_a_new_leader_gives_nodes_that_it_has_not_heard_yet_one_lease(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.now = 500
    state = type(world.state)(world.limits, make.at(500))
    state.position, world.state = world.state.position, state
    world.turn(Recorded(world.seq, world.job(), 0))
    world.tick(529)
    assert world.job().state is JobState.PLACED
    for second in range(530, 533):
        world.tick(second)
    assert world.job().state is JobState.QUEUED


def test_an_overdue_job_is_stopped_and_timed_out(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job(timeouts={"total": 60})))
    world.hear(held=(("j1", 1),))
    world.woken.clear()
    world.now = 59
    world.hear(held=(("j1", 1),))
    world.tick(60)
    assert world.woken == ["n1"]
    assert actions(world, make) == [("j1", 1, "stop")]
    world.now = 61
    world.turn(world.report("n1", "j1", make.finished(1, AttemptState.CANCELLED, s=61)))
    assert world.job().error.reason is EndReason.TOTAL_TIMEOUT


def test_a_queue_limit_ends_a_job_without_any_message(make, world) -> None:
    world.turn(world.create(make.job(timeouts={"queue": 30})))
    world.tick(29)
    assert "timed_out" not in names(world)
    world.tick(31)
    assert world.job().error.reason is EndReason.QUEUE_TIMEOUT


def test_backed_off_jobs_wait_and_say_so(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job(max_attempts=2)))
    world.turn(world.report("n1", "j1", make.finished(1, AttemptState.FAILED, EndReason.EXIT_CODE)))
    assert [reason.code for reason in world.job().pending] == [PendingCode.BACKOFF]
    for second in range(1, 10):
        world.hear()
        world.tick(second)
    assert world.job().attempt == 1
    world.hear()
    world.tick(10)
    assert (world.job().attempt, world.job().pending) == (2, ())


def test_pending_is_told_late_for_short_waits_once_and_again_only_when_the_reasons_change(make, world) -> None:
    world.hear(cpus=1)
    world.turn(world.create(make.job("j0")), world.create(make.job("j1")))
    for second in range(1, 60):
        world.hear(cpus=1, held=(("j0", 1),))
        world.tick(second)
        if second == 4:
            assert names(world) == []
    assert names(world) == ["pending"]
    assert [reason.code for reason in world.job().pending] == [PendingCode.CPUS]
    for second in range(60, 80):
        world.hear(cpus=1, memory=GIB // 2, held=(("j0", 1),))
        world.tick(second)
    assert names(world) == ["pending", "pending"]
    assert {reason.code for reason in world.job().pending} == {PendingCode.CPUS, PendingCode.MEMORY}


def test_what_no_node_could_ever_run_is_said_within_two_seconds(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job(resources={"cpus": 64})))
    world.hear()
    world.tick(2)
    assert names(world) == ["pending"]
    assert "needs 64 cpus; the largest node has 4" in world.job().pending[0].message


def test_a_flood_of_waiting_jobs_is_told_of_in_measure(make) -> None:
    world = make.World(replace(Limits(), pending_per_tick=7))
    world.turn(*(world.create(make.job(f"j{n}", resources={"cpus": 64})) for n in range(20)))
    world.hear()
    for second, told in ((2, 7), (3, 14), (4, 20), (5, 20)):
        world.hear()
        world.tick(second)
        assert len(world.events) == told


def test_start_orders_that_do_not_fit_one_answer_come_with_the_next(make) -> None:
    world = make.World(replace(Limits(), answer_bytes_max=25_000))
    world.hear(cpus=64, memory=64 * GIB)
    jobs = [make.job(f"j{n}", env={"X": "x" * 10_000}) for n in range(5)]
    world.turn(*(world.create(job) for job in jobs))
    held: list[tuple[str, int]] = []
    sizes = []
    while True:
        world.hear(cpus=64, memory=64 * GIB, held=tuple(held))
        answer = desired(world, make)
        started = [a for a in answer.assignments if a.action == "start"]
        sizes.append(len(started))
        held += [(a.job_id, a.attempt) for a in started]
        if not answer.more:
            break
    assert sizes == [2, 2, 1]


def test_one_order_larger_than_the_limit_still_goes_out(make) -> None:
    world = make.World(replace(Limits(), answer_bytes_max=100))
    world.hear()
    world.turn(world.create(make.job(env={"X": "x" * 10_000})))
    assert actions(world, make) == [("j1", 1, "start")]


def test_a_turn_places_so_many_and_says_that_there_is_more(make) -> None:
    world = make.World(replace(Limits(), placements_per_turn=3))
    world.hear(cpus=64, memory=64 * GIB)
    effects = world.turn(*(world.create(make.job(f"j{n}")) for n in range(7)))
    assert (len(effects.records), effects.again) == (3, True)
    world.settle()
    assert len(world.events) == 7


def test_a_wake_is_not_repeated_until_the_node_had_time_to_answer(make, world) -> None:
    world.hear(cpus=64, memory=64 * GIB)
    for n, second in enumerate((0, 0.1, 0.2, 0.7)):
        world.now = second
        world.turn(world.create(make.job(f"j{n}")))
    assert world.woken == ["n1", "n1"]


def test_the_interval_grows_with_the_fleet(make, world) -> None:
    assert world.limits.interval_for(10) == 2
    assert world.limits.interval_for(10_000) == 20
    assert world.limits.lease_for(10_000) == 60
    assert world.limits.lease_for(10) == 30


def test_the_subject_says_who_a_heartbeat_is_from(make, world) -> None:
    handle(world.state, Batch(beats=(Beat("n1", make.beat("someone-else")),)), make.at(0))
    assert world.state.nodes["n1"].info.id == "n1"
    assert set(world.state.nodes) == {"n1"}


def test_a_refused_placement_is_decided_again(make, world) -> None:
    world.hear()
    effects = handle(world.state, Batch(facts=(world.create(make.job()),)), make.at(0))
    assert [d.name for d in effects.records] == ["placed"]
    world.state.refused("j1", 9, make.at(0))
    effects = handle(world.state, Batch(), make.at(0))
    assert [(d.name, d.expect_seq) for d in effects.records] == [("placed", 9)]
