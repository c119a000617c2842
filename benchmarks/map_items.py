"""``python -m benchmarks.map_items``: items a second in the scheduler's core alone; its part of benchmarks/scheduler.md.

One map job, with its items added 500 at a time, on workers that end all that they have between two heartbeats: what is
measured is taking items in, sharing them out, the answers to heartbeats, and the events, which are made into bytes as
the shell does it. Nothing is recorded and nothing is run. Times are CPU seconds of the process.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.scheduler_page import write
from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Fact, Input, Recorded
from services.scheduler.core.fleet.state import State
from services.scheduler.core.lifecycle import Report
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Batch, Beat, handle
from services.scheduler.core.mapping import ItemsSaid
from shared.events import AttemptItems, AttemptRunning, ItemEnd, ItemsAdded, JobChanged
from shared.fleet import Capacity, DesiredState, Heartbeat, HeldAttempt, NodeInfo
from shared.ids import new_id
from shared.job import BlobRef, ItemFile, Job, Owner
from shared.spec import GIB, ITEMS_AT_ONCE, ItemSpec, JobSpec
from shared.states import JobState

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = replace(Limits(), fresh_s=1e9, lease_s=1e9, interval_s=1e9)
ITEMS = (1_000, 10_000, 100_000)
WORKERS_EACH, NODES = 4, 4
RESULT = (ItemFile(path="result.png", blob=BlobRef(sha256="0" * 64, size=1000)),)


class Fleet:
    """A state, and nodes whose workers are quick. `spent` counts the scheduler's own CPU seconds."""

    def __init__(self) -> None:
        self.state = State(LIMITS, Now(START, 0.0))
        self.seq, self.beats, self.seconds = 0, 0, 0.0
        self.spent, self.largest = 0.0, 0
        self.held: dict[str, dict[str, int]] = {f"n{number}": {} for number in range(NODES)}
        self.waiting: tuple[Fact, ...] = ()
        self.end: Job | None = None

    def now(self) -> Now:
        return Now(START + timedelta(seconds=self.seconds), self.seconds)

    def entry(self) -> int:
        self.seq += 1
        return self.seq

    def turn(self, facts: Sequence[Fact], beats: tuple[Beat, ...] = ()) -> None:
        """Take turns until nothing more is to be decided at once."""
        batch = Batch(facts=(*self.waiting, *facts), beats=beats)
        while True:
            began = time.process_time()
            effects = handle(self.state, batch, self.now())
            for one in effects.records:
                event = JobChanged(job=one.job, epoch=1, items=one.items).to_bytes()
                self.largest = max(self.largest, len(event))
                self.state.believe(one.job, self.entry(), self.now(), one.items)
                if one.job.is_terminal and one.job.spec.map is not None:
                    self.end = one.job
            self.spent += time.process_time() - began
            if not effects.again and not effects.deferred:
                return
            batch = Batch(facts=effects.deferred)

    def round(self) -> None:
        """Let every node heartbeat once, and its workers end what they were given."""
        self.seconds += 0.1
        for node, held in self.held.items():
            self.beats += 1
            beat = Beat(node, _heartbeat(node, self.beats, held))
            self.turn((), (beat,))
            began = time.process_time()
            answer = desired_state(self.state, node, 1, self.now())
            answer.to_bytes()
            self.spent += time.process_time() - began
            self.turn(tuple(self._obey(node, answer)))

    def _obey(self, node: str, answer: DesiredState) -> list[Fact]:
        found: list[Fact] = []
        for one in answer.assignments:
            if one.action == "start":
                self.held[node][one.job_id] = one.attempt
                data = AttemptRunning(attempt=one.attempt, at=self.now().at)
                found.append(Input(self.entry(), one.job_id, Report(node, data), "e"))
            elif one.items:
                at = self.now().at
                ends = tuple(
                    ItemEnd(id=item.id, files=RESULT, started_at=at - timedelta(milliseconds=5), at=at)
                    for item in one.items
                )
                said = ItemsSaid(node, AttemptItems(attempt=one.attempt, ends=ends, at=at))
                found.append(Input(self.entry(), one.job_id, said, "e"))
        return found


def _heartbeat(node: str, seq: int, held: dict[str, int]) -> Heartbeat:
    return Heartbeat(
        node=NodeInfo(id=node, name=node, runtimes=("process",)),
        session="s",
        boot_id="b",
        seq=seq,
        capacity=Capacity(cpus=WORKERS_EACH, memory=64 * GIB, disk=1000 * GIB),
        attempts=tuple(HeldAttempt(job_id=job, attempt=number, state="running") for job, number in held.items()),
        at=START,
    )


def measure(count: int) -> dict[str, float]:
    """Run one map job of *count* items from its first to its last."""
    fleet = Fleet()
    for number, node in enumerate(fleet.held):
        fleet.turn((), (Beat(node, _heartbeat(node, -NODES + number, {})),))
    spec = JobSpec.model_validate(
        {"kind": "map", "map": {"parallelism": WORKERS_EACH * NODES, "warm": True}, "runtime": "process"}
        | {"command": "true", "resources": {"disk": "1GiB"}}
    )
    job = Job(id=new_id("j"), owner=Owner(id="u1", name="u"), spec=spec, created_at=START, updated_at=START)
    fleet.turn([Recorded(fleet.entry(), job, 0)])
    for first in range(0, count, ITEMS_AT_ONCE):
        some = range(first, min(first + ITEMS_AT_ONCE, count))
        items = tuple(ItemSpec(id=new_id("i"), name=f"photo-{n}.png", params={"radius": 2}) for n in some)
        added = ItemsAdded(items=items, close=some.stop == count, by="u1", at=START)
        fleet.turn([Input(fleet.entry(), job.id, added, "e")])
    adding = fleet.spent
    rounds = 0
    while fleet.end is None:
        fleet.round()
        rounds += 1
    if fleet.end.state is not JobState.SUCCEEDED or fleet.end.items is None or fleet.end.items.succeeded != count:
        raise RuntimeError(f"the job has {fleet.end.state}: {fleet.end.error}")
    return {
        "items": count,
        "added_per_s": count / adding,
        "ended_per_s": count / (fleet.spent - adding),
        "us_per_item": fleet.spent / count * 1e6,
        "rounds": rounds,
        "largest_event_kib": fleet.largest / 1024,
    }


def main() -> None:
    """Measure every size and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="*", default=ITEMS)
    parser.add_argument("--no-page", action="store_true", help="only print")
    args = parser.parse_args()
    results: list[dict[str, float]] = []
    for count in args.items:
        results.append(measure(count))
        print(json.dumps(results[-1]), flush=True)
    if not args.no_page:
        print(f"written: {write(Path(__file__).parent, 'items', results)}")


if __name__ == "__main__":
    main()
