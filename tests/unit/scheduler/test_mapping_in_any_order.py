"""Map jobs in virtual time: workers die, nodes fall silent, reports come twice and late, schedulers are replaced."""

import random
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise

import pytest

from services.scheduler.core import snapshot
from services.scheduler.core.crew import PARENT_MOVES
from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Input, Recorded
from services.scheduler.core.mapping import ItemsSaid
from services.scheduler.core.replay import Replay
from shared.events import AttemptItems, ItemEnd, ItemsAdded, ItemsRetried
from shared.fleet import ItemOrder
from shared.job import Failure
from shared.spec import ItemSpec
from shared.states import AttemptState, EndReason, ItemState, JobState

Key = tuple[str, int]


@dataclass
class Worker:
    items: list[ItemOrder] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)  # with how many tries it was given
    close: bool = False
    ended: bool = False


@dataclass
class Node:
    """A node's agent in a few lines: its workers take up to three items a second."""

    id: str
    dice: random.Random
    session: int = 1
    seq: int = 0
    silent_until: float = -1.0
    workers: dict[Key, Worker] = field(default_factory=dict)
    outbox: list[tuple[str, object]] = field(default_factory=list)

    def beat(self, make):
        self.seq += 1
        beat = make.beat(self.id, seq=self.seq, session=f"s{self.session}", held=tuple(self.workers), cpus=4)
        begun = {key: tuple(item.id for item in worker.items[:3]) for key, worker in self.workers.items()}
        held = (one.model_copy(update={"items": begun[one.job_id, one.attempt]}) for one in beat.attempts)
        return beat.model_copy(update={"attempts": tuple(held)})

    def obey(self, make, answer) -> None:
        for one in answer.assignments:
            key = (one.job_id, one.attempt)
            if one.action == "start" and key not in self.workers:
                self.workers[key] = Worker()
                self.outbox.append((one.job_id, make.running(one.attempt)))
            worker = self.workers.get(key)
            if worker is None:
                continue
            if one.action == "forget":
                del self.workers[key]
            elif one.action == "stop" and not worker.ended:
                self._end(make, key, AttemptState.CANCELLED, None)
            elif one.items is not None:
                worker.items = [item for item in one.items if worker.done.get(item.id, -1) < item.tries]
                worker.close |= one.close

    def work(self, make, now: float) -> None:
        for key, worker in self.workers.items():
            if worker.ended:
                continue
            ends: list[ItemEnd] = []
            for item in [worker.items.pop(0) for _ in range(min(self.dice.randrange(4), len(worker.items)))]:
                worker.done[item.id] = item.tries
                failed = Failure(reason=EndReason.ITEM_FAILED, message="no") if self.dice.random() < 0.1 else None
                when = make.at(now).at + timedelta(milliseconds=len(ends))
                ends.append(ItemEnd(id=item.id, error=failed, started_at=when, at=when))
            if ends:
                self.outbox.append((key[0], AttemptItems(attempt=key[1], ends=tuple(ends), at=ends[-1].at)))
            if worker.close and not worker.items:
                self._end(make, key, AttemptState.SUCCEEDED, None)
            elif self.dice.random() < 0.01:
                self._end(make, key, AttemptState.FAILED, EndReason.EXIT_CODE)

    def _end(self, make, key: Key, state: AttemptState, reason: EndReason | None) -> None:
        self.workers[key].ended = True
        self.outbox.append((key[0], make.finished(key[1], state, reason)))

    def crash(self) -> None:
        self.session, self.seq = self.session + 1, 0
        self.workers.clear()
        self.outbox.clear()


def ident(number: int) -> str:
    return "i" + "".join("abcdefghij"[int(digit)] for digit in f"{number:025d}")


def restart_scheduler(make, world, dice) -> None:
    """A new leader: nothing but the log is left of the old one, or a snapshot and the log since then."""
    replay, kept = Replay(), world.snapshot
    if kept is not None and dice.random() < 0.7:
        found = snapshot.decode(*kept)
        replay = Replay(found.position, {job.id: (job, seq) for job, seq in found.jobs}, books=found.books)
    for fact in world.log:
        replay.feed(fact)
    live = {job_id: (book.lines(), book.counts(closed=False)) for job_id, book in world.state.books.items()}
    assert {job_id: (book.lines(), book.counts(closed=False)) for job_id, book in replay.books.items()} == live
    world.state = type(world.state)(world.limits, make.at(world.now))
    world.state.position = replay.position
    world.state.adopt(replay.books)
    world.deferred = ()
    world.turn(*replay.facts())


def misfortune(make, world, nodes, dice) -> None:
    node = dice.choice(nodes)
    match dice.randrange(5):
        case 0:
            node.silent_until = world.now + dice.choice([5, 45])
        case 1:
            node.crash()
        case 2 if not world.deferred:
            jobs = [(tracked.job, tracked.seq) for tracked in world.state.jobs.values()]
            items = {job_id: book.lines() for job_id, book in world.state.books.items()}
            world.snapshot = snapshot.encode(world.seq, jobs, None, items)
        case 3 | 4:
            restart_scheduler(make, world, dice)


