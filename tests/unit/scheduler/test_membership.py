"""Nodes in the whole core: who gets work, what is recorded, and what becomes of the jobs."""

from dataclasses import replace

import pytest

from services.scheduler.core.desired import desired_state
from services.scheduler.core.fleet_facts import NodeRecorded, QuotaGiven, read_fleet_fact
from services.scheduler.core.limits import Limits
from services.scheduler.core.machine import Batch, Beat, handle, lost_nodes
from shared.events import Event
from shared.fleet import PROTOCOL, NodeChanged, NodeRecord, NodeWish, Quota, QuotaSet
from shared.states import AttemptState, EndReason, JobState, NodeCondition, NodeDuty, PendingCode


@pytest.fixture
def world(make):
    return make.World()


def answer(world, make, node="n1", session="s1"):
    return desired_state(world.state, node, 1, make.at(world.now), session)


def actions(world, make, node="n1"):
    return [(a.job_id, a.attempt, a.action, a.reason) for a in answer(world, make, node).assignments]


def run(world, nodes, until, *, held=()):
    """Let *nodes* heartbeat each second, holding *held* where it is theirs, and tick."""
    for second in range(int(world.now) + 1, until + 1):
        for node in nodes:
            tracked = (world.state.jobs.get(job) for job, _ in held)
            mine = {t.job.id for t in tracked if t is not None and t.job.attempts and t.job.attempts[-1].node == node}
            world.hear(node, held=tuple(key for key in held if key[0] in mine))
        world.tick(second)


def codes(world, job_id="j1"):
    return {reason.code: reason.nodes for reason in world.job(job_id).pending}


def restart(make, world):
    """A new leader: the jobs' log and the fleet's log are all that it has."""
    world.state = type(world.state)(world.limits, make.at(world.now))
    world.state.position = world.seq
    jobs = {entry.job.id: entry for entry in world.log if hasattr(entry, "job")}
    world.turn(*(entry for entry in jobs.values() if not entry.job.is_terminal), fleet=tuple(world.fleet))


def test_a_node_that_joins_is_recorded_once(make, world) -> None:
    world.hear()
    run(world, ["n1"], 20)
    assert [fact.record.history[-1].what for fact in world.fleet] == ["joined"]


@pytest.mark.parametrize("verb", ["cordon", "drain"])
def test_a_cordoned_or_draining_node_gets_nothing_new_and_a_waiting_job_says_so(make, world, verb) -> None:
    world.hear()
    world.wish(verb)
    world.turn(world.create(make.job()))
    run(world, ["n1"], 10)
    assert world.job().state is JobState.QUEUED
    assert codes(world) == {PendingCode.NODE_CORDONED: 1}
    world.wish("undrain")
    world.settle()
    assert world.job().state is JobState.PLACED


def test_a_wish_holds_for_a_job_of_the_very_same_turn(make, world) -> None:
    world.hear()
    created = world.create(make.job())
    world.fleet.append(wish := fleet_wish(make, "cordon"))
    world.turn(created, fleet=(wish,))
    assert world.job().state is JobState.QUEUED


def fleet_wish(make, verb, seq=90, node="n1"):
    data = NodeWish(by="root", at=make.START)
    event = Event[NodeWish](id="w", source="/t", type="t", time=make.START, subject=node, data=data)
    found = read_fleet_fact(f"wherry.fleet.request.{node}.{verb}", seq, event)
    assert found is not None
    return found


def test_without_a_deadline_a_drain_lets_what_runs_come_to_its_end(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.running()))
    world.wish("drain")
    run(world, ["n1"], 100, held=(("j1", 1),))
    assert actions(world, make) == [("j1", 1, "keep", None)]
    assert world.record().duty is NodeDuty.DRAINING
    world.turn(world.report("n1", "j1", make.finished()))
    world.hear()
    assert world.record().duty is NodeDuty.DRAINED


