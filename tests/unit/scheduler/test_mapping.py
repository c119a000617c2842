"""Map jobs: their items, their workers, and how they end."""

from datetime import UTC, datetime, timedelta

import pytest

from services.scheduler.core import snapshot
from services.scheduler.core.desired import desired_state
from services.scheduler.core.explain import explain
from services.scheduler.core.limits import Limits
from services.scheduler.core.mapping import ItemsSaid
from services.scheduler.core.replay import Replay
from shared.events import AttemptItems, ItemEnd, ItemsAdded, ItemsRetried
from shared.job import BlobRef, Failure, Item, ItemCounts, ItemFile
from shared.spec import ITEMS_MAX, ItemSpec
from shared.states import AttemptState, EndReason, ItemState, JobState, PendingCode

FAILED = Failure(reason=EndReason.ITEM_FAILED, message="no picture")


class MapWorld:
    """A world with one map job, and nodes that do what they are told: all at once, or as a test says."""

    def __init__(self, make, limits: Limits | None = None, nodes: int = 2, **spec) -> None:
        self.make = make
        self.world = make.World(limits)
        self.nodes = [f"n{number}" for number in range(nodes)]
        self.held: dict[str, list[tuple[str, int]]] = {node: [] for node in self.nodes}
        self.seq = 0
        self.world.turn(beats=tuple(self.beat(node) for node in self.nodes))
        fields = {"parallelism": 2} | spec.pop("map", {})
        self.world.turn(self.world.create(make.job("jm", kind="map", map=fields, **spec)))

    @property
    def job(self):
        return self.world.job("jm")

    @property
    def book(self):
        return self.world.state.books["jm"]

    def add(self, *names: str, close: bool = False, **more) -> None:
        items = tuple(item_spec(name, **more) for name in names)
        added = ItemsAdded(items=items, close=close, by="u1", at=self.make.at(self.world.now).at)
        self.world.turn(self.world.about_items("jm", added))
        self.world.settle()

    def retry(self, *names: str) -> None:
        wish = ItemsRetried(items=tuple(ident(name) for name in names), by="u1", at=self.make.at(self.world.now).at)
        self.world.turn(self.world.about_items("jm", wish))
        self.world.settle()

    def workers(self) -> list[str]:
        return [member.job_id for member in self.job.members]

    def node_of(self, worker: str) -> str:
        return self.world.job(worker).attempts[-1].node

    def start(self) -> list[str]:
        """Let every worker that is placed run, and return the workers."""
        self.world.settle()
        for worker in self.workers():
            job = self.world.job(worker)
            if job.state is JobState.PLACED:
                self.held[self.node_of(worker)].append((worker, job.attempt))
                self.world.turn(self.world.report(self.node_of(worker), worker, self.make.running(s=self.world.now)))
        self.world.settle()
        return self.workers()

    def given(self, worker: str) -> list[str]:
        """Return what a heartbeat's answer gives to a worker."""
        found = self.assignment(worker)
        return [one.spec.name for one in found.items or ()] if found else []

    def assignment(self, worker: str, node: str | None = None):
        node = node or self.node_of(worker)
        self.world.turn(beats=(self.beat(node),))
        answer = desired_state(self.world.state, node, 1, self.make.at(self.world.now))
        return next((one for one in answer.assignments if one.job_id == worker), None)

    def say(self, worker: str, *names: str, error: Failure | None = None, node: str | None = None, **more) -> None:
        moment = self.make.at(self.world.now).at
        attempt = more.pop("attempt", 1)
        ends = tuple(
            ItemEnd(
                id=ident(name),
                error=error,
                started_at=more.get("started_at", moment - timedelta(seconds=1)),
                at=moment,
                tries=more.get("tries"),
            )
            for name in names
        )
        data = AttemptItems(attempt=attempt, ends=ends, at=moment)
        self.world.turn(self.world.about_items(worker, ItemsSaid(node or self.node_of(worker), data)))
        self.world.settle()

    def end(self, worker: str, state=AttemptState.FAILED, reason=EndReason.EXIT_CODE) -> None:
        node = self.node_of(worker)
        report = self.make.finished(state=state, reason=None if state is AttemptState.SUCCEEDED else reason)
        report = report.model_copy(update={"at": self.make.at(self.world.now + 1).at})
        self.world.now += 1
        self.held[node] = [key for key in self.held[node] if key[0] != worker]
        self.world.turn(self.world.report(node, worker, report))
        self.world.settle()

    def beat(self, node: str):
        self.seq += 1
        return self.make.beat(node, seq=self.seq, held=tuple(self.held[node]))

    def items(self) -> dict[str, Item]:
        """Return the items as the log tells of them."""
        found: dict[str, Item] = {}
        for entry in self.world.log:
            found |= {item.spec.name: item for item in getattr(entry, "items", ())}
        return found

    def take_over(self) -> None:
        """Let a new scheduler lead, which knows nothing but what the log says."""
        replay = Replay()
        for fact in self.world.log:
            replay.feed(fact)
        self.world.state = type(self.world.state)(self.world.limits, self.make.at(self.world.now))
        self.world.state.position = replay.position
        self.world.state.adopt(replay.books)
        self.world.deferred = ()
        self.world.turn(*replay.facts())
        self.world.settle()

    def tick(self, seconds: float = 1.0) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.now = min(end, self.world.now + 2)
            self.world.turn(tick=True, beats=tuple(self.beat(node) for node in self.nodes))
        self.world.settle()


