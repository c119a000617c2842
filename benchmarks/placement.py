"""``python -m benchmarks.placement``: placements a second in the scheduler's core; writes benchmarks/scheduler.md.

The core is fed as its shell feeds it: heartbeats and jobs come in batches through `machine.handle`, what it decides is
believed, ended jobs are reported. Nothing is recorded and nobody is woken: this is the cost of deciding. Times are CPU
seconds of the process, for the machine may be busy with others' work. Each case runs in a process of its own, so that
its peak memory is its own.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.scheduler_page import write
from services.scheduler.core.facts import Input, Recorded
from services.scheduler.core.fleet.state import State
from services.scheduler.core.lifecycle import Report
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Batch, Beat, Effects, handle
from services.scheduler.core.need import need_of
from services.scheduler.core.placement import Trial
from shared.events import AttemptFinished
from shared.fleet import Capacity, Gpu, Heartbeat, NodeInfo, Usage
from shared.job import Attempt, Job, Owner
from shared.spec import GIB, MIB, JobSpec, Placement, Resources
from shared.states import AttemptState, JobState

START = datetime(2026, 1, 1, tzinfo=UTC)
OWNERS = [Owner(id=f"u{n}", name=f"user {n}") for n in range(20)]
NODES = (100, 1_000, 10_000)
QUEUES = (100, 10_000, 100_000)
#: Nothing falls silent: the benchmark is not about heartbeats.
LIMITS = replace(Limits(), fresh_s=1e9, lease_s=1e9, interval_s=1e9)


def node(number: int, dice: random.Random) -> Beat:
    """Return the heartbeat of one of a mixed lot of machines; every tenth has GPUs."""
    cpus = dice.choice([4, 8, 16, 32, 64])
    gpus = tuple(
        Gpu(uuid=f"g{number}-{n}", name="gpu", memory_total=dice.choice([24, 80]) * GIB)
        for n in range(dice.choice([1, 2, 4, 8]) if number % 10 == 0 else 0)
    )
    info = NodeInfo(
        id=f"n{number}",
        name=f"node {number}",
        tags=(("ssd",) if number % 3 else ()) + (("eu",) if number % 2 else ("us",)),
    )
    memory = cpus * dice.choice([2, 4, 8]) * GIB
    heartbeat = Heartbeat(
        node=info,
        session="bench",
        boot_id="bench",
        seq=1,
        at=START,
        images=("img:a",) if number % 4 == 0 else (),
        capacity=Capacity(cpus=cpus, memory=memory, disk=cpus * 100 * GIB, gpus=gpus),
        usage=Usage(memory_available=memory, disk_free=cpus * 100 * GIB, cpu_percent=dice.random() * 90),
    )
    return Beat(info.id, heartbeat)


def equal_specs() -> Iterator[JobSpec]:
    """Yield the same small job for ever: what an array of thousands of jobs is."""
    spec = JobSpec(image="img:a", command="true", resources=Resources(cpus=0.5, memory=512 * MIB, disk=GIB))
    return itertools.repeat(spec)


def different_specs(dice: random.Random) -> Iterator[JobSpec]:
    """Yield jobs of which hardly two need the same; one in ten wants a GPU, one in three a tag."""
    while True:
        gpus = dice.choice([1, 2]) if dice.random() < 0.1 else 0
        yield JobSpec(
            image=dice.choice(["img:a", "img:b"]),
            command="true",
            resources=Resources(
                cpus=round(dice.uniform(0.1, 4), 2),
                memory=dice.randrange(64, 8192) * MIB,
                disk=dice.randrange(1, 64) * GIB,
                gpus=gpus,
            ),
            placement=Placement(tags=dice.choice([(), (), ("ssd",)]), policy=dice.choice(["pack", "pack", "spread"])),
        )


class Bench:
    """A core with a fleet and a queue, and the part of the shell that believes."""

    def __init__(self, nodes: int, specs: Iterator[JobSpec]) -> None:
        self._dice = random.Random(nodes)
        self._specs = specs
        self._seq = 0
        self._jobs = 0
        self._running: list[tuple[str, str, int]] = []
        self.now = Now(START, 1000.0)
        self.state = State(LIMITS, self.now)
        for first in range(0, nodes, 1000):
            beats = [node(n, self._dice) for n in range(first, min(nodes, first + 1000))]
            self.turn(*map(self._resident, beats), beats=tuple(beats))

    def _resident(self, beat: Beat) -> Recorded:
        """Return a job that runs on a node all the time and holds 70 to 95 % of it."""
        self._seq += 1
        part, capacity = self._dice.uniform(0.7, 0.95), beat.heartbeat.capacity
        held = Resources(
            cpus=round(capacity.cpus * part, 2), memory=int(capacity.memory * part), disk=int(capacity.disk * part)
        )
        attempt = Attempt(number=1, node=beat.node_id, state=AttemptState.RUNNING, placed_at=START, running_at=START)
        job = Job(
            id=f"r{self._seq}",
            owner=self._dice.choice(OWNERS),
            spec=JobSpec(image="img:a", command="true", resources=held),
            state=JobState.RUNNING,
            created_at=START,
            updated_at=START,
            attempt=1,
            attempts=(attempt,),
        )
        return Recorded(self._seq, job, 1)

    def turn(self, *facts: Recorded | Input, beats: tuple[Beat, ...] = ()) -> int:
        """Handle a batch and believe what was decided; return how many jobs were placed."""
        return self.believe(self.decide(facts, beats))

    def decide(self, facts: tuple[Recorded | Input, ...] = (), beats: tuple[Beat, ...] = ()) -> Effects:
        """Handle a batch."""
        return handle(self.state, Batch(facts=facts, beats=beats), self.now)

    def believe(self, effects: Effects) -> int:
        """Believe what was decided; return how many jobs were placed."""
        placed = 0
        for decision in effects.records:
            self._seq += 1
            self.state.believe(decision.job, self._seq, self.now)
            if decision.name == "placed":
                placed += 1
                attempt = decision.job.attempts[-1]
                self._running.append((attempt.node, decision.job.id, attempt.number))
        self.state.written.clear()
        return placed

    def create(self, count: int) -> list[Recorded]:
        """Return *count* new jobs of twenty owners."""
        created: list[Recorded] = []
        for _ in range(count):
            self._jobs += 1
            self._seq += 1
            when = self.now.at + timedelta(microseconds=self._jobs)
            job = Job(
                id=f"j{self._jobs}",
                owner=self._dice.choice(OWNERS),
                spec=next(self._specs),
                created_at=when,
                updated_at=when,
            )
            created.append(Recorded(self._seq, job, 0))
        return created

    def finish(self, count: int) -> list[Input]:
        """Return reports that *count* running jobs, chosen at random, have succeeded."""
        reports: list[Input] = []
        for _ in range(min(count, len(self._running))):
            at = self._dice.randrange(len(self._running))
            self._running[at], self._running[-1] = self._running[-1], self._running[at]
            node_id, job_id, attempt = self._running.pop()
            self._seq += 1
            data = AttemptFinished(attempt=attempt, at=self.now.at, state=AttemptState.SUCCEEDED, exit_code=0)
            reports.append(Input(self._seq, job_id, Report(node_id, data), f"e{self._seq}"))
        return reports

    def pass_time(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.now = Now(self.now.at + timedelta(seconds=seconds), self.now.mono + seconds)


def decide(nodes: int, queue: int, *, equal: bool, seconds: float) -> dict[str, float]:
    """Measure turns on a full fleet with *queue* jobs waiting: jobs end, and the best of the queue take their room."""
    specs = equal_specs() if equal else different_specs(random.Random(queue))
    bench = Bench(nodes, specs)
    _fill(bench)
    while (missing := queue - len(bench.state.line)) > 0:
        bench.turn(*bench.create(min(missing, 2000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    placed = turns = 0
    spent = 0.0
    while spent < seconds:
        bench.pass_time(0.01)
        bench.turn(*bench.create(max(0, queue - len(bench.state.line))))
        bench.turn(*bench.finish(min(256, queue)))  # the room is there from the next turn on
        began = time.process_time()
        effects = bench.decide()
        spent += time.process_time() - began
        placed += bench.believe(effects)
        turns += 1
    return {
        "nodes": nodes,
        "queue": queue,
        "equal": equal,
        "per_s": placed / spent,
        "us_per_decision": spent / max(1, placed) * 1e6,
        "placed_per_turn": placed / turns,
        "ms_per_turn": spent / turns * 1e3,
        "peak_mib": max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024,
    }


def _fill(bench: Bench) -> None:
    """Place jobs until the fleet takes hardly any more of them."""
    while bench.turn(*bench.create(400)) > 40:
        pass


def kernel(nodes: int, *, equal: bool, seconds: float) -> dict[str, float]:
    """Measure filter, score, allocation and release alone: a job for each node, 4,000 at most, placed and given back."""
    dice = random.Random(1)
    bench = Bench(nodes, equal_specs())
    bench.state.settle(bench.now)
    specs = equal_specs() if equal else different_specs(dice)
    needs = [(need_of(spec), spec.image) for spec in itertools.islice(specs, min(4000, nodes))]
    placed, spent = 0, 0.0
    while spent < seconds:
        began = time.process_time()
        trial = Trial(bench.state.columns, 0.0, LIMITS)
        placed += sum(trial.place(need, image, frozenset()) is not None for need, image in needs)
        trial.undo(0)
        spent += time.process_time() - began
    return {"nodes": nodes, "equal": equal, "per_s": placed / spent, "us_per_decision": spent / placed * 1e6}


def _alone(name: str, *args: object, **options: object) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply({"decide": decide, "kernel": kernel}[name], args, dict(options))


def main() -> None:
    """Measure every case and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="CPU seconds per case")
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--queues", type=int, nargs="*", default=QUEUES)
    parser.add_argument("--no-page", action="store_true", help="only print")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"kernel": [], "decide": []}
    for nodes, equal in itertools.product(args.nodes, (True, False)):
        results["kernel"].append(_alone("kernel", nodes, equal=equal, seconds=args.seconds))
        print(json.dumps(results["kernel"][-1]), flush=True)
        for queue in args.queues:
            results["decide"].append(_alone("decide", nodes, queue, equal=equal, seconds=args.seconds))
            print(json.dumps(results["decide"][-1]), flush=True)
    if not args.no_page:
        print(f"written: {write(Path(__file__).parent, 'placement', results)}")


if __name__ == "__main__":
    main()
