from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.core.fleet.columns import Columns
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.lifecycle import failed_nodes
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, Need, inputs_of, need_of
from services.scheduler.core.placement import Trial
from services.scheduler.core.refusal import refuse
from shared.fleet import Gpu, HeldInput, Usage
from shared.job import Attempt, Failure
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, EndReason, PendingCode

LIMITS = Limits()
NOW = 100.0
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fleet(*beats) -> Columns:
    columns = Columns()
    for beat in beats:
        node = columns.add(beat.node.id, NOW)
        node.beat = beat
        columns.heard(node)
        columns.refresh(node, LIMITS)
    columns.relabel()
    return columns


def need(**spec) -> Need:
    return need_of(JobSpec(**({"runtime": "process", "command": "true"} | spec)))


def place(columns, wanted, image=None, failed=frozenset()):
    return Trial(columns, NOW - 10, LIMITS).place(wanted, image, failed)


def gpu(uuid: str, total: int = 24 * GIB, used: int = 0) -> Gpu:
    return Gpu(uuid=uuid, name="test", memory_total=total, memory_used=used)


def fits_by_looking(node: Node, wanted: Need) -> bool:
    """The oracle: one node after the other, in plain Python."""
    beat = node.beat
    info, usage, capacity = beat.node, beat.usage, beat.capacity
    if wanted.node not in (None, info.id, info.name) or wanted.cluster not in (None, info.cluster):
        return False
    if wanted.arch not in (None, info.arch) or wanted.runtime not in info.runtimes:
        return False
    if wanted.api and wanted.runtime not in info.api:
        return False
    if any(tag not in info.tags for tag in wanted.tags):
        return False
    if capacity.cpus * CPU_UNIT - node.ucpus < wanted.ucpus:
        return False
    if capacity.memory - node.memory < wanted.memory or usage.memory_available < wanted.memory:
        return False
    if capacity.disk - node.disk < wanted.disk or usage.disk_free < wanted.disk:
        return False
    usable = [
        one
        for one in capacity.gpus
        if one.uuid not in node.gpus
        and one.memory_total - one.memory_used >= (wanted.gpu_memory or one.memory_total / 2)
    ]
    return len(usable) >= wanted.gpus


@st.composite
def fleets(draw, make):
    beats = []
    for index in range(draw(st.integers(0, 6))):
        count = draw(st.integers(0, 3))
        gpus = tuple(
            gpu(f"g{index}{n}", draw(st.sampled_from([8, 24])) * GIB, draw(st.integers(0, 24)) * GIB)
            for n in range(count)
        )
        beats.append(
            make.beat(
                f"n{index}",
                cpus=draw(st.sampled_from([1, 2.5, 8])),
                memory=draw(st.integers(1, 16)) * GIB,
                disk=draw(st.integers(1, 100)) * GIB,
                usage=Usage(
                    cpu_percent=draw(st.floats(0, 100)),
                    memory_available=draw(st.integers(1, 16)) * GIB,
                    disk_free=draw(st.integers(1, 100)) * GIB,
                ),
                gpus=gpus,
                tags=tuple(draw(st.sets(st.sampled_from("ab")))),
                arch=draw(st.sampled_from(["amd64", "arm64"])),
                cluster=draw(st.sampled_from(["x", "y"])),
                runtimes=tuple(draw(st.sets(st.sampled_from(["docker", "process"])))),
                api=tuple(draw(st.sets(st.sampled_from(["docker", "process"])))),
            )
        )
    return beats


needs = st.builds(
    Need,
    ucpus=st.sampled_from([100_000, 1_000_000, 2_500_000, 8_000_000]),
    memory=st.integers(1, 16).map(lambda n: n * GIB),
    disk=st.integers(1, 100).map(lambda n: n * GIB),
    gpus=st.integers(0, 3),
    gpu_memory=st.sampled_from([0, 4 * GIB, 20 * GIB]),
    runtime=st.sampled_from(["docker", "process"]),
    arch=st.sampled_from([None, "amd64"]),
    tags=st.sampled_from([(), ("a",), ("a", "b")]),
    cluster=st.sampled_from([None, "x"]),
    node=st.sampled_from([None, None, "n1", "name-n2"]),
    policy=st.sampled_from(["pack", "spread"]),
    members=st.just(()),  # else Hypothesis makes some up
)