def ident(name: str) -> str:
    return "i" + (name.replace(".", "").translate(str.maketrans("0123456789", "abcdefghij")) + "7" * 25)[:25]


def item_spec(name: str, **more) -> ItemSpec:
    return ItemSpec(id=ident(name), name=name, **more)


@pytest.fixture
def maps(make):
    return lambda **more: MapWorld(make, **more)


def counts(world: MapWorld) -> tuple[int, int, int]:
    told = world.job.items or ItemCounts()
    return told.total, told.succeeded, told.failed


def test_a_map_job_runs_its_items_on_workers_and_ends(maps) -> None:
    world = maps()
    assert (world.job.state, world.job.members) == (JobState.QUEUED, ())
    world.add("a", "b", "c", close=True)
    first, second = world.start()
    assert {world.node_of(first), world.node_of(second)} == {"n0", "n1"}, "they are not spread"
    assert world.job.state is JobState.RUNNING
    assert sorted(world.given(first) + world.given(second)) == ["a", "b", "c"]
    world.world.now += 5
    for worker in (first, second):
        world.say(worker, *world.given(worker))
    assert world.job.state is JobState.SUCCEEDED
    assert counts(world) == (3, 3, 0)
    assert [(item.index, item.tries, item.state) for item in world.items().values()] == [
        (number, 1, ItemState.SUCCEEDED) for number in range(3)
    ]
    assert all(item.ended_at - item.started_at == timedelta(seconds=1) for item in world.items().values())


def test_what_a_worker_is_told(maps) -> None:
    world = maps(map={"items": ["a"], "warm": True, "item_timeout": 7}, needs=(), name="many", notify=())
    world.add("a")
    [worker] = world.workers()
    order = world.assignment(worker).order
    assert (order.parent, order.spec.kind, order.spec.map) == ("jm", "run", None)
    assert (order.map.warm, order.map.item_timeout, order.map.items) == (True, 7, ())
    assert order.spec.timeouts.run > 365 * 86400
    assert order.spec.placement.policy == "spread"


def test_a_worker_ends_in_peace_after_its_job(maps) -> None:
    world = maps()
    world.add("a", close=True)
    [worker] = world.start()
    world.say(worker, "a")
    assert world.job.state is JobState.SUCCEEDED
    told = world.assignment(worker)
    assert (told.action, told.items, told.close) == ("keep", (), True)
    world.end(worker, AttemptState.SUCCEEDED)
    assert world.world.job(worker).state is JobState.SUCCEEDED
    assert world.world.state.jobs == {}


def test_a_worker_that_does_not_end_after_its_job_is_stopped(maps) -> None:
    world = maps()
    world.add("a", close=True)
    [worker] = world.start()
    world.say(worker, "a")
    world.tick(world.world.limits.worker_close_s + 5)
    assert world.assignment(worker).action == "stop"


def test_a_worker_that_never_began_is_stopped_when_there_is_nothing_left(maps) -> None:
    world = maps(nodes=1, resources={"cpus": 4})
    world.add("a", "b", close=True)
    waits, runs = sorted(world.start(), key=lambda worker: world.world.job(worker).state)
    assert (world.world.job(waits).state, world.world.job(runs).state) == (JobState.QUEUED, JobState.RUNNING)
    world.say(runs, "a", "b")
    assert world.world.job(waits).state is JobState.CANCELLED


def test_an_open_job_without_items_says_so_and_keeps_no_worker_for_long(maps) -> None:
    world = maps(map={"open": True})
    world.tick(6)
    assert [reason.code for reason in world.job.pending] == [PendingCode.NO_ITEMS]
    world.add("a")
    [worker] = world.start()
    world.say(worker, "a")
    assert world.assignment(worker).close is False
    world.tick(world.world.limits.worker_idle_s + 3)
    assert world.assignment(worker).close is True
    world.end(worker, AttemptState.SUCCEEDED)
    assert (world.job.state, world.job.tries, world.job.members) == (JobState.QUEUED, 0, ())
    world.add("b")
    [worker] = world.start()
    world.say(worker, "b")
    world.add(close=True)
    assert world.job.state is JobState.SUCCEEDED