def test_at_the_deadline_of_a_drain_what_runs_is_stopped_and_placed_elsewhere_for_free(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job(exclusive=True)))
    world.turn(world.report("n1", "j1", make.running()))
    world.hear("n2")
    world.wish("drain", deadline_s=30)
    run(world, ["n1", "n2"], 29, held=(("j1", 1),))
    assert actions(world, make) == [("j1", 1, "keep", None)]
    world.woken.clear()
    run(world, ["n1", "n2"], 30, held=(("j1", 1),))
    assert "n1" in world.woken
    assert actions(world, make) == [("j1", 1, "stop", EndReason.NODE_DRAINED)]
    assert world.job().attempt == 1, "it may not start elsewhere before it has ended here"
    world.turn(world.report("n1", "j1", make.finished(1, AttemptState.FAILED, EndReason.NODE_DRAINED, s=32)))
    assert (world.job().state, world.job().not_before, world.job().pending) == (JobState.QUEUED, None, ())
    world.settle()
    job = world.job()
    assert (job.state, job.attempt, job.current.node, job.tries, job.losses) == (JobState.PLACED, 2, "n2", 0, 0)
    world.hear("n1")
    assert world.record().duty is NodeDuty.DRAINED


def test_an_attempt_that_a_drained_node_never_took_is_placed_elsewhere_for_free(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job()))
    world.hear("n2")
    world.wish("drain", deadline_s=0)
    run(world, ["n1", "n2"], 4)
    job = world.job()
    assert (job.attempts[0].error.reason, job.attempt, job.losses) == (EndReason.NODE_DRAINED, 2, 0)
    assert job.current.node == "n2"


def test_what_an_ended_program_left_is_stored_even_after_the_deadline_of_a_drain(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.turn(world.report("n1", "j1", make.finishing()))
    world.wish("drain", deadline_s=0)
    world.hear(held=(("j1", 1),), held_as="finishing")
    assert actions(world, make) == [("j1", 1, "keep", None)]


def test_a_node_that_leaves_ends_as_left_and_is_neither_missed_nor_counted(make, world) -> None:
    world.hear("n1")
    world.hear("n2")
    world.hear("n1", leaving=True)
    assert (world.record().condition, world.record().duty) == (NodeCondition.LEFT, NodeDuty.DRAINED)
    run(world, ["n2"], 100)
    assert world.record().condition is NodeCondition.LEFT
    assert world.state.fleet_size == 1


def test_a_node_that_leaves_with_a_job_leaves_when_it_has_ended(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(held=(("j1", 1),), leaving=True)
    assert (world.record().condition, world.record().duty) == (NodeCondition.ONLINE, NodeDuty.DRAINING)
    world.turn(world.report("n1", "j1", make.finished()))
    world.hear(leaving=True)
    assert world.record().condition is NodeCondition.LEFT


def test_a_forgotten_node_is_gone_and_what_it_had_is_lost(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job(replace_after=10_000)))
    run(world, ["n1"], 40, held=(("j1", 1),))
    run(world, [], 80)
    assert world.record().condition is NodeCondition.LOST
    assert world.job().state is JobState.PLACED, "it waits for its node"
    world.wish("forget")
    assert (world.job().state, world.job().losses) == (JobState.QUEUED, 1)
    world.tick(82)
    assert world.record().forgotten
    assert not world.state.nodes
    world.hear("n1")
    assert (world.record().forgotten, world.record().condition) == (False, NodeCondition.ONLINE)


def test_a_node_on_which_an_exclusive_job_may_still_run_is_forgotten_after_its_fence_or_by_force(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job(exclusive=True)))
    run(world, ["n1"], 40, held=(("j1", 1),))
    node = world.state.nodes["n1"]
    node.lease_s = 300.0  # what an earlier leader had granted while the fleet was large
    run(world, [], 80)
    assert world.record().condition is NodeCondition.LOST
    world.wish("forget")
    assert not world.record().forgotten
    assert world.record().history[-1].what == "not_forgotten"
    assert "exclusive job may still run there for" in world.record().history[-1].reason
    assert world.job().state is not JobState.QUEUED
    world.wish("forget", force=True)
    assert world.record().forgotten
    assert (world.job().state, world.job().losses) == (JobState.QUEUED, 1)


def test_a_lost_node_gets_nothing_new_before_it_was_heard_steadily(make, world) -> None:
    world.hear("n1")
    run(world, ["n1"], 40)
    run(world, [], 80)
    world.turn(world.create(make.job(created_s=80)))
    run(world, ["n1"], 82)
    assert world.job().state is JobState.QUEUED
    run(world, ["n1"], 84)
    assert world.job().state is JobState.PLACED