@quick
@given(data=st.data())
def test_the_columns_find_the_same_nodes_as_looking_at_each(make, data) -> None:
    columns = fleet(*data.draw(fleets(make)))
    nodes = [node for node in columns.nodes if node is not None]
    for wanted in data.draw(st.lists(needs, max_size=8)):
        fitting = {node.id for node in nodes if fits_by_looking(node, wanted)}
        trial = Trial(columns, NOW - 10, LIMITS)
        rows = trial.feasible(wanted)
        assert {node.id for node in nodes if rows[node.slot]} == fitting
        found = trial.place(wanted, None, frozenset())
        refusal = refuse(columns, wanted, NOW - 10, LIMITS)
        if found is None:
            assert not fitting
            assert refusal.reasons
            continue
        assert found.node in fitting
        assert len(set(found.gpus)) == wanted.gpus
        # What it chose is taken: promise it as the state would, and the next one is judged by that.
        node = next(node for node in nodes if node.id == found.node)
        node.ucpus += wanted.ucpus
        node.memory += wanted.memory
        node.disk += wanted.disk
        node.gpus |= dict.fromkeys(found.gpus, "job")
        columns.refresh(node, LIMITS)


@quick
@given(data=st.data())
def test_one_trial_never_promises_more_than_there_is(make, data) -> None:
    beats = data.draw(fleets(make))
    trial = Trial(fleet(*beats), NOW - 10, LIMITS)
    taken: dict[str, list[int]] = {beat.node.id: [0, 0, 0] for beat in beats}
    gpus: list[str] = []
    for wanted in data.draw(st.lists(needs, max_size=12)):
        if found := trial.place(wanted, None, frozenset()):
            gpus += found.gpus
            taken[found.node] = [a + b for a, b in zip(taken[found.node], wanted[:3], strict=True)]
    assert len(gpus) == len(set(gpus))
    for beat in beats:
        ucpus, memory, disk = taken[beat.node.id]
        assert ucpus <= beat.capacity.cpus * CPU_UNIT
        assert memory <= min(beat.capacity.memory, beat.usage.memory_available)
        assert disk <= min(beat.capacity.disk, beat.usage.disk_free)


def test_packing_fills_the_fuller_node_and_spreading_the_emptier(make) -> None:
    columns = fleet(make.beat("n1"), make.beat("n2"))
    busy = columns.nodes[0]
    busy.ucpus += CPU_UNIT
    columns.refresh(busy, LIMITS)
    assert place(columns, need()).node == busy.id
    assert place(columns, need(placement={"policy": "spread"})).node != busy.id


def test_a_node_that_has_the_image_is_preferred(make) -> None:
    columns = fleet(make.beat("n1"), make.beat("n2", images=("img:1",)), make.beat("n3"))
    found = place(columns, need(), image="img:1")
    assert found.node == "n2"
    assert found.score["image"] > 0
    assert found.score["total"] == round(sum(v for k, v in found.score.items() if k != "total"), 4)


def test_real_cpu_use_only_scores(make) -> None:
    usage = Usage(cpu_percent=100, memory_available=16 * GIB, disk_free=900 * GIB)
    idle, busy = make.beat("n1"), make.beat("n2", usage=usage)
    assert place(fleet(busy, idle), need()).node == "n1"
    assert place(fleet(busy), need()).node == "n2"


def test_a_node_that_failed_the_job_is_used_only_when_no_other_will_do(make) -> None:
    columns = fleet(make.beat("n1", images=("img",)), make.beat("n2"))
    assert place(columns, need(), "img", frozenset({"n1"})).node == "n2"
    assert place(columns, need(), "img", frozenset({"n1", "n2"})).node == "n1"


def test_jobs_without_gpus_leave_gpu_nodes_to_those_that_need_them(make) -> None:
    columns = fleet(make.beat("n1", gpus=(gpu("g1"),)), make.beat("n2"))
    assert place(columns, need()).node == "n2"
    assert place(columns, need(resources={"gpus": 1})).gpus == ("g1",)


def test_a_gpu_that_an_outside_process_fills_is_not_free(make) -> None:
    filled = make.beat("n1", gpus=(gpu("g1", used=20 * GIB), gpu("g2", used=GIB)))
    columns = fleet(filled)
    assert place(columns, need(resources={"gpus": 1})).gpus == ("g2",)
    assert place(columns, need(resources={"gpus": 2})) is None
    # What the job says it needs decides, if it says so.
    assert set(place(columns, need(resources={"gpus": 2, "gpu_memory": 4 * GIB})).gpus) == {"g1", "g2"}
    assert place(columns, need(resources={"gpus": 1, "gpu_memory": 4 * GIB})).gpus == ("g1",)


def test_a_silent_node_gets_nothing(make) -> None:
    columns = fleet(make.beat("n1"))
    assert Trial(columns, NOW + 1, LIMITS).place(need(), None, frozenset()) is None
    refusal = refuse(columns, need(), NOW + 1, LIMITS)
    assert [(r.code, r.nodes) for r in refusal.reasons] == [(PendingCode.NODE_UNHEALTHY, 1)]
    assert refusal.is_possible


