"""Who is next: priority, fair share, quotas, and room that is kept for the job at the head."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core import snapshot
from services.scheduler.core.fleet.line import Line
from services.scheduler.core.fleet.share import Ledger, Shares
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, need_of
from services.scheduler.core.placement import Trial
from services.scheduler.core.reservation import ends_by_s
from shared.fleet import Quota
from shared.job import Owner
from shared.spec import GIB, JobSpec
from shared.states import JobState, PendingCode

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HOLDING = (JobState.PLACED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING)


@pytest.fixture
def world(make):
    return make.World()


def job_of(make, job_id, owner="u1", created_s=0.0, cpus=1.0, run=None, **spec):
    if run is not None:
        spec["timeouts"] = {"run": run, "pull": 1, "stage_in": 1}
    made = make.job(job_id, created_s=created_s, resources={"cpus": cpus}, **spec)
    return made.model_copy(update={"owner": Owner(id=owner, name=owner)})


def placed(world):
    return [job for job, name in world.events if name == "placed"]


def end(world, make, *job_ids):
    world.turn(*(world.report(world.job(j).current.node, j, make.finished(world.job(j).attempt)) for j in job_ids))
    world.settle()


# --- fair share ----------------------------------------------------------------------------------------------------


def test_owners_take_turns_however_many_jobs_one_of_them_has_handed_in_first(make, world) -> None:
    jobs = [job_of(make, f"a{n}", "ann", n) for n in range(6)] + [
        job_of(make, f"b{n}", "bob", 50 + n) for n in range(2)
    ]
    world.turn(*map(world.create, jobs))
    world.hear(cpus=4)
    assert placed(world) == ["a0", "b0", "a1", "b1"]


def test_one_owners_jobs_keep_their_order_whatever_they_need(make, world) -> None:
    world.turn(*(world.create(job_of(make, f"j{n}", created_s=n, cpus=0.5 + n % 3 / 10)) for n in range(6)))
    world.hear(cpus=16)
    assert placed(world) == [f"j{n}" for n in range(6)]


def test_priority_goes_above_fair_share(make, world) -> None:
    world.hear(cpus=2)
    world.turn(world.create(job_of(make, "first", "ann")))
    jobs = [job_of(make, "urgent", "ann", 9, priority=60), job_of(make, "poor", "bob", 1)]
    world.turn(*map(world.create, jobs))
    assert placed(world) == ["first", "urgent"]


def test_who_has_used_the_fleet_lately_comes_after_who_has_not(make) -> None:
    world = make.World(replace(Limits(), share_half_life_s=3600))
    world.hear(cpus=1)
    world.turn(world.create(job_of(make, "past", "ann", run=36000)))
    for second in range(1, 3600, 100):
        world.now = second
        world.hear(cpus=1, held=(("past", 1),))
    waiting = [job_of(make, "a1", "ann", 1), job_of(make, "b1", "bob", 2)]
    world.turn(*map(world.create, waiting))
    end(world, make, "past")
    assert placed(world) == ["past", "b1"]


def test_use_counts_half_after_a_half_life_and_weight_divides_it(make) -> None:
    shares = Shares(100, 0)
    shares.measure((10 * CPU_UNIT, 100 * GIB, 0), 0)
    need = need_of(JobSpec(runtime="process", command="x", resources={"cpus": 5, "memory": GIB}))
    shares.hold("ann", need, 1, 0)
    assert shares.lately("ann", 100) == pytest.approx(0.25)  # half of the way to the half that is held
    shares.hold("ann", need, -1, 1000)
    assert shares.lately("ann", 1100) == pytest.approx(shares.lately("ann", 1000) / 2)
    before = Ledger(shares, 1000).rank("ann")
    shares.quotas["ann"] = Quota(share=4)
    assert Ledger(shares, 1000).rank("ann") == pytest.approx(before / 4)


def test_use_outlives_a_restart_by_the_snapshot_and_by_what_still_runs(make) -> None:
    world = make.World(replace(Limits(), share_half_life_s=1000))
    world.hear(cpus=2)
    world.turn(world.create(job_of(make, "gone", "ann", run=9000)), world.create(job_of(make, "runs", "bob", run=9000)))
    world.now = 1000
    end(world, make, "gone")
    head, _ = snapshot.encode(7, [], world.state.carried(make.at(1000)))
    carried = snapshot.read_carried(head)
    assert carried.lately == {"ann": pytest.approx(0.25), "bob": pytest.approx(0.25)}

    world.now = 2000
    log = [fact for fact in world.log if fact.seq > 0]
    for known, ann, bob in ((carried, 0.125, 0.375), (snapshot.Carried(), 0.0, 0.375)):
        state = world.state = State(world.limits, make.at(2000))
        state.restore(known)
        world.turn(*[world._append(lambda seq: replace(log[-1], seq=seq, job=world.job("runs")))])
        world.now = 2100  # one lease later the fleet is known
        world.hear(cpus=2, held=(("runs", 1),))
        kept = 0.5 ** (100 / 1000)
        assert state.shares.lately("ann", make.at(2100).at.timestamp()) == pytest.approx(ann * kept, abs=0.02)
        assert state.shares.lately("bob", make.at(2100).at.timestamp()) == pytest.approx(bob, abs=0.08)
        world.now = 2000


def test_a_snapshot_of_the_release_before_carries_nothing_and_loads(make) -> None:
    head, parts = snapshot.encode(5, [(make.job(), 3)])
    assert b"carried" not in head
    assert snapshot.read_carried(head) == snapshot.Carried()
    assert snapshot.decode(head, parts).position == 5
    assert snapshot.read_carried(b'{"carried": {"lately": "?"}}') == snapshot.Carried()


def test_a_job_that_fits_and_whose_turn_has_not_come_says_that_others_are_before_it(make) -> None:
    world = make.World(replace(Limits(), placements_per_turn=1))
    world.hear(cpus=8)
    world.turn(*(world.create(make.job(f"j{n}", created_s=n)) for n in range(4)))
    world.now = 9
    world.hear(cpus=8, held=(("j0", 1),))
    world.tick(9)
    assert [reason.code for reason in world.job("j3").pending] == [PendingCode.BEHIND_OTHERS]


# --- quotas --------------------------------------------------------------------------------------------------------


def test_a_job_over_its_owners_quota_waits_says_so_and_blocks_nobody(make, world) -> None:
    world.state.set_quota("ann", Quota(running=1))
    world.hear(cpus=4)
    jobs = [job_of(make, "a1", "ann"), job_of(make, "a2", "ann", 1), job_of(make, "b1", "bob", 2)]
    world.turn(*map(world.create, jobs))
    assert placed(world) == ["a1", "b1"]
    for second in range(1, 8):
        world.hear(cpus=4, held=(("a1", 1), ("b1", 1)))
        world.tick(second)
    [reason] = world.job("a2").pending
    assert reason.code is PendingCode.QUOTA
    assert reason.message == "the quota is 1 job at a time, and 1 is on nodes"
    end(world, make, "a1")
    assert world.job("a2").state is JobState.PLACED


@pytest.mark.parametrize("quota", [Quota(running=0), Quota(cpus=0), Quota(memory=1)])
def test_a_quota_that_keeps_a_job_back_is_told_within_two_seconds(make, world, quota) -> None:
    world.state.set_quota("ann", quota)
    world.hear(cpus=4)
    world.turn(world.create(job_of(make, "a1", "ann")))
    world.hear(cpus=4)
    world.tick(1.25)
    assert [reason.code for reason in world.job("a1").pending] == [PendingCode.QUOTA]


@pytest.mark.parametrize(
    "quota", [Quota(cpus=2), Quota(memory=2 * GIB), Quota(running=2)], ids=["cpus", "memory", "running"]
)
def test_a_raised_quota_lets_jobs_go_at_once(make, world, quota) -> None:
    world.state.set_quota("u1", quota)
    world.hear(cpus=16)
    world.turn(*(world.create(make.job(f"j{n}")) for n in range(4)))
    assert len(placed(world)) == 2
    world.state.set_quota("u1", None)
    world.settle()
    assert len(placed(world)) == 4


# --- the reservation -----------------------------------------------------------------------------------------------


def full_node_with_a_large_job_waiting(make, world, *, run=1000):
    """Two of four CPUs are held until 1,002 s ; a job that needs all four is at the head."""
    world.hear(cpus=4)
    world.turn(world.create(job_of(make, "there", cpus=2, run=run)))
    world.turn(world.create(job_of(make, "large", cpus=4, created_s=1)))


def test_a_long_job_does_not_take_the_room_that_the_job_at_the_head_waits_for(make, world) -> None:
    full_node_with_a_large_job_waiting(make, world)
    world.turn(world.create(job_of(make, "long", created_s=2, run=5000)))
    assert placed(world) == ["there"]
    assert world.state.reservation.job_id == "large"
    for second in range(1, 15):
        world.hear(cpus=4, held=(("there", 1),))
        world.tick(second)
    [reason] = world.job("long").pending
    assert reason.code is PendingCode.RESERVED
    assert "large" in reason.message
    end(world, make, "there")
    assert placed(world) == ["there", "large"]


def test_a_short_job_goes_before_if_it_ends_before_the_room_is_free(make, world) -> None:
    full_node_with_a_large_job_waiting(make, world)
    world.turn(world.create(job_of(make, "short", created_s=2, run=500)))
    assert placed(world) == ["there", "short"]


def test_after_a_while_at_the_head_no_short_job_goes_before_either(make) -> None:
    world = make.World(replace(Limits(), reserve_outright_s=60))
    full_node_with_a_large_job_waiting(make, world)
    world.turn(world.create(job_of(make, "probe", created_s=2, run=5)))
    assert placed(world) == ["there", "probe"]
    for second in range(1, 70):
        world.now = second
        world.hear(cpus=4, held=(("there", 1), ("probe", 1)))
    end(world, make, "probe")
    world.turn(world.create(job_of(make, "short", created_s=3, run=5)))
    assert placed(world) == ["there", "probe"]


def test_what_needs_no_more_than_will_be_left_over_goes_before(make, world) -> None:
    world.hear(cpus=6)
    world.turn(world.create(job_of(make, "there", cpus=4, run=1000)))
    world.turn(world.create(job_of(make, "large", cpus=4, created_s=1)))
    world.turn(*(world.create(job_of(make, f"small{n}", created_s=2 + n, run=90000)) for n in range(3)))
    assert placed(world) == ["there", "small0", "small1"]


def test_a_job_of_higher_priority_uses_the_room_and_one_that_does_not_fit_takes_it_over(make, world) -> None:
    full_node_with_a_large_job_waiting(make, world)
    world.turn(world.create(job_of(make, "low", created_s=2, run=5000)))
    assert world.state.reservation.job_id == "large"
    world.turn(world.create(job_of(make, "higher", cpus=1, created_s=3, run=9000, priority=80)))
    assert placed(world) == ["there", "higher"]
    world.turn(world.create(job_of(make, "highest", cpus=4, created_s=4, priority=90)))
    world.turn(world.create(job_of(make, "low2", cpus=0.5, created_s=5, run=9000)))
    assert world.state.reservation.job_id == "highest"


def test_a_job_that_no_node_could_ever_hold_reserves_nothing(make, world) -> None:
    world.hear(cpus=4)
    world.turn(world.create(job_of(make, "huge", cpus=64, priority=99)), world.create(job_of(make, "j1", run=90000)))
    assert placed(world) == ["j1"]
    assert world.state.reservation is None


def test_owners_who_have_used_nothing_cannot_starve_a_large_job_even_if_there_is_always_another(make) -> None:
    world = make.World(replace(Limits(), reserve_outright_s=10))
    world.hear(cpus=4)
    world.turn(world.create(job_of(make, "there", "ann", cpus=3, run=100)))
    world.turn(world.create(job_of(make, "large", "ann", cpus=4, created_s=1)))
    world.turn(world.create(job_of(make, "small", "o0", created_s=2)))
    for n in range(1, 30):
        world.now = n
        world.hear(cpus=4, held=tuple((j, 1) for j in ("there", "small") if j in world.state.jobs))
        world.turn(world.create(job_of(make, f"s{n}", f"o{n}", created_s=n + 2)))
        if n == 20:
            end(world, make, "there", "small")
    assert placed(world)[:3] == ["there", "small", "large"]


def test_the_job_at_the_head_and_since_when_outlives_a_restart(make, world) -> None:
    full_node_with_a_large_job_waiting(make, world)
    world.turn(world.create(job_of(make, "long", created_s=2, run=5000)))
    carried = snapshot.read_carried(snapshot.encode(1, [], world.state.carried(make.at(50)))[0])
    state = State(world.limits, make.at(60))
    state.restore(carried)
    assert (state.reservation.job_id, state.reservation.node) == ("large", "n1")
    assert state.reservation.since_s == world.state.reservation.since_s


class Fleet:
    """Jobs that end by their run limits at the latest, on nodes that are always heard, second by second."""

    def __init__(self, make, sizes, limits=None) -> None:
        self.make, self.sizes = make, sizes
        self.world = make.World(limits or Limits())
        self.ends: dict[str, float] = {}

    def second(self, now: float, *jobs) -> None:
        world, make = self.world, self.make
        world.now = now
        over = [j for j, at in self.ends.items() if at <= now]
        reports = [world.report(world.job(j).current.node, j, make.finished(world.job(j).attempt, s=now)) for j in over]
        for job_id in over:
            del self.ends[job_id]
        held: dict[str, list] = {f"n{n}": [] for n in range(len(self.sizes))}
        for job_id, tracked in world.state.jobs.items():
            if tracked.job.state in HOLDING and job_id not in over:
                held[tracked.job.current.node].append((job_id, tracked.job.attempt))
        world.beats += 1
        beats = tuple(
            make.beat(node, seq=world.beats, cpus=self.sizes[n], held=tuple(held[node])) for n, node in enumerate(held)
        )
        world.turn(*map(world.create, jobs), *reports, beats=beats, tick=True)
        world.settle()
        for job_id, tracked in world.state.jobs.items():
            if tracked.job.state in HOLDING and job_id not in self.ends:
                timeouts = tracked.job.spec.timeouts
                self.ends[job_id] = now + min(timeouts.run, 1 + hash_of(job_id) % timeouts.run)


def hash_of(job_id: str) -> int:
    return random.Random(job_id).randrange(1000)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_large_job_at_the_head_starts_by_the_time_that_was_worked_out_for_it(make, data) -> None:
    sizes = data.draw(st.lists(st.sampled_from([2, 4]), min_size=1, max_size=3))
    fleet = Fleet(make, sizes)
    dice = random.Random(data.draw(st.integers(0, 10**6)))
    fleet.second(0, *(job_of(make, f"f{n}", f"o{n % 3}", cpus=1, run=dice.randrange(20, 60)) for n in range(12)))
    fleet.second(1, job_of(make, "large", "big", 1, cpus=max(sizes), run=10))
    due = None
    for now in range(2, 260):
        # A stream of small jobs, short and long, from owners who have used nothing yet.
        new = [
            job_of(make, f"s{now}-{n}", f"o{now}-{n}", now, cpus=dice.choice([0.5, 1]), run=dice.choice([5, 50, 5000]))
            for n in range(dice.randrange(3))
        ]
        fleet.second(now, *new)
        kept = fleet.world.state.reservation
        if fleet.world.job("large").state is not JobState.QUEUED:
            break
        if kept is not None and kept.job_id == "large":
            by = kept.free_by_s - make.START.timestamp()
            assert due is None or by <= due + 1e-6
            due = by
    else:
        pytest.fail("the large job never started")
    assert due is None or fleet.world.now <= due + 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_quotas_are_never_exceeded_and_priorities_are_respected(make, seed) -> None:
    dice = random.Random(seed)
    fleet = Fleet(make, [dice.choice([1, 2, 4]) for _ in range(dice.randrange(1, 4))])
    world = fleet.world
    quotas = {"o0": Quota(running=dice.randrange(4)), "o1": Quota(cpus=dice.choice([0.5, 2]))}
    for owner, quota in quotas.items():
        world.state.set_quota(owner, quota)
    for now in range(15):
        new = [
            job_of(
                make,
                f"j{now}-{n}",
                f"o{dice.randrange(4)}",
                now,
                cpus=dice.choice([0.5, 1, 2]),
                run=dice.choice([3, 30]),
                priority=dice.choice([40, 50, 60]),
            )
            for n in range(dice.randrange(4))
        ]
        fleet.second(now, *new)
        held = [t.job for t in world.state.jobs.values() if t.job.state in HOLDING]
        assert sum(job.owner.id == "o0" for job in held) <= quotas["o0"].running
        assert sum(job.spec.resources.cpus for job in held if job.owner.id == "o1") <= quotas["o1"].cpus
        for node in world.state.nodes.values():
            assert node.ucpus <= node.beat.capacity.cpus * CPU_UNIT
        # Whatever is in the line and of the highest priority there, and within its quota, does not fit as things are.
        waiting = [world.job(job_id) for _, _, (_, job_id) in world.state.line.waiting()]
        top = max((job.spec.priority for job in waiting), default=None)
        trial = Trial(world.state.columns, 0, world.limits)
        ledger = Ledger(world.state.shares, make.at(now).at.timestamp())
        for job in (job for job in waiting if job.spec.priority == top):
            kept = world.state.reservation
            if ledger.over_quota(job.owner.id, need_of(job.spec)) is None and (kept is None or kept.priority < top):
                assert not trial.feasible(need_of(job.spec)).any()


# --- the line and the kernel ---------------------------------------------------------------------------------------


@quick
@given(data=st.data())
def test_the_line_holds_what_was_put_in_and_names_the_first_of_each_owner(make, data) -> None:
    line, there = Line(), {}
    for step in range(data.draw(st.integers(1, 40))):
        if there and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(there)))
            line.discard(gone)
            del there[gone]
        else:
            job = job_of(
                make,
                f"j{step}",
                data.draw(st.sampled_from("ab")),
                data.draw(st.integers(0, 5)),
                cpus=data.draw(st.sampled_from([1, 2])),
                priority=data.draw(st.sampled_from([1, 2])),
            )
            there[job.id] = job
            line.add(job, need_of(job.spec))
        if data.draw(st.booleans()):
            line.blocked.clear()
        assert len(line) == len(there)
        assert {place[1] for _, _, place in line.waiting()} == set(there)
        for priority in (1, 2):
            for owner in "ab":
                mine = [j for j in there.values() if (j.spec.priority, j.owner.id) == (priority, owner)]
                group = line.ready.first(priority, owner)
                assert (group.head if group else None) == min(
                    ((j.created_at.timestamp(), j.id) for j in mine), default=None
                )


@quick
@given(data=st.data())
def test_remembered_scores_choose_as_fresh_ones_and_what_is_undone_was_never_taken(make, data) -> None:
    world = make.World()
    for n in range(data.draw(st.integers(1, 5))):
        images = ("img",) if data.draw(st.booleans()) else ()
        world.hear(
            f"n{n}",
            cpus=data.draw(st.sampled_from([2, 4, 8])),
            memory=data.draw(st.integers(2, 16)) * GIB,
            images=images,
        )
    world.state.settle(make.at(0))
    trial = Trial(world.state.columns, 0, world.limits)
    taken = []
    for _ in range(data.draw(st.integers(1, 15))):
        spec = JobSpec(
            runtime="process",
            command="x",
            resources={"cpus": data.draw(st.sampled_from([0.5, 1, 2])), "memory": GIB, "disk": GIB},
            placement={"policy": data.draw(st.sampled_from(["pack", "spread"]))},
        )
        need, image = need_of(spec), data.draw(st.sampled_from([None, "img"]))
        fresh = Trial(world.state.columns, 0, world.limits)
        for node, before in taken:
            only = before._replace(node=node)
            assert fresh.place(only, None, frozenset()).node == node
        mark = trial.mark()
        found, expected = trial.place(need, image, frozenset()), fresh.place(need, image, frozenset())
        assert (found is None) == (expected is None)
        if found is not None:
            assert math.isclose(found.score["total"], expected.score["total"], abs_tol=2e-4)
            if data.draw(st.booleans()):
                trial.undo(mark)
            else:
                taken.append((found.node, need))


def test_an_attempt_has_ended_when_its_limits_are_reached(make, world) -> None:
    world.hear()
    world.turn(world.create(job_of(make, "j1", run=100)))
    assert ends_by_s(world.job()) - make.START.timestamp() == 102
    world.turn(world.report("n1", "j1", make.starting(s=5)))
    world.now = 9
    world.turn(world.report("n1", "j1", make.running(s=9)))
    assert ends_by_s(world.job()) - make.START.timestamp() == 109