def test_a_node_that_flaps_keeps_what_it_runs_and_gets_nothing_new(make, world) -> None:
    world.hear("n1")
    world.turn(world.create(make.job("j1")))
    run(world, ["n1"], 40, held=(("j1", 1),))
    changes = len(world.fleet)
    for _ in range(10):  # twelve seconds of silence, three of heartbeats
        run(world, [], int(world.now) + 12)
        run(world, ["n1"], int(world.now) + 3, held=(("j1", 1),))
    assert world.job("j1").attempt == 1
    assert len(world.fleet) - changes <= 1 + 150 / 30
    run(world, [], int(world.now) + 12)
    world.turn(world.create(make.job("j2", created_s=world.now)))
    run(world, [], int(world.now) + 2)
    assert world.job("j2").state is JobState.QUEUED
    run(world, ["n1"], int(world.now) + 70, held=(("j1", 1),))
    assert world.job("j2").state is JobState.PLACED


def test_most_of_the_fleet_silent_at_once_is_neither_suspect_nor_lost(make, world) -> None:
    nodes = [f"n{n}" for n in range(5)]
    run(world, nodes, 40)
    run(world, nodes[:2], 200)
    assert {world.record(node).condition for node in nodes} == {NodeCondition.ONLINE}


def test_many_losses_are_taken_in_so_many_a_second_the_longest_silent_first(make, world) -> None:
    world.now = 100
    for n in range(1000):
        world.state.observe(f"n{n}", make.beat(f"n{n}"), make.at(70 if n < 400 else 100))
    world.state.quiet_until = 0
    world.now = 101
    first = lost_nodes(world.state, make.at(world.now))
    assert len(first) == 20
    assert all(int(node.id[1:]) < 400 for node in first)
    small = make.World()
    for n in range(30):
        small.state.observe(f"n{n}", make.beat(f"n{n}"), make.at(70 if n < 9 else 101))
    small.state.quiet_until = 0
    assert len(lost_nodes(small.state, make.at(101))) == 9, "a small fleet's at once"


@pytest.mark.parametrize(("nodes", "interval_s", "lease_s"), [(1, 2, 30), (1_000, 2, 30), (10_000, 20, 60)])
def test_the_interval_of_heartbeats_grows_with_the_fleet(make, nodes, interval_s, lease_s) -> None:
    world = make.World()
    for n in range(nodes):
        world.state.observe(f"n{n}", make.beat(f"n{n}"), make.at(0))
    told = desired_state(world.state, "n0", 1, make.at(0))
    assert (told.interval_s, told.lease_s) == (interval_s, lease_s)
    assert nodes / told.interval_s <= world.limits.heartbeats_per_s_max


# --- trouble -------------------------------------------------------------------------------------------------------


def lose_one(make, world, job_id, when, reason=EndReason.RUNTIME_ERROR):
    world.now = when
    world.hear("n1")
    world.hear("n2")
    world.turn(world.create(make.job(job_id, created_s=when, placement={"node": "n1"})))
    world.turn(world.report("n1", job_id, make.finished(1, AttemptState.FAILED, reason, s=when)))
    world.turn(world.cancel(job_id))


def test_three_jobs_lost_on_one_node_cordon_it_with_their_names_until_it_is_undrained(make, world) -> None:
    for n, job_id in enumerate(("ja", "jb", "jc")):
        assert not world.fleet or world.record().duty is NodeDuty.ACTIVE
        lose_one(make, world, job_id, 10 + 60 * n)
    assert (world.record().duty, world.record().by) == (NodeDuty.CORDONED, "scheduler")
    assert "ja, jb, jc" in world.record().reason
    assert world.record("n2").duty is NodeDuty.ACTIVE
    world.wish("undrain")
    world.turn(world.create(make.job("jd", created_s=200, placement={"node": "n1"})))
    assert world.job("jd").state is JobState.PLACED


@pytest.mark.parametrize("reason", [EndReason.EXIT_CODE, EndReason.NODE_DRAINED, EndReason.FENCED])
def test_what_is_not_the_nodes_fault_cordons_nothing(make, world, reason) -> None:
    for n, job_id in enumerate(("ja", "jb", "jc", "jd")):
        lose_one(make, world, job_id, 10 + 60 * n, reason)
    assert world.record().duty is NodeDuty.ACTIVE