def codes(refusal) -> dict[PendingCode, int]:
    return {reason.code: reason.nodes for reason in refusal.reasons}


def reason_for(make, *beats, **spec) -> SimpleNamespace:
    refusal = refuse(fleet(*beats), need(**spec), NOW - 10, LIMITS)
    texts = " | ".join(reason.message for reason in refusal.reasons)
    return SimpleNamespace(codes=codes(refusal), text=texts, possible=refusal.is_possible)


def test_a_refusal_says_what_is_missing_by_how_much(make) -> None:
    told = reason_for(make, make.beat("n1", cpus=8), make.beat("n2", cpus=2), resources={"cpus": 64})
    assert (told.codes, told.possible) == ({PendingCode.CPUS: 2}, False)
    assert "needs 64 cpus; the largest node has 8" in told.text

    told = reason_for(make, make.beat("n1"), resources={"memory": "1TiB", "disk": "9999GiB"})
    assert told.codes == {PendingCode.MEMORY: 1, PendingCode.DISK: 1}
    assert "needs 1024 GiB of memory; the largest node has 16 GiB" in told.text


def test_a_refusal_for_a_busy_fleet_says_that_it_can_still_be(make) -> None:
    columns = fleet(make.beat("n1", cpus=4))
    columns.nodes[0].ucpus = 3 * CPU_UNIT
    columns.refresh(columns.nodes[0], LIMITS)
    refusal = refuse(columns, need(resources={"cpus": 2}), NOW - 10, LIMITS)
    assert refusal.is_possible
    assert "needs 2 cpus; 1 are free" in refusal.reasons[0].message


def test_each_thing_a_node_is_has_its_reason(make) -> None:
    node = make.beat("n1", tags=("a",), cluster="x", arch="amd64", runtimes=("docker",))
    assert reason_for(make).codes == {PendingCode.NO_NODES: 0}
    assert reason_for(make, node, runtime="process").codes == {PendingCode.RUNTIME: 1}
    for placement, code in (
        ({"tags": ["b"]}, PendingCode.TAGS),
        ({"cluster": "y"}, PendingCode.CLUSTER),
        ({"arch": "arm64"}, PendingCode.ARCH),
        ({"node": "n9"}, PendingCode.NODE_NAME),
    ):
        told = reason_for(make, node, placement=placement)
        assert (told.codes, told.possible) == ({code: 1}, False)
    api = {"runtime": "docker", "image": "x", "network": "api"}
    told = reason_for(make, node, **api)
    assert (told.codes, told.possible) == ({PendingCode.NETWORK: 1}, False)
    assert "WHERRY_RELAY_IMAGE" in told.text
    only_processes = make.beat("n2", api=("process",))
    assert reason_for(make, only_processes, **api).codes == {PendingCode.NETWORK: 1}
    able = place(fleet(node, only_processes, make.beat("n3", api=("docker",))), need(**api))
    assert able.node == "n3"


def test_gpu_refusals_tell_too_few_from_too_small_from_busy(make) -> None:
    node = make.beat("n1", gpus=(gpu("g1", used=23 * GIB),))
    assert "the node with most has 1" in reason_for(make, node, resources={"gpus": 2}).text
    told = reason_for(make, node, resources={"gpus": 1, "gpu_memory": "40GiB"})
    assert (told.codes, told.possible) == ({PendingCode.GPU_MEMORY: 1}, False)
    told = reason_for(make, node, resources={"gpus": 1})
    assert (told.codes, told.possible) == ({PendingCode.GPUS: 1}, True)


def test_tenths_of_a_cpu_add_up_exactly(make) -> None:
    trial = Trial(fleet(make.beat("n1", cpus=1)), NOW - 10, LIMITS)
    tenth = need(resources={"cpus": 0.1, "memory": GIB, "disk": 1})
    assert [bool(trial.place(tenth, None, frozenset())) for _ in range(11)] == [True] * 10 + [False]


def test_a_removed_nodes_row_is_used_again_and_promises_nothing(make) -> None:
    columns = fleet(make.beat("n1"), make.beat("n2"))
    columns.remove(columns.nodes[0])
    assert place(columns, need()).node == "n2"
    assert columns.add("n3", NOW).slot == 0
    assert place(columns, need()).node == "n2"


def _holding(make, node_id: str, *keys: str, **more):
    held = tuple(HeldInput(key=key, bytes=GIB) for key in keys)
    return make.beat(node_id, **more).model_copy(update={"inputs": held})