def test_a_worker_without_items_makes_room_for_others_that_wait_for_it(maps) -> None:
    world = maps(nodes=1, map={"open": True}, resources={"cpus": 4})
    world.add("a")
    [worker] = world.start()
    world.say(worker, "a")
    world.tick(world.world.limits.worker_idle_crowded_s + 1)
    assert world.assignment(worker).close is False
    world.world.turn(world.world.create(world.make.job("other", resources={"cpus": 4})))
    world.world.settle()
    assert world.world.job("other").state is JobState.QUEUED
    world.tick(1)
    assert world.assignment(worker).close is True
    world.end(worker, AttemptState.SUCCEEDED)
    assert world.world.job("other").state is JobState.PLACED


def test_a_worker_that_was_told_to_end_is_given_nothing_more(maps) -> None:
    world = maps(map={"open": True})
    world.add("a")
    [worker] = world.start()
    world.say(worker, "a")
    world.tick(world.world.limits.worker_idle_s + 3)
    world.add("b")
    assert world.given(worker) == []
    other = next(one for one in world.start() if one != worker)
    assert world.given(other) == ["b"]


def test_a_job_that_is_closed_empty_has_succeeded(maps) -> None:
    world = maps()
    world.add(close=True)
    assert (world.job.state, counts(world)) == (JobState.SUCCEEDED, (0, 0, 0))


def test_an_item_that_was_added_twice_is_one(maps) -> None:
    world = maps()
    world.add("a", "b")
    world.add("b", "a", "c")
    assert counts(world) == (3, 0, 0)
    assert [item.index for item in world.items().values()] == [0, 1, 2]


def test_what_is_given_is_its_own_result(maps) -> None:
    world = maps()
    world.add("a.png", close=True, artifact="a" + "b" * 25, sha256="0" * 64, size=7, given=True)
    [item] = world.items().values()
    assert item.files == (ItemFile(path="a.png", blob=BlobRef(sha256="0" * 64, size=7)),)
    assert (item.state, item.tries, world.job.state) == (ItemState.SUCCEEDED, 0, JobState.SUCCEEDED)


def test_nothing_is_added_to_a_closed_job_and_it_says_so(maps) -> None:
    world = maps()
    world.add("a", close=True)
    world.add("b")
    assert counts(world) == (1, 0, 0)
    assert world.job.remarks[-1] == "1 item was not taken: the job was closed before"


def test_more_items_than_a_job_may_have_and_items_that_are_too_large_are_refused(maps, monkeypatch) -> None:
    assert ITEMS_MAX == 100_000
    monkeypatch.setattr("services.scheduler.core.mapping.ITEMS_MAX", 2)
    world = maps()
    world.add("a", "b", "c", "d")
    assert counts(world) == (2, 0, 0)
    assert world.job.remarks[-1] == "2 items were not taken: a map job has at most 2 items"
    world = maps()
    world.add("large", params={"text": "x" * 70_000})
    assert counts(world) == (0, 0, 0)
    assert "large has more than 65536 bytes" in world.job.remarks[-1]


def test_all_items_of_a_job_together_have_a_limit(maps) -> None:
    room = item_spec("a", params={"x": "y" * 500}).bytes + item_spec("c").bytes
    world = maps(limits=Limits(items_bytes_max=room))
    world.add("a", params={"x": "y" * 500})
    world.add("b", params={"x": "y" * 500})
    assert (counts(world), world.job.items.bytes) == ((1, 0, 0), room - item_spec("c").bytes)
    assert world.job.remarks[-1].startswith(f"1 item was not taken: all items of a job together have at most {room} ")
    [worker] = world.start()
    world.say(worker, "a")
    world.add("c", close=True)  # what is done still counts, for the log has it
    assert (counts(world), world.job.items.bytes) == ((2, 1, 0), room)
    world.add("d")
    assert counts(world) == (2, 1, 0)


def test_an_item_that_fails_is_tried_again_as_often_as_it_may_be(maps) -> None:
    world = maps(map={"item_attempts": 2, "parallelism": 1})
    world.add("a", "b", close=True)
    [worker] = world.start()
    world.say(worker, "a", error=FAILED)
    assert (world.items()["a"].state, world.items()["a"].tries) == (ItemState.WAITING, 1)
    assert world.items()["a"].error == FAILED
    world.say(worker, "b")
    assert [(one.spec.name, one.tries) for one in world.assignment(worker).items] == [("a", 1)]
    world.world.now += 5
    world.say(worker, "a", error=FAILED)
    assert (world.job.state, world.job.error.reason) == (JobState.FAILED, EndReason.ITEMS_FAILED)
    assert world.job.error.message == "1 of 2 items failed: a (no picture)"
    assert world.items()["a"].tries == 2