def test_the_only_node_is_not_cordoned_by_itself(make, world) -> None:
    world.hear("n2", leaving=True)
    for n, job_id in enumerate(("ja", "jb", "jc", "jd")):
        world.now = 10 + 60 * n
        world.hear("n1")
        world.turn(world.create(make.job(job_id, created_s=world.now)))
        world.turn(world.report("n1", job_id, make.finished(1, AttemptState.FAILED, EndReason.RUNTIME_ERROR)))
        world.turn(world.cancel(job_id))
    assert world.record().duty is NodeDuty.ACTIVE
    assert len(world.record().troubled_jobs) == 4


# --- identity, versions, reboots -------------------------------------------------------------------------------------


def test_of_two_agents_with_one_identity_the_newer_stays(make, world) -> None:
    world.hear(session="old")
    world.turn(world.create(make.job()))
    world.hear(session="old", held=(("j1", 1),))
    world.hear(session="new", held=(("j1", 1),))
    world.hear(session="old", held=())
    asked = answer(world, make, session="old")
    assert (asked.evicted, asked.more, asked.assignments) == (False, True, ())
    world.hear(session="old", held=())
    assert answer(world, make, session="old").evicted
    told = answer(world, make, session="new")
    assert (told.evicted, [a.action for a in told.assignments]) == (False, ["keep"])
    assert (world.record().session, world.record().history[-1].what) == ("new", "evicted")
    assert world.job().state is not JobState.QUEUED
    lines = len(world.fleet)
    for _ in range(5):
        world.hear(session="old")
    assert len(world.fleet) == lines, "it is told once"


def test_an_agent_that_was_started_again_is_no_clash_even_if_an_old_heartbeat_comes_late(make, world) -> None:
    world.hear(session="s1")
    for n in range(2, 20):
        world.hear(session=f"s{n}")
        world.hear(session=f"s{n - 1}")  # was under way when its agent was killed
        assert not answer(world, make, session=f"s{n}").evicted
    assert {change.what for change in world.record().history} == {"joined"}