def test_a_node_that_has_the_input_is_better_than_one_that_has_the_image_and_is_fuller(make):
    columns = fleet(make.beat("n1", images=("busybox",)), _holding(make, "n2", "big"))
    columns.nodes[columns.slots["n1"]].ucpus = CPU_UNIT
    columns.refresh(columns.nodes[columns.slots["n1"]], LIMITS)
    trial = Trial(columns, NOW - 10, LIMITS)
    found = trial.place(need(), "busybox", frozenset(), (("big", 2 * GIB),))
    assert found.node == "n2"
    assert found.score["inputs"] > 3


def test_of_several_inputs_the_bytes_that_are_missing_count(make):
    columns = fleet(_holding(make, "n1", "small"), _holding(make, "n2", "big"), _holding(make, "n3", "big", "small"))
    wanted = (("big", GIB), ("small", 1000))
    trial = Trial(columns, NOW - 10, LIMITS)
    one = need(resources={"cpus": 4})
    order = [trial.place(one, None, frozenset(), wanted).node for _ in range(3)]
    assert order == ["n3", "n2", "n1"]


def test_an_input_of_a_few_bytes_moves_nothing(make):
    columns = fleet(make.beat("n1"), _holding(make, "n2", "tiny"))
    columns.nodes[columns.slots["n1"]].ucpus = CPU_UNIT
    columns.refresh(columns.nodes[columns.slots["n1"]], LIMITS)
    assert Trial(columns, NOW - 10, LIMITS).place(need(), None, frozenset(), (("tiny", 1000),)).node == "n1"


def test_a_failure_counts_more_than_all_inputs(make):
    columns = fleet(make.beat("n1"), _holding(make, "n2", "big"))
    trial = Trial(columns, NOW - 10, LIMITS)
    assert trial.place(need(), None, frozenset({"n2"}), (("big", 1000 * GIB),)).node == "n1"


def test_a_node_that_has_removed_an_input_is_not_preferred_any_more(make):
    columns = fleet(make.beat("n1"), _holding(make, "n2", "big"))
    node = columns.nodes[columns.slots["n2"]]
    node.beat = node.beat.model_copy(update={"inputs": ()})
    columns.refresh(node, LIMITS)
    assert not columns.with_input("big")
    assert "inputs" not in place(columns, need()).score
    columns.remove(node)


def test_scores_with_inputs_are_the_same_row_by_row_and_all_at_once(make):
    beats = [_holding(make, f"n{i}", *(["big"] if i % 2 else []), *(["small"] if i % 3 else [])) for i in range(12)]
    columns = fleet(*beats)
    wanted, one = (("big", GIB), ("small", GIB // 8)), need(resources={"cpus": 1})
    kept = Trial(columns, NOW - 10, LIMITS)
    for _ in range(30):
        mark = kept.mark()
        found = kept.place(one, None, frozenset(), wanted)
        kept.undo(mark)
        fresh = Trial(columns, NOW - 10, LIMITS)
        for slot in [*range(12)]:
            assert abs(kept._score_one(slot, one, None, wanted) - kept._score(one, None, wanted)[slot]) < 1e-5
        assert found.score["inputs"] == kept.place(one, None, frozenset(), wanted).score["inputs"]
        assert fresh.place(one, None, frozenset(), wanted).score["inputs"] >= found.score["inputs"]


def test_the_same_job_tried_again_prefers_the_node_with_its_inputs_where_it_failed_by_itself(make):
    job = make.job(inputs={"data": f"artifact:{'a' * 26}"})
    ended = Attempt(
        number=1,
        node="n1",
        state=AttemptState.FAILED,
        placed_at=job.created_at,
        error=Failure(reason=EndReason.EXIT_CODE, message="1"),
    )
    assert failed_nodes(job.model_copy(update={"attempts": (ended,)})) == frozenset()
    lost = ended.model_copy(update={"error": Failure(reason=EndReason.NODE_LOST, message="gone")})
    assert failed_nodes(job.model_copy(update={"attempts": (lost,)})) == {"n1"}
    plain = job.model_copy(update={"attempts": (ended,), "spec": job.spec.model_copy(update={"inputs": {}})})
    assert failed_nodes(plain) == {"n1"}


def test_only_inputs_whose_bytes_are_known_count():
    known = {"source": f"artifact:a{'b' * 25}", "sha256": "0" * 64, "size": 7}
    spec = JobSpec(
        runtime="process",
        command="true",
        inputs={"a": known, "b": known, "c": known | {"unpack": False}, "d": "https://example.org/x"},
    )
    assert inputs_of(spec) == ((f"{'0' * 64}-unpacked", 7), ("0" * 64, 7))
    fetched = JobSpec(runtime="process", command="true", network="api", inputs={"a": known | {"stage": False}})
    assert inputs_of(fetched) == ()
