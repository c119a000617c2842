"""Jobs of many kinds, and what their programs do."""

import random
from dataclasses import dataclass
from datetime import datetime

from shared.job import Job, Owner
from shared.spec import GIB, JobSpec, Need, Placement, Resources, Timeouts
from tests.simulation.agent import Tempo

OWNERS = tuple(Owner(id=f"u{n}", name=f"user {n}") for n in range(12))
_SIZES = tuple(Resources(cpus=cpus, memory=round(2 * cpus * GIB), disk=GIB) for cpus in (0.5, 1, 1, 2, 4))
_GPU = Resources(cpus=1, memory=GIB, disk=GIB, gpus=1)
_PLAIN = JobSpec(runtime="process", command="true")


@dataclass(frozen=True, slots=True)
class Program:
    """What an attempt does: how long it takes, and how many attempts fail before one succeeds."""

    seconds: float
    fails: int
    tempo: Tempo


def make_job(dice: random.Random, number: int, now: datetime, others: list[str]) -> Job:
    """Return a job; some need one of *others*."""
    update: dict[str, object] = {
        "resources": _GPU if dice.random() < 0.03 else dice.choice(_SIZES),
        "priority": dice.choice((10, 50, 50, 50, 90)),
        "max_attempts": dice.choice((1, 1, 2, 3)),
        "exclusive": dice.random() < 0.05,
        "on_disconnect": "stop" if dice.random() < 0.1 else "keep",
    }
    if dice.random() < 0.2:
        update["placement"] = Placement(policy="spread")
    if dice.random() < 0.02:
        update["timeouts"] = Timeouts(queue=dice.uniform(1, 60), run=dice.uniform(5, 60))
    if others and dice.random() < 0.05:
        update["needs"] = (
            Need.model_construct(job=dice.choice(others[-200:]), on=dice.choice(("ok", "any", "always"))),
        )
    spec = _PLAIN.model_copy(update=update)
    return Job(id=f"j{number}", owner=dice.choice(OWNERS), spec=spec, created_at=now, updated_at=now)


def programs_of(dice: random.Random, job: Job) -> Program:
    """Return what the attempts of *job* do."""
    return Program(
        seconds=min(90.0, dice.expovariate(1 / 25)),
        fails=dice.choice((1, 1, 2, 9)) if dice.random() < 0.1 else 0,
        tempo=Tempo(
            pull_s=dice.uniform(1, 20) if dice.random() < 0.1 else 0.0,
            stage_s=dice.uniform(0.05, 0.5),
            collect_s=dice.uniform(0.05, 1.0),
        ),
    )