def test_a_reboot_is_recorded_and_ends_what_ran(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(held=(("j1", 1),))
    world.turn(world.report("n1", "j1", make.running()))
    world.hear(session="s2", boot_id="b2")
    assert world.record().history[-1].what == "rebooted"
    assert world.job().attempts[0].error.reason is EndReason.NODE_REBOOTED


def test_an_agent_two_versions_apart_gets_nothing_new_and_keeps_what_it_runs(make, world) -> None:
    world.hear()
    world.turn(world.create(make.job()))
    world.hear(held=(("j1", 1),), session="s2", protocol=PROTOCOL + 2)
    told = answer(world, make, session="s2")
    assert "too new" in told.refused
    assert [a.action for a in told.assignments] == ["keep"]
    world.turn(world.create(make.job("j2")))
    for second in range(1, 12):
        world.hear(held=(("j1", 1),), session="s2", protocol=PROTOCOL + 2)
        world.tick(second)
    assert codes(world, "j2") == {PendingCode.NODE_UNHEALTHY: 1}
    world.hear(held=(("j1", 1),), session="s3", protocol=PROTOCOL + 1)
    world.settle()
    assert (answer(world, make, session="s3").refused, world.job("j2").state) == ("", JobState.PLACED)


def test_the_answer_says_which_version_the_scheduler_speaks(make, world) -> None:
    world.hear()
    assert answer(world, make).protocol == PROTOCOL


def test_a_node_whose_engine_is_away_gets_nothing_and_its_record_shows_it(make, world) -> None:
    world.hear(runtimes=(), problem="docker does not answer")
    world.turn(world.create(make.job()))
    run_ill(world, 10)
    assert (world.record().problem, world.job().state) == ("docker does not answer", JobState.QUEUED)
    world.now = 40
    world.hear()
    world.settle()
    assert (world.record().problem, world.job().state) == ("", JobState.PLACED)


def run_ill(world, until):
    for second in range(int(world.now) + 1, until + 1):
        world.hear(runtimes=(), problem="docker does not answer")
        world.tick(second)


# --- the log of the fleet -------------------------------------------------------------------------------------------


def test_a_new_leader_knows_what_was_drained_and_does_a_wish_that_nobody_had_taken_in(make, world) -> None:
    for node in ("n1", "n2", "n3"):
        world.hear(node)
    world.wish("drain", "n1")
    world.fleet.append(fleet_wish(make, "cordon", seq=len(world.fleet) + 1, node="n2"))
    restart(make, world)
    assert world.record("n1").duty is NodeDuty.DRAINING
    assert world.record("n2").duty is NodeDuty.CORDONED
    for node in ("n1", "n2", "n3"):
        world.hear(node, placement=())
    world.turn(world.create(make.job()))
    assert world.job().current.node == "n3"


def test_a_wish_is_done_once_however_often_it_is_read(make, world) -> None:
    world.hear()
    world.wish("drain")
    world.wish("undrain")
    restart(make, world)
    restart(make, world)
    assert [fact.record.duty for fact in world.fleet if isinstance(fact, NodeRecorded)] == [
        NodeDuty.ACTIVE,
        NodeDuty.DRAINING,
        NodeDuty.ACTIVE,
    ]


def test_a_node_that_a_new_leader_never_hears_is_lost_after_one_lease(make, world) -> None:
    run(world, ["n1", "n2"], 40)
    restart(make, world)
    assert world.state.fleet_size == 2, "the interval does not jump when the leader changes"
    run(world, ["n2"], 69)
    assert world.record("n1").condition is NodeCondition.ONLINE
    run(world, ["n2"], 75)
    assert world.record("n1").condition is NodeCondition.LOST


def test_what_another_scheduler_has_written_is_believed_and_the_next_write_follows_it(make, world) -> None:
    world.hear()
    other = world.record().model_copy(update={"duty": NodeDuty.CORDONED})
    world.fleet.append(NodeRecorded(len(world.fleet) + 1, other, 1))
    world.turn(fleet=(world.fleet[-1],))
    world.turn(world.create(make.job()))
    assert world.job().state is JobState.QUEUED
    world.wish("undrain")  # World checks the expected sequence
    assert world.record().duty is NodeDuty.ACTIVE


def test_nothing_is_opened_before_it_is_recorded(make, world) -> None:
    world.hear()
    world.wish("cordon")
    world.turn(world.create(make.job()))
    effects = handle(world.state, Batch(fleet=(fleet_wish(make, "undrain"),)), make.at(1))
    assert [one.record.duty for one in effects.nodes] == [NodeDuty.ACTIVE]
    effects = handle(world.state, Batch(beats=(Beat("n1", make.beat(seq=99)),)), make.at(1))
    assert not effects.records


def test_quotas_come_from_the_log_and_an_older_one_changes_nothing(make, world) -> None:
    world.turn(fleet=(QuotaGiven(5, "u1", Quota(gpus=2)), QuotaGiven(4, "u1", Quota(gpus=1))))
    assert world.state.roster.quotas == {"u1": Quota(gpus=2)}
    world.turn(fleet=(QuotaGiven(6, "u1", None),))
    assert world.state.roster.quotas == {}


def test_a_record_that_contradicts_its_subject_is_not_read(make) -> None:
    record = NodeRecord(id="n2", since=make.START)
    event = Event[NodeChanged](
        id="e", source="/t", type="t", time=make.START, subject="n2", data=NodeChanged(node=record)
    )
    assert read_fleet_fact("wherry.fleet.node.n1.changed", 1, event) is None
    assert read_fleet_fact("wherry.fleet.node.n2.changed", 1, event) == NodeRecorded(1, record, 0)
    quota = Event[QuotaSet](
        id="e",
        source="/t",
        type="t",
        time=make.START,
        subject="u1",
        data=QuotaSet(quota=Quota(running=3), by="root", at=make.START),
    )
    assert read_fleet_fact("wherry.fleet.owner.u1.quota", 2, quota) == QuotaGiven(2, "u1", Quota(running=3))


def test_a_loss_is_not_held_up_by_the_damping_of_conditions(make) -> None:
    world = make.World(replace(Limits(), lease_s=10, fresh_s=5))
    world.hear("n1")
    world.turn(world.create(make.job()))
    for second in range(1, 14):
        world.hear("n2")
        world.tick(second)
    assert world.record("n1").condition is NodeCondition.LOST
    assert world.job().state is not JobState.PLACED or world.job().attempt == 2
