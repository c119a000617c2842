"""Services: replicas that are kept, replaced, exchanged one by one, and left out while nobody asks."""

from types import SimpleNamespace
from typing import Any

import pytest

from shared.events import ServiceAsked, ServiceUpdated
from shared.job import Job
from shared.states import AttemptState, EndReason, JobState, PendingCode


@pytest.fixture
def world(make: SimpleNamespace) -> Any:
    return make.World()


def service_job(make: SimpleNamespace, **more: Any) -> Job:
    service = {"port": 8000, "replicas": 2} | more.pop("service", {})
    return make.job("s1", kind="service", service=service, **more)


def start(world: Any, make: SimpleNamespace, *, nodes: int = 3, run: bool = True, **spec: Any) -> Job:
    for number in range(nodes):
        world.hear(f"n{number + 1}")
    world.turn(world.create(service_job(make, **spec)))
    world.settle()
    if run:
        run_all(world, make)
    return world.job("s1")


def run_all(world: Any, make: SimpleNamespace) -> None:
    for one in world.job("s1").members:
        if one.state in (JobState.PLACED, JobState.STARTING):
            report(world, one, make.running(s=world.now))


def report(world: Any, member: Any, data: Any) -> None:
    world.turn(world.report(world.job(member.job_id).attempts[-1].node, member.job_id, data))
    world.settle()


def test_replicas_are_jobs_of_their_own_which_the_service_names(world: Any, make: SimpleNamespace):
    job = start(world, make, run=False)
    assert (job.state, job.replicas, len(job.members)) == (JobState.QUEUED, 2, 2)
    replicas = [world.job(one.job_id) for one in job.members]
    assert [one.state for one in replicas] == [JobState.PLACED] * 2
    assert all(one.member_of.gang_id == "s1" and one.member_of.role == "replica" for one in replicas)
    assert all(one.spec.kind == "run" and one.spec.service is None for one in replicas)
