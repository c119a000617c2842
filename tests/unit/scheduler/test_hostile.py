"""What a node, a user or an admin could send to end the leader: nothing of it does, nor ends it again and again."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import read_fact
from shared.events import AttemptFinished, AttemptStarting, Event, JobChanged
from shared.fleet import GPUS_MAX, Gpu
from shared.job import BlobRef, Failure, GangPlace, Job
from shared.model import Message
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, EndReason, JobState, NodeDuty

MESSAGE_MAX = 1024 * 1024  # the broker's
LONG = "\U0001f600" * 2000  # what somebody else words has at most 2,000 characters; these have four bytes each


@pytest.fixture
def world(make: SimpleNamespace) -> Any:
    return make.World()


def gang_job(make: SimpleNamespace, count: int = 2, **spec: Any) -> Job:
    gang = {"roles": {"worker": {"count": count}}}
    return make.job("g1", kind="gang", gang=gang, **spec)


def test_a_gang_with_inputs_is_placed_once_they_are_there(world: Any, make: SimpleNamespace):
    first = make.job("j" + "a" * 25)
    world.hear("n1")
    world.turn(world.create(first))
    world.turn(world.create(gang_job(make, inputs={"data": f"job:{first.id}"})))
    world.turn(world.report("n1", first.id, make.finished()))
    world.settle()
    assert world.job("g1").state is JobState.PLACED
    assert all(world.job(one.job_id).state is JobState.PLACED for one in world.job("g1").members)


@pytest.mark.parametrize("of_job", [1021, 600, 0])
def test_a_gang_whose_members_would_have_too_many_variables_is_refused(of_job: int):
    spec = {
        "kind": "gang",
        "runtime": "process",
        "command": "work",
        "env": {f"A{n}": "" for n in range(of_job)},
        "gang": {"roles": {"worker": {"env": {f"B{n}": "" for n in range(1021 - of_job)}}}},
    }
    with pytest.raises(ValidationError, match="at most 1020 variables"):
        JobSpec.model_validate(spec)


def test_the_events_of_the_largest_gang_fit_into_a_message_though_all_members_fail_with_many_words(
    world: Any, make: SimpleNamespace
):
    world.hear("n1", cpus=1000, memory=1000 * GIB, disk=10_000 * GIB)
    env = {"TEXT": "x" * 30_000} | {f"A{n}": "y" * 30_000 for n in range(7)}
    world.turn(world.create(gang_job(make, 128, env=env)))
    world.settle()
    failure = Failure(reason=EndReason.EXIT_CODE, message=LONG)
    ended = AttemptFinished(attempt=1, at=make.at(1).at, state=AttemptState.FAILED, error=failure, remarks=(LONG,) * 50)
    members = world.job("g1").members
    assert len(members) == 128
    world.turn(*(world.report("n1", one.job_id, ended) for one in members))
    world.settle()
    assert world.job("g1").state is JobState.FAILED
    sizes = [len(entry.job.to_bytes()) for entry in world.log if hasattr(entry, "job")]
    assert max(sizes) < 0.9 * MESSAGE_MAX


def test_a_report_with_absurd_words_and_numbers_makes_no_event_that_the_broker_refuses(make: SimpleNamespace):
    assert len(AttemptStarting(attempt=1, phase="x" * 900_000, at=make.START).phase) <= 300
    with pytest.raises(ValidationError):
        BlobRef(sha256="x" * 900_000, size=1)
    with pytest.raises(ValidationError):
        AttemptFinished(attempt=1, at=make.START, state=AttemptState.FAILED, exit_code=2**63)


def test_a_heartbeat_with_absurd_words_makes_no_record_that_the_broker_refuses(world: Any, make: SimpleNamespace):
    for number in range(30):
        world.now = 40 * number
        world.hear("n1", session="s" * 400_000 + str(number), boot_id="b" * 400_000, problem=LONG if number % 2 else "")
        world.hear("n1", name="n" * 100_000)
    assert len(world.record().to_bytes()) < 0.5 * MESSAGE_MAX


def test_a_node_with_very_many_gpus_takes_no_room_of_all_the_others(world: Any, make: SimpleNamespace):
    world.hear("n1", gpus=tuple(Gpu(uuid=str(n), name="g", memory_total=GIB) for n in range(20_000)))
    world.settle()
    assert world.state.columns.gpu_memory.shape[1] <= GPUS_MAX


def test_gpus_with_the_same_name_are_taken_and_given_back(world: Any, make: SimpleNamespace):
    twins = (Gpu(uuid="same", name="g", memory_total=GIB), Gpu(uuid="same", name="g", memory_total=GIB))
    world.hear("n1", gpus=twins)
    world.turn(world.create(make.job(resources={"gpus": 1})))
    world.settle()
    world.turn(world.report("n1", "j1", make.finished()))
    world.settle()
    assert world.job().state is JobState.SUCCEEDED
    assert world.state.nodes["n1"].gpus == {}


def test_a_drain_that_ends_in_a_million_years_is_one_without_an_end(world: Any):
    world.hear()
    world.wish("drain", deadline_s=1e15)
    assert world.record().duty is NodeDuty.DRAINING


@pytest.mark.parametrize(
    "change",
    [
        {"state": "placed"},
        {"state": "placed", "attempt": 1},
        {"state": "succeeded"},
        {"member_of": GangPlace(gang_id="g1", round=1, role="a", index=0, rank=0, size=1)},
        {"input_seq": 5},
    ],
)
def test_a_job_that_is_handed_in_as_anything_but_new_is_not_taken_in(make: SimpleNamespace, change: dict[str, Any]):
    def created(job: Job) -> Any:
        data = JobChanged(job=Job.model_validate(job.model_dump() | change))
        event = Event[Message](id="e1", source="s", type="t", time=make.START, subject=job.id, data=data)
        return read_fact(f"wherry.job.u1.{job.id}.created", 1, event)

    assert created(make.job()) is None
    change.clear()
    assert created(make.job()) is not None


def test_a_heartbeat_of_an_evicted_agent_is_answered_in_the_moment_when_its_node_would_be_forgotten(
    world: Any, make: SimpleNamespace
):
    world.hear(session="old")
    world.hear(session="new")
    for second in (100, 101, 131, 132):
        world.tick(second)
    assert world.state.nodes["n1"].is_lost
    world.now = 7999
    world.turn(beats=(make.beat(session="old", seq=99),), tick=True)
    assert desired_state(world.state, "n1", 1, make.at(world.now), "old").more
    world.tick(8000)
    assert "n1" not in world.state.nodes


def test_a_node_that_says_goodbye_and_is_started_again_gets_work_again(world: Any, make: SimpleNamespace):
    world.hear(session="a")
    world.turn(world.create(make.job()))
    world.settle()
    world.hear(session="a", held=(("j1", 1),), leaving=True)
    assert world.record().duty is NodeDuty.DRAINING
    world.hear(session="b", held=(("j1", 1),))
    assert world.record().duty is NodeDuty.ACTIVE
    world.turn(world.create(make.job("j2")))
    world.settle()
    assert world.job("j2").state is JobState.PLACED


def test_a_leaving_node_that_an_admin_has_drained_stays_drained(world: Any):
    world.hear(session="a", leaving=True)
    world.wish("drain")
    world.hear(session="b")
    assert world.record().duty in (NodeDuty.DRAINING, NodeDuty.DRAINED)


def test_heartbeats_about_jobs_and_gangs_that_are_not_the_nodes_change_nothing(world: Any, make: SimpleNamespace):
    world.hear("n1")
    world.turn(world.create(gang_job(make)), world.create(make.job("waits", placement={"tags": ["none"]})))
    world.settle()
    others = (("g1", 1), ("waits", 0), ("waits", 1), ("unknown", 1), (world.job("g1").members[0].job_id, 1))
    for delivered in (False, True):
        world.hear("n2", held=others, delivered=delivered, held_as="succeeded", boot_id=f"b{delivered}")
    answer = desired_state(world.state, "n2", 1, make.at(world.now))
    assert {one.action for one in answer.assignments} == {"forget"}
    world.turn(world.report("n2", "g1", make.finished()), world.report("n2", "waits", make.finished(attempt=0)))
    assert world.job("g1").state is JobState.PLACED
    assert world.job("waits").state is JobState.QUEUED


def test_what_the_log_holds_of_a_member_can_be_read_back(world: Any, make: SimpleNamespace):
    world.hear("n1", cpus=200, memory=1000 * GIB, disk=10_000 * GIB)
    env = {f"A{n}": "" for n in range(1020)}
    world.turn(world.create(gang_job(make, 128, name="n" * 128, env=env)))
    world.settle()
    for one in world.job("g1").members:
        job = world.job(one.job_id)
        assert Job.from_bytes(job.to_bytes()) == job
        json.loads(job.to_bytes())
