"""What is said about jobs that wait, about those that are placed, and about those that are not handed in."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core.explain import explain, plan
from services.scheduler.core.fleet.state import State
from services.scheduler.core.need import need_of
from services.scheduler.core.placement import Trial
from services.scheduler.core.suggest import apply
from shared.fleet import Gpu, Quota, Usage
from shared.job import Owner
from shared.spec import GIB, MIB, JobSpec
from shared.states import AttemptState, EndReason, PendingCode

ADA = Owner(id="u1", name="ada")
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def world(make):
    return make.World()


def ask(world, make, job_id: str = "j1"):
    return explain(world.state, world.state.jobs[job_id], make.at(world.now))


def asked(world, make, owner: Owner = ADA, **spec):
    spec = JobSpec(**({"runtime": "process", "command": "true"} | spec))
    return plan(world.state, owner, spec, make.at(world.now)), spec


def would_start_with(world, make, spec: JobSpec, changes: dict) -> bool:
    changed = apply(spec, changes)
    assert changed is not None
    return plan(world.state, ADA, changed, make.at(world.now)).would_start


def gpu(uuid: str, total: int = 24 * GIB, used: int = 0) -> Gpu:
    return Gpu(uuid=uuid, name="test", memory_total=total, memory_used=used)


def test_a_job_that_is_too_large_says_by_how_much_each_of_the_closest_nodes_falls_short(world, make):
    for node, cpus in (("n1", 1), ("n2", 6), ("n3", 3), ("n4", 4)):
        world.hear(node, cpus=cpus)
    world.turn(world.create(make.job(resources={"cpus": 8})))
    said = ask(world, make)
    assert (said.state, said.would_start, said.never, said.nodes_considered) == ("queued", False, True, 4)
    assert [(r.code, r.nodes) for r in said.reasons] == [(PendingCode.CPUS, 4)]
    assert [(fit.node, fit.lacks[0].wanted, fit.lacks[0].free, fit.lacks[0].total) for fit in said.closest] == [
        ("n2", 8, 6, 6),
        ("n4", 8, 4, 4),
        ("n3", 8, 3, 3),
    ]
    assert said.closest[0].message == "wanted 8 cpus; 6 of its 6 are free"
    assert said.suggestion is not None
    assert said.suggestion.set == {"resources.cpus": 6.0}
    assert "never" in said.text
    assert "With 6 cpus it could start now." in said.text


def test_closeness_is_relative_and_a_missing_label_counts_as_much_as_all_of_a_resource(world, make):
    world.hear("small", cpus=4, memory=2 * GIB, tags=("fast",))
    world.hear("other", cpus=64, memory=64 * GIB)
    world.hear("tiny", cpus=0.5, memory=GIB, tags=("fast",))
    world.turn(world.create(make.job(resources={"cpus": 4, "memory": 4 * GIB}, placement={"tags": ["fast"]})))
    said = ask(world, make)
    assert [fit.name for fit in said.closest] == ["name-small", "name-other", "name-tiny"]
    assert [lack.code for lack in said.closest[0].lacks] == [PendingCode.MEMORY]
    assert [lack.code for lack in said.closest[1].lacks] == [PendingCode.TAGS]
    assert said.suggestion is not None
    assert said.suggestion.set == {"resources.memory": 2 * GIB}


def test_a_waiting_job_knows_its_place_by_priority_then_by_who_came_first(world, make):
    world.hear("n1", cpus=1)
    big = {"resources": {"cpus": 2}}
    jobs = [make.job(f"j{n}", created_s=n, priority=90 if n == 5 else 50, **big) for n in range(6)]
    world.turn(*(world.create(job) for job in jobs))
    places = [(ask(world, make, job.id).ahead, ask(world, make, job.id).queue_length) for job in jobs]
    assert places == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (0, 6)]


@pytest.mark.parametrize(
    ("node", "spec", "changes"),
    [
        ({}, {"placement": {"tags": ["gpu"]}}, {"placement.tags": []}),
        ({"tags": ("a",)}, {"placement": {"tags": ["a", "b"]}}, {"placement.tags": ["a"]}),
        ({}, {"placement": {"cluster": "far"}}, {"placement.cluster": None}),
        ({}, {"placement": {"node": "gone"}}, {"placement.node": None}),
        ({}, {"placement": {"arch": "arm64"}}, {"placement.arch": None}),
        ({}, {"resources": {"disk": 2000 * GIB}}, {"resources.disk": 1000 * GIB}),
        ({}, {"resources": {"gpus": 1}}, {"resources.gpus": 0, "resources.gpu_memory": 0}),
        ({"gpus": (gpu("a"), gpu("b"))}, {"resources": {"gpus": 3}}, {"resources.gpus": 2}),
        (
            {"gpus": (gpu("a"), gpu("b", used=20 * GIB))},
            {"resources": {"gpus": 1, "gpu_memory": 40 * GIB}},
            {"resources.gpu_memory": 24 * GIB},
        ),
        (
            {"runtimes": ("process",)},
            {"runtime": "docker", "image": "busybox", "command": "true"},
            {"runtime": "process", "image": None},
        ),
        (
            {"cpus": 2, "memory": 2 * GIB},
            {"resources": {"cpus": 4, "memory": 4 * GIB}},
            {"resources.cpus": 2.0, "resources.memory": 2 * GIB},
        ),
        (
            {"cpus": 2},
            {"resources": {"cpus": 4}, "placement": {"tags": ["x"]}},
            {"placement.tags": [], "resources.cpus": 2.0},
        ),
    ],
)
def test_the_suggestion_is_the_one_change_that_helps_and_it_does(world, make, node, spec, changes):
    world.hear("n1", **node)
    said, whole = asked(world, make, **spec)
    assert not said.would_start
    assert said.suggestion is not None
    assert said.suggestion.set == changes
    assert would_start_with(world, make, whole, changes)


def test_what_only_has_to_wait_gets_a_suggestion_for_now_or_none(world, make):
    world.hear("n1", cpus=4)
    world.turn(world.create(make.job("running", resources={"cpus": 4})))
    said, _ = asked(world, make, resources={"cpus": 2})
    assert (said.would_start, said.never, said.suggestion) == (False, False, None)
    assert [(r.code, r.message) for r in said.reasons] == [
        (PendingCode.CPUS, "needs 2 cpus; 0 are free on the node with most")
    ]


def test_what_never_fits_is_told_what_an_empty_node_would_take(world, make):
    world.hear("n1", cpus=4)
    world.turn(world.create(make.job("running", resources={"cpus": 4})))
    said, _ = asked(world, make, resources={"cpus": 6})
    assert said.never
    assert said.suggestion is not None
    assert said.suggestion.set == {"resources.cpus": 4.0}
    assert "once a node has that free" in said.suggestion.message


def test_a_plan_that_fits_names_the_node_and_the_score_and_takes_nothing(world, make):
    world.hear("n1", cpus=1)
    for _ in range(3):
        said, _ = asked(world, make, resources={"cpus": 1})
        assert (said.would_start, said.node, said.state) == (True, "n1", "queued")
        assert {"pack", "total"} <= set(said.score)
    assert said.text.startswith("It would start now on name-n1: of the nodes that would do")
    world.turn(world.create(make.job(resources={"cpus": 1})))
    assert world.job().attempts[0].node == "n1"
    assert world.job().attempts[0].score == said.score


def test_without_nodes_it_says_so(world, make):
    said, _ = asked(world, make)
    assert [r.code for r in said.reasons] == [PendingCode.NO_NODES]
    assert (said.closest, said.suggestion, said.nodes_considered, said.never) == ((), None, 0, False)


def test_nodes_that_are_silent_or_closed_are_said_to_be(world, make):
    world.hear("n1")
    world.now = 60
    world.hear("n2", cpus=0.5)
    said, _ = asked(world, make)
    assert {r.code: r.nodes for r in said.reasons} == {PendingCode.CPUS: 1, PendingCode.NODE_UNHEALTHY: 1}
    silent = next(fit for fit in said.closest if fit.node == "n1")
    assert [lack.code for lack in silent.lacks] == [PendingCode.NODE_UNHEALTHY]


def test_a_placed_job_says_where_and_why(world, make):
    world.hear("n1")
    world.hear("n2", images=("busybox",))
    world.turn(world.create(make.job(runtime="docker", image="busybox")))
    said = ask(world, make)
    assert (said.state, said.node, said.would_start, said.ahead) == ("placed", "n2", True, None)
    assert said.score == world.job().attempts[0].score
    assert "is about to start on name-n2, as attempt 1" in said.text
    assert "image 0.5" in said.text


def test_a_job_that_waits_for_another_or_backs_off_says_that_and_not_what_nodes_lack(world, make):
    world.hear("n1")
    first, second = make.job("jaaaaaaaaaaaaaaaaaaaaaaaaa"), make.job("j2", needs=["jaaaaaaaaaaaaaaaaaaaaaaaaa"])
    world.turn(world.create(first), world.create(second))
    said = ask(world, make, "j2")
    assert ([r.code for r in said.reasons], said.ahead, said.would_start) == ([PendingCode.NEEDS], None, False)
    world.turn(world.report("n1", first.id, make.finished(1, AttemptState.LOST, EndReason.RUNTIME_ERROR)))
    said = ask(world, make, first.id)
    assert ([r.code for r in said.reasons], said.ahead) == ([PendingCode.BACKOFF], None)


def test_a_quota_is_the_reason_where_a_node_would_do(world, make):
    world.hear("n1", cpus=16)
    world.state.set_quota("u1", Quota(cpus=2))
    said, _ = asked(world, make, resources={"cpus": 3})
    assert (said.would_start, [r.code for r in said.reasons]) == (False, [PendingCode.QUOTA])
    assert asked(world, make, owner=Owner(id="u2", name="bob"), resources={"cpus": 3})[0].would_start


def test_the_answers_change_nothing(world, make):
    world.hear("n1", cpus=2)
    world.turn(*(world.create(make.job(f"j{n}", resources={"cpus": 2})) for n in range(3)))
    before = world.turn(), world.state.counts(), world.state.columns.cpus.copy().tolist()
    for job_id in ("j0", "j1", "j2"):
        ask(world, make, job_id)
    asked(world, make, resources={"cpus": 1})
    assert (world.turn(), world.state.counts(), world.state.columns.cpus.tolist()) == before


@quick
@given(st.data())
def test_what_is_suggested_for_now_always_fits_now(make, data):
    world = make.World()
    for index in range(data.draw(st.integers(0, 4))):
        memory = data.draw(st.sampled_from([1, 4, 16])) * GIB
        cards = tuple(
            gpu(f"g{index}{n}", data.draw(st.sampled_from([8, 24])) * GIB, data.draw(st.integers(0, 8)) * GIB)
            for n in range(data.draw(st.integers(0, 2)))
        )
        world.hear(
            f"n{index}",
            cpus=data.draw(st.sampled_from([0.5, 2, 7.77])),
            memory=memory,
            gpus=cards,
            usage=Usage(memory_available=data.draw(st.integers(1, memory // MIB)) * MIB, disk_free=GIB * 500),
            tags=data.draw(st.sampled_from([(), ("a",), ("a", "b")])),
            cluster=data.draw(st.sampled_from(["default", "edge"])),
        )
    said, spec = asked(
        world,
        make,
        resources={
            "cpus": data.draw(st.sampled_from([0.1, 1, 8])),
            "memory": data.draw(st.sampled_from([64 * MIB, 3 * GIB, 32 * GIB])),
            "gpus": data.draw(st.integers(0, 3)),
            "gpu_memory": data.draw(st.sampled_from([0, GIB, 16 * GIB])),
            "disk": data.draw(st.sampled_from([GIB, 600 * GIB])),
        },
        placement={
            "tags": data.draw(st.sampled_from([[], ["a"], ["a", "b"]])),
            "cluster": data.draw(st.sampled_from([None, "edge", "nowhere"])),
        },
    )
    state: State = world.state
    trial = Trial(state.columns, make.at(world.now).mono - state.fresh_s, state.limits)
    assert said.would_start == (trial.place(need_of(spec), None, frozenset()) is not None)
    assert said.would_start or said.reasons
    if said.suggestion is not None and "could start now" in said.suggestion.message:
        assert would_start_with(world, make, spec, said.suggestion.set)


def test_a_gang_fits_as_a_whole_or_says_how_many_members_do(world, make):
    world.hear("n1", cpus=2)
    gang = {
        "kind": "gang",
        "gang": {"roles": {"worker": {"count": 3, "command": "true", "resources": {"cpus": 1}}}},
        "command": None,
    }
    said, _ = asked(world, make, **gang)
    assert (said.would_start, said.never) == (False, False)
    assert PendingCode.GANG in {reason.code for reason in said.reasons}
    assert "2 of 3 members fit at once" in said.text
    assert "with them name-n1 has too little left of CPUs for another" in said.text
    world.hear("n2", cpus=1)
    said, _ = asked(world, make, **gang)
    assert said.would_start
    assert "name-n1" in said.text
    assert "name-n2" in said.text


def test_room_that_is_kept_for_a_job_before_it_is_not_offered(world, make):
    world.hear("n1", cpus=4)
    world.turn(world.create(make.job("j1", resources={"cpus": 3}, timeouts={"run": 60})))
    world.turn(world.create(make.job("j2", created_s=1, resources={"cpus": 4})))
    world.turn(world.create(make.job("j3", created_s=2, resources={"cpus": 1})))
    assert world.state.reservation is not None
    assert [r.code for r in ask(world, make, "j3").reasons] == [PendingCode.RESERVED]
    said, _ = asked(world, make, resources={"cpus": 1})
    assert (said.would_start, [r.code for r in said.reasons]) == (False, [PendingCode.RESERVED])
    assert asked(world, make, resources={"cpus": 1}, priority=90)[0].would_start
    assert ask(world, make, "j2").reasons[0].code is PendingCode.CPUS