def test_the_same_end_twice_is_one_try(maps) -> None:
    world = maps(map={"item_attempts": 3})
    world.add("a", "b")
    worker = world.start()[0]
    began = world.make.at(-3).at
    world.say(worker, "a", error=FAILED, started_at=began)
    world.say(worker, "a", error=FAILED, started_at=began)
    assert world.items()["a"].tries == 1


def test_a_late_word_about_a_try_that_is_counted_is_no_other_try(maps) -> None:
    world = maps(map={"item_attempts": 5})
    world.add("a", "b")
    first, second = world.start()
    world.say(first, "a", error=FAILED, tries=0)
    world.world.now += 5
    world.say(first, "a", error=FAILED, tries=0)
    world.say(second, "a", error=FAILED, tries=0)
    assert world.items()["a"].tries == 1
    world.say(second, "a", error=FAILED, tries=1)
    assert world.items()["a"].tries == 2


def test_a_result_counts_whichever_try_it_is_of(maps) -> None:
    world = maps(map={"item_attempts": 5})
    world.add("a", "b")
    first, second = world.start()
    world.say(first, "a", error=FAILED, tries=0)
    world.say(second, "a", tries=0)
    assert (world.items()["a"].state, world.items()["a"].worker) == (ItemState.SUCCEEDED, second)


@pytest.mark.parametrize("years", [1, 9999])
def test_a_node_whose_clock_is_wrong_ends_items_within_what_is_true(maps, years) -> None:
    world = maps()
    world.add("a", "b", "c")
    worker = world.start()[0]
    world.world.now += 7
    when = datetime(years, 6, 1, tzinfo=UTC)
    ends = tuple(
        ItemEnd(id=ident(name), started_at=datetime(began, 1, 1, tzinfo=UTC), at=when)
        for name, began in (("a", 1), ("b", 9999), ("c", years))
    )
    world.world.turn(
        world.world.about_items(worker, ItemsSaid(world.node_of(worker), AttemptItems(attempt=1, ends=ends, at=when)))
    )
    assert counts(world) == (3, 3, 0)
    for item in world.items().values():
        assert world.make.at(0).at <= item.started_at <= item.ended_at <= world.make.at(7).at


def test_the_first_end_counts(maps) -> None:
    world = maps()
    world.add("a", "b", "c", "d")
    first, second = world.start()
    world.say(first, "a")
    world.say(second, "a", error=FAILED)
    assert (world.items()["a"].state, world.items()["a"].worker) == (ItemState.SUCCEEDED, first)
    world.say(second, "b", error=FAILED)
    world.say(first, "b")
    assert world.items()["b"].state is ItemState.FAILED


def test_only_the_current_attempt_on_its_node_has_a_say(maps) -> None:
    world = maps()
    world.add("a", "b")
    worker = world.start()[0]
    other = next(node for node in world.nodes if node != world.node_of(worker))
    world.say(worker, "a", node=other)
    world.say(worker, "a", attempt=2)
    world.say("jm", "a", node=other)
    assert counts(world) == (2, 0, 0)