def second(make, world, nodes) -> None:
    world.now += 1
    for node in nodes:
        node.work(make, world.now)
        if world.now <= node.silent_until:
            continue
        facts = [
            world.about_items(job_id, ItemsSaid(node.id, data))
            if isinstance(data, AttemptItems)
            else world.report(node.id, job_id, data)
            for job_id, data in node.outbox
        ]
        facts += [
            world.about_items(fact.job_id, fact.event)
            for fact in facts
            if isinstance(fact.event, ItemsSaid) and node.dice.random() < 0.3  # at least once
        ]
        node.outbox.clear()
        world.turn(*facts, beats=(node.beat(make),))
        node.obey(make, desired_state(world.state, node.id, 1, make.at(world.now)))
    world.turn(tick=True)


def items_of(world, job_id: str) -> dict[str, list]:
    """Return every version of every item, in the order of the log."""
    found: dict[str, list] = {}
    for entry in world.log:
        if isinstance(entry, Recorded) and entry.job.id == job_id:
            for item in entry.items:
                found.setdefault(item.id, []).append(item)
    return found


@pytest.mark.parametrize("seed", range(16))
def test_every_item_ends_once_and_every_map_job_comes_to_an_end(make, seed) -> None:
    dice = random.Random(seed)
    world = make.World()
    world.snapshot = None
    nodes = [Node(f"n{number}", random.Random(f"{seed}-{number}")) for number in range(3)]
    closed, asked = dict.fromkeys(["jm0", "jm1"], False), dict.fromkeys(["jm0", "jm1"], 0)
    for job_id in closed:
        fields = {"parallelism": dice.randrange(1, 5), "open": True, "item_attempts": dice.randrange(1, 4)}
        world.turn(world.create(make.job(job_id, kind="map", map=fields, command="true")))
    for moment in range(400):
        if moment < 60:
            for job_id in closed:
                _ask(make, world, job_id, asked, dice)
        elif moment == 60:
            for job_id in closed:
                world.turn(world.about_items(job_id, ItemsAdded(close=True, by="u1", at=make.at(world.now).at)))
        if dice.random() < (0.15 if moment < 120 else 0):
            misfortune(make, world, nodes, dice)
        second(make, world, nodes)
        if moment > 60 and not world.state.jobs:
            break
    assert world.state.jobs == {}, "something waits for ever"
    for job_id in closed:
        _check_history(world, job_id, asked[job_id])


def _ask(make, world, job_id: str, asked: dict[str, int], dice: random.Random) -> None:
    when = make.at(world.now).at
    if dice.random() < 0.3:
        first = max(0, asked[job_id] - dice.randrange(3))  # some of them once more
        asked[job_id] = last = asked[job_id] + dice.randrange(1, 15)
        items = tuple(ItemSpec(id=ident(number), name=f"{number}") for number in range(first, last))
        world.turn(world.about_items(job_id, ItemsAdded(items=items, by="u1", at=when)))
    elif dice.random() < 0.05:
        world.turn(world.about_items(job_id, ItemsRetried(by="u1", at=when)))


def _check_history(world, job_id: str, asked: int) -> None:
    job, histories = world.job(job_id), items_of(world, job_id)
    limit = job.spec.map.item_attempts
    if job.error is not None and job.error.reason is not EndReason.ITEMS_FAILED:
        assert job.tries >= 3 or job.losses > 5  # workers that fail in a row
        return
    assert len(histories) == asked == job.items.total == job.items.ended
    ends = [history[-1].state for history in histories.values()]
    assert (ends.count(ItemState.SUCCEEDED), ends.count(ItemState.FAILED)) == (job.items.succeeded, job.items.failed)
    assert job.state is (JobState.FAILED if job.items.failed else JobState.SUCCEEDED)
    states = [entry.job.state for entry in world.log if isinstance(entry, Recorded) and entry.job.id == job_id]
    for before, after in pairwise(states):
        assert after in {before}.union(*PARENT_MOVES[before].values())
    for history in histories.values():
        states = [item.state for item in history]
        assert ItemState.SUCCEEDED not in states[:-1], "an item ended twice"
        assert all(item.tries % limit == 0 for item in history if item.state is ItemState.FAILED)
        tries = [item.tries for item in history]
        assert tries == sorted(tries)
        assert tries[-1] - tries[0] <= len(tries) - 1


def test_the_simulation_does_lose_workers_and_repeat_reports(make) -> None:
    dice = random.Random(3)
    world = make.World()
    world.snapshot = None
    nodes = [Node(f"n{number}", random.Random(f"{number}")) for number in range(3)]
    fields = {"parallelism": 4, "open": True, "item_attempts": 2}
    world.turn(world.create(make.job("jm0", kind="map", map=fields)))
    for _ in range(150):
        _ask(make, world, "jm0", asked := {"jm0": len(items_of(world, "jm0"))}, dice)
        assert asked
        if dice.random() < 0.15:
            misfortune(make, world, nodes, dice)
        second(make, world, nodes)
    workers = [entry.job for entry in world.log if isinstance(entry, Recorded) and entry.job.member_of]
    ends = {(job.state, job.error.reason if job.error else None) for job in workers if job.is_terminal}
    assert (JobState.FAILED, EndReason.EXIT_CODE) in ends
    assert {reason for _, reason in ends} & {EndReason.NODE_LOST, EndReason.AGENT_LOST_CONTAINER}
    said = [entry for entry in world.log if isinstance(entry, Input) and isinstance(entry.event, ItemsSaid)]
    assert len({(entry.job_id, entry.event.data.at) for entry in said}) < len(said)