def test_failed_items_of_a_job_that_goes_on_are_tried_again(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", "b", "c")
    [worker] = world.start()
    world.say(worker, "a", "b", error=FAILED)
    assert counts(world) == (3, 0, 2)
    world.retry("b", "c", "unknown")
    assert counts(world) == (3, 0, 1)
    assert (world.items()["b"].state, world.items()["b"].error, world.items()["b"].tries) == (
        ItemState.WAITING, None, 1,
    )  # fmt: skip
    world.retry()
    assert counts(world) == (3, 0, 0)
    world.say(worker, "a", "b", "c")
    world.add(close=True)
    assert (world.job.state, counts(world)) == (JobState.SUCCEEDED, (3, 3, 0))


def test_a_job_that_has_ended_takes_nothing_more(maps) -> None:
    world = maps()
    world.add("a", close=True)
    [worker] = world.start()
    world.say(worker, "a", error=FAILED)
    assert world.job.state is JobState.FAILED
    events = len(world.world.events)
    world.retry()
    world.add("b")
    assert len(world.world.events) == events


def test_an_item_on_which_a_worker_dies_has_failed_a_try_and_the_others_go_on(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("poison", "b", "c", close=True)
    [worker] = world.start()
    world.end(worker)
    assert (world.items()["poison"].state, world.items()["poison"].worker) == (ItemState.FAILED, worker)
    assert "its worker ended on it" in world.items()["poison"].error.message
    assert "b" in world.items() and world.items()["b"].tries == 0
    world.tick(5)
    [other] = world.start()
    assert other != worker
    assert world.given(other) == ["b", "c"]
    world.say(other, "b", "c")
    assert (world.job.state, counts(world)) == (JobState.FAILED, (3, 2, 1))


def test_what_an_ending_worker_has_is_given_to_others_once_it_has_ended(maps) -> None:
    world = maps(map={"parallelism": 2})
    world.add(*(f"k{number}" for number in range(12)), close=True)
    first, second = world.start()
    had = world.given(first)
    report = world.make.finishing(s=world.world.now)
    world.world.turn(world.world.report(world.node_of(first), first, report))
    world.world.settle()
    world.say(first, had[0])
    assert counts(world) == (12, 1, 0)
    assert not set(world.given(second)) & set(had)
    world.say(second, *world.given(second))
    assert world.given(first)[0] == had[1]
    world.end(first)
    assert world.items()[had[1]].state is ItemState.FAILED, "it may have ended on it"


def test_an_item_that_took_too_long_is_charged_once_and_the_worker_is_replaced(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("slow", "b", close=True)
    [worker] = world.start()
    world.say(worker, "slow", error=Failure(reason=EndReason.ITEM_TIMEOUT, message="it took longer than 1 s"))
    world.end(worker, reason=EndReason.ITEM_TIMEOUT)
    assert world.items()["b"].tries == 0
    assert (world.job.tries, world.job.not_before) == (0, None)
    [other] = world.start()
    world.say(other, "b")
    assert (world.job.state, counts(world)) == (JobState.FAILED, (2, 1, 1))


def test_workers_that_fail_again_and_again_without_an_item_end_the_job(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", "b", "c", "d")
    for _ in range(3):
        [worker] = world.start() or (world.tick(10), *world.start())[1:]
        world.end(worker, reason=EndReason.IMAGE_NOT_FOUND)
    assert (world.job.state, world.job.error.reason) == (JobState.FAILED, EndReason.IMAGE_NOT_FOUND)
    assert world.world.state.jobs == {}


def test_a_node_on_which_a_worker_failed_is_used_only_if_no_other_will_do(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", "b", "c")
    [first] = world.start()
    world.end(first, reason=EndReason.IMAGE_NOT_FOUND)
    world.tick(5)
    [second] = world.start()
    assert world.node_of(second) != world.node_of(first)
    world.say(second, "b")
    assert world.book.shunned == {world.node_of(first)}


def test_an_item_that_ends_forgives_the_workers_before(maps) -> None:
    world = maps(map={"parallelism": 1, "open": True, "item_attempts": 9})
    world.add("a", "b", "c", "d")
    for name in ("a", "b", "c"):
        [worker] = world.start() or (world.tick(10), *world.start())[1:]
        world.end(worker)
        assert world.job.tries == 1
        world.tick(10)
        [worker] = world.start()
        world.say(worker, name)
        assert world.job.tries == 0
        world.end(worker)
        assert (world.job.tries, world.job.not_before) == (0, None), "it has ended an item"
    assert world.job.state is not JobState.FAILED


def test_workers_that_end_without_a_word_about_any_item_end_the_job(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", close=True)
    for _ in range(3):
        [worker] = world.start() or (world.tick(10), *world.start())[1:]
        world.end(worker, AttemptState.SUCCEEDED)
    assert (world.job.state, world.job.error.message) == (
        JobState.FAILED, "its program ended without a word about any item",
    )  # fmt: skip


def test_what_a_lost_node_had_is_done_elsewhere_and_counts_for_nobody(maps) -> None:
    world = maps(map={"parallelism": 2})
    world.add("a", "b", "c", "d", close=True)
    first, second = world.start()
    lost = world.node_of(first)
    world.nodes.remove(lost)
    world.tick(40)
    assert world.world.job(first).state is JobState.FAILED
    assert world.world.job(first).error.reason is EndReason.NODE_LOST
    workers = world.start()
    assert first not in workers
    assert sorted(name for worker in workers for name in world.given(worker)) == ["a", "b", "c", "d"]
    assert all(item.tries == 0 for item in world.items().values())
    world.say(second, *world.given(second))
    for worker in workers:
        world.say(worker, *world.given(worker))
    assert (world.job.state, world.job.tries) == (JobState.SUCCEEDED, 0)


def test_a_worker_on_a_node_that_is_drained_does_what_it_has_and_another_takes_over(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add(*(f"k{number}" for number in range(9)), close=True)
    [worker] = world.start()
    had = world.given(worker)
    world.world.wish("drain", world.node_of(worker))
    world.tick(4)
    told = world.assignment(worker)
    assert (told.action, told.close, [item.spec.name for item in told.items]) == ("keep", True, had)
    other = next(one for one in world.start() if one != worker)
    assert world.node_of(other) != world.node_of(worker)
    world.tick(world.world.limits.worker_close_s + 5)
    assert world.assignment(worker).action == "keep", "what it does may take long"
    world.say(worker, *had)
    assert world.given(worker) == []
    world.end(worker, AttemptState.SUCCEEDED)
    while world.job.state is JobState.RUNNING:
        world.say(other, *world.given(other))
    assert (world.job.state, counts(world)) == (JobState.SUCCEEDED, (9, 9, 0))


def test_a_drain_moves_the_workers_and_charges_nobody(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", "b")
    [worker] = world.start()
    node = world.node_of(worker)
    world.world.wish("drain", node, deadline_s=1.0)
    world.tick(4)
    assert world.assignment(worker).action == "stop"
    world.end(worker, AttemptState.CANCELLED, EndReason.NODE_DRAINED)
    [other] = world.start()
    assert world.node_of(other) != node
    assert sorted(world.given(other)) == ["a", "b"]
    assert (world.job.tries, world.job.losses) == (0, 0)


def test_cancelling_stops_the_workers_and_leaves_what_waits(maps) -> None:
    world = maps()
    world.add("a", "b", "c", "d")
    first, second = world.start()
    world.say(first, "a")
    world.world.turn(world.world.cancel("jm"))
    world.world.settle()
    assert world.job.state is JobState.RUNNING
    assert {world.assignment(one).action for one in (first, second)} == {"stop"}
    for worker in (first, second):
        world.end(worker, AttemptState.CANCELLED)
    assert (world.job.state, counts(world)) == (JobState.CANCELLED, (4, 1, 0))
    assert world.items()["b"].state is ItemState.WAITING


def test_a_job_without_workers_is_cancelled_at_once(maps) -> None:
    world = maps(map={"open": True})
    world.world.turn(world.world.cancel("jm"))
    assert world.job.state is JobState.CANCELLED


def test_a_job_that_takes_too_long_in_all_times_out(maps) -> None:
    world = maps(timeouts={"total": 20})
    world.add("a")
    [worker] = world.start()
    world.tick(25)
    assert world.assignment(worker).action == "stop"
    world.end(worker, AttemptState.CANCELLED)
    assert (world.job.state, world.job.error.reason) == (JobState.TIMED_OUT, EndReason.TOTAL_TIMEOUT)


def test_an_empty_job_that_takes_too_long_in_all_times_out(maps) -> None:
    world = maps(map={"open": True}, timeouts={"total": 20})
    world.tick(25)
    assert world.job.state is JobState.TIMED_OUT


def test_a_job_waits_as_its_workers_do(maps) -> None:
    world = maps(resources={"cpus": 64})
    world.add("a")
    world.tick(10)
    assert world.job.state is JobState.QUEUED
    assert [reason.code for reason in world.job.pending] == [PendingCode.CPUS]
    found = explain(world.world.state, world.world.state.jobs["jm"], world.make.at(world.world.now))
    assert "cpus" in found.text
    assert found.text.startswith("Of its 1 item 0 have ended. Of its 1 worker none runs.")


def test_items_may_come_before_what_the_job_needs_has_ended(maps) -> None:
    world = maps(map={"open": True}, needs=("j" + "n" * 25,))
    world.add("a")
    assert (world.job.items.total, world.job.members) == (1, ())


def test_more_items_than_one_event_carries_come_with_several(maps) -> None:
    world = maps(limits=Limits(items_event_bytes_max=0), map={"open": True, "parallelism": 1})
    text = "x" * 30_000
    added = ItemsAdded(
        items=tuple(item_spec(f"k{number}", params={"text": text}) for number in range(20)),
        close=True, by="u1", at=world.make.at(0).at,
    )  # fmt: skip
    world.world.turn(world.world.about_items("jm", added))
    assert 0 < world.job.items.total < 20
    assert not world.job.items.closed
    halfway = Replay()
    for fact in world.world.log:
        halfway.feed(fact)
    assert halfway.inputs["jm"][0].event == added, "a scheduler that takes over here would not take in the rest"
    world.world.settle()
    assert (world.job.items.total, world.job.items.closed) == (20, True)
    assert [item.index for item in world.items().values()] == list(range(20))
    sizes = [len(item.to_bytes()) for item in world.items().values()]
    events = [sum(len(i.to_bytes()) for i in entry.items) for entry in world.world.log if getattr(entry, "items", ())]
    assert max(events) <= 150_000 < sum(sizes)


def test_the_nodes_of_workers_with_room_are_woken_at_once(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add(*(f"k{number}" for number in range(40)))
    [worker] = world.start()
    given = world.given(worker)
    world.world.woken.clear()
    world.say(worker, *given)
    assert world.world.woken == [world.node_of(worker)]
    assert world.given(worker) != given


def test_workers_have_more_ahead_of_them_the_faster_they_are(maps) -> None:
    world = maps(map={"parallelism": 1}, limits=Limits(items_ahead_min=2, items_ahead_max=16, items_ahead_s=1.0))
    world.add(*(f"k{number}" for number in range(80)))
    [worker] = world.start()
    first = world.given(worker)
    assert len(first) == world.world.limits.items_ahead_first
    quick = world.make.at(world.world.now).at - timedelta(seconds=0.01)
    world.say(worker, *first, started_at=quick)
    assert len(world.given(worker)) == 16
    slow = world.make.at(world.world.now).at - timedelta(hours=1)
    world.say(worker, *world.given(worker), started_at=slow)
    assert len(world.given(worker)) == 2


def test_a_worker_is_started_for_work_that_is_worth_it(maps) -> None:
    world = maps(map={"parallelism": 4, "open": True}, nodes=4)
    world.add("a")
    [worker] = world.start()
    world.say(worker, "a", started_at=world.make.at(world.world.now).at - timedelta(seconds=0.1))
    world.add(*(f"k{number}" for number in range(9)))
    assert len(world.workers()) == 1
    world.add(*(f"l{number}" for number in range(20)))
    assert len(world.workers()) == 3


def test_an_answer_without_room_for_items_brings_no_news_of_them(maps) -> None:
    world = maps(limits=Limits(items_answer_bytes_max=10), map={"parallelism": 1})
    world.add("a")
    [worker] = world.start()
    told = world.assignment(worker)
    assert (told.action, told.items) == ("keep", None)


def test_what_a_scheduler_that_takes_over_knows_is_what_the_log_says(maps) -> None:
    world = maps(map={"item_attempts": 2})
    world.add(*(f"k{number}" for number in range(30)))
    first, second = world.start()
    world.say(first, *world.given(first))
    world.say(second, *world.given(second), error=FAILED)
    replay = Replay()
    for fact in world.world.log:
        replay.feed(fact)
    assert replay.books["jm"].lines() == world.book.lines()
    jobs = [(tracked.job, tracked.seq) for tracked in world.world.state.jobs.values()]
    head, parts = snapshot.encode(world.world.seq, jobs, None, {"jm": world.book.lines()})
    found = snapshot.decode(head, parts)
    assert found.books["jm"].lines() == world.book.lines()
    assert {job.id for job, _ in found.jobs} == {"jm", first, second}
    assert snapshot.read_head(head) == (world.world.seq, 2)
    assert b'"version": 2' in head, "the release before would try to read it"
    assert snapshot.decode(head, parts[:1]) is None


def test_a_snapshot_without_new_kinds_is_one_that_the_release_before_reads(make) -> None:
    head, _ = snapshot.encode(7, [(make.job(), 3)])
    assert b'"version": 1' in head


def test_a_job_that_wants_more_workers_than_there_is_room_for_has_few_that_wait_and_uses_all_room(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 1000})
    world.add(*(f"x{at}" for at in range(400)))
    for _ in range(3):
        world.start()
    states = [world.world.job(worker).state for worker in world.workers()]
    room = sum(state is JobState.RUNNING for state in states)
    assert room >= 4
    assert states.count(JobState.QUEUED) == world.world.limits.workers_queued_max
    assert len(states) == room + world.world.limits.workers_queued_max
    few = maps(nodes=20, limits=Limits(workers_queued_max=3), map={"parallelism": 30})
    few.add(*(f"x{at}" for at in range(60)))
    few.start()
    assert [few.world.job(worker).state for worker in few.workers()] == [JobState.RUNNING] * 30


def test_many_workers_that_fail_at_once_end_the_job_and_not_the_scheduler(maps) -> None:
    world = maps(nodes=20, map={"parallelism": 60})
    world.add(*(f"item{number}" for number in range(60)), close=True)
    workers = world.start()
    assert len(workers) == 60
    report = world.make.finished(state=AttemptState.FAILED, reason=EndReason.COMMAND_NOT_FOUND)
    world.world.turn(*(world.world.report(world.node_of(one), one, report) for one in workers))
    world.world.settle()
    assert (world.job.state, world.job.error.reason) == (JobState.FAILED, EndReason.COMMAND_NOT_FOUND)


def test_workers_that_a_scheduler_before_had_told_to_end_are_not_charged_for_it(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 4})
    world.add("a", "b", "c", "d", close=True)
    workers = world.start()
    slow, *quick = workers
    for one in quick:
        world.say(one, *world.given(one))
    world.tick(1)
    assert [world.assignment(one).close for one in quick] == [True, True, True]
    world.take_over()
    for one in quick:
        world.end(one, AttemptState.SUCCEEDED)
    assert (world.job.state, world.job.tries, world.book.shunned) == (JobState.RUNNING, 0, set())
    assert slow in world.workers()
    for name in "abcd":
        world.say(slow, name)
    assert world.job.state is JobState.SUCCEEDED


def test_nodes_that_are_lost_one_after_the_other_do_not_end_a_job_whose_other_workers_go_on(maps) -> None:
    world = maps(nodes=8, map={"parallelism": 8})
    world.add(*"abcdefgh", close=True)
    *doomed, last = world.start()
    for worker in doomed:
        world.end(worker, reason=EndReason.NODE_LOST)
    assert world.job.losses > Limits().losses_max
    assert world.job.state is JobState.RUNNING
    world.say(last, *world.given(last))
    assert world.job.losses == 0


def test_nodes_that_are_lost_again_and_again_under_the_only_worker_end_the_job(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 1})
    world.add("a", close=True)
    for _ in range(Limits().losses_max + 1):
        while not (workers := world.start()):
            world.tick(20)
        world.end(workers[0], reason=EndReason.NODE_LOST)
    assert (world.job.state, world.job.error.reason) == (JobState.FAILED, EndReason.NODE_LOST)


def test_workers_that_fail_on_a_bad_node_do_not_end_a_job_whose_other_workers_go_on(maps) -> None:
    world = maps(nodes=8, map={"parallelism": 8})
    world.add(*"abcdefgh", close=True)
    *failing, last = world.start()
    for worker in failing[:4]:
        world.end(worker, reason=EndReason.COMMAND_NOT_FOUND)
    assert world.job.state is JobState.RUNNING
    for worker in (*failing[4:], last):
        world.end(worker, reason=EndReason.COMMAND_NOT_FOUND)
    assert (world.job.state, world.job.error.reason) == (JobState.FAILED, EndReason.COMMAND_NOT_FOUND)


def test_an_item_with_which_node_after_node_is_lost_fails_though_others_succeed(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 1, "open": True})
    world.add("deadly")
    for number in range(Limits().losses_max + 1):
        while not (workers := world.start()):
            world.tick(20)
        assert world.given(workers[0])[:1] == ["deadly"]
        world.add(f"well{number}")
        world.say(workers[0], f"well{number}")
        world.end(workers[0], reason=EndReason.NODE_LOST)
    assert world.items()["deadly"].state is ItemState.FAILED
    assert counts(world) == (7, 6, 1)
    assert world.job.state is not JobState.FAILED


def test_what_a_worker_says_before_it_ends_counts_however_much_that_is(maps) -> None:
    world = maps(limits=Limits(items_event_bytes_max=0), nodes=1, map={"parallelism": 1, "open": True})
    for name in "abcdef":
        world.add(name, params={"text": "x" * 60_000})
    [worker] = world.start()
    moment = world.make.at(world.world.now + 1).at
    ends = tuple(ItemEnd(id=ident(name), error=FAILED, started_at=moment, at=moment) for name in "abcdef")
    said = ItemsSaid("n0", AttemptItems(attempt=1, ends=ends, at=moment))
    over = world.make.finished()
    effects = world.world.turn(world.world.about_items(worker, said), world.world.report("n0", worker, over))
    assert worker not in {one.job.id for one in effects.records}, "a crash between the two would lose what it said"
    world.world.settle()
    assert (counts(world), world.world.job(worker).state) == ((6, 0, 6), JobState.SUCCEEDED)


def test_what_workers_have_begun_stays_with_them_when_a_scheduler_takes_over(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 2})
    world.add("a", "b")
    workers = world.start()
    had = {one: world.given(one) for one in workers}
    assert sorted(had.values()) == [["a"], ["b"]]
    crossed = {workers[0]: had[workers[1]], workers[1]: had[workers[0]]}  # not as they would be shared out anew
    world.take_over()
    first, second = (world.node_of(one) for one in workers)
    assert first != second
    beats = {}
    for worker in workers:
        beat = world.beat(world.node_of(worker))
        said = tuple(
            held.model_copy(update={"items": tuple(map(ident, crossed[held.job_id]))}) for held in beat.attempts
        )
        beats[world.node_of(worker)] = beat.model_copy(update={"attempts": said})
    world.world.turn(beats=(beats[first],), tick=True)
    world.world.settle()
    assert world.book.hands() == (), "the other node has not been heard yet"
    world.world.turn(beats=(beats[second],), tick=True)
    world.world.settle()
    for worker in workers:
        assert list(world.book.hand(worker).items) == [ident(name) for name in crossed[worker]]


def test_a_node_that_a_scheduler_never_hears_holds_up_the_others_for_a_moment_only(maps) -> None:
    world = maps(nodes=2, map={"parallelism": 2})
    world.add("a", "b")
    first, second = world.start()
    world.take_over()
    for _ in range(8):
        world.world.now += 2
        world.world.turn(beats=(world.beat(world.node_of(first)),), tick=True)
    world.world.settle()
    assert len(world.book.hand(first).items) + len(world.book.hand(second).items) == 2


def test_a_standby_keeps_nothing_of_what_workers_say_after_the_end_of_their_job(maps) -> None:
    world = maps(map={"parallelism": 1})
    world.add("a", close=True)
    [worker] = world.start()
    world.say(worker, "a")
    assert (world.job.is_terminal, world.world.job(worker).state) == (True, JobState.RUNNING)
    world.say(worker, "a")
    replay = Replay()
    for fact in world.world.log:
        replay.feed(fact)
    assert replay.inputs == {}
