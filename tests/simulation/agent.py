"""An agent around the real core: a journal that survives it, an engine that survives both, tasks that do not."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core import machine as m
from services.node_agent.core.attempt import Held, Phase
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from services.node_agent.core.lease import Lease
from services.node_agent.core.machine import DROPPED_KEPT
from services.scheduler.core import lifecycle
from services.scheduler.core.limits import Now
from shared.fleet import Capacity, DesiredState, Heartbeat, NodeInfo, Order, Usage
from shared.job import BlobRef, Failure, OutputsRef
from shared.states import AttemptEventName, EndReason
from tests.simulation.log import Log

KILLED = 137
TERMINATED = 143


@dataclass(slots=True, eq=False)
class Container:
    """A container of the toy engine. It is started at most once; `ends_at` is for who has a clock."""

    key: Key
    exclusive: bool
    condition: str = "created"  # then "running", "ended"
    exit_code: int | None = None
    ends_at: float | None = None

    def end(self, exit_code: int) -> None:
        """Let the program end."""
        if self.condition == "running":
            self.condition, self.exit_code = "ended", exit_code


@dataclass(slots=True)
class Journal:
    """What a crash leaves: attempts, the epoch, and reports that were not acknowledged."""

    held: dict[Key, Held] = field(default_factory=dict)
    epoch: int = 0
    outbox: dict[str, e.Report] = field(default_factory=dict)
    lease: Lease | None = None
    dropped: dict[Key, None] = field(default_factory=dict)

    def write(self, effects: Iterable[e.Effect]) -> None:
        """Write one turn down: all of it or, if the agent dies before, nothing."""
        for effect in effects:
            match effect:
                case e.Save(held):
                    self.held[held.key] = held
                case e.Drop(key):
                    self.held.pop(key, None)
                    self.dropped |= {key: None} if DROPPED_KEPT else {}
                    for id_ in [id_ for id_, report in self.outbox.items() if report.key == key]:
                        del self.outbox[id_]
                case e.SaveEpoch(epoch):
                    self.epoch = epoch
                case e.NoteLease(lease):
                    self.lease = lease
                case e.Report():
                    self.outbox.setdefault(effect.id, effect)
                case _:
                    pass


@dataclass(frozen=True, slots=True)
class Tempo:
    """How long the parts of an attempt take, in seconds, and how its program ends."""

    pull_s: float = 0.0
    stage_s: float = 0.0
    collect_s: float = 0.0


#: What a task waits for: seconds, or a container's end.
Wait = float | Container
Task = Generator[Wait, None, None]
TaskId = tuple[Key, str]


@dataclass(slots=True, eq=False)
class Running:
    """A task and what it waits for."""

    steps: Task
    wait: Wait = 0.0


class Agent:
    """One node. What is durable: `journal` and `engine`. All else is lost by `crash`.

    Args:
        node: its id.
        capacity: what it offers.
        log: where its reports go.
        started: hears of every start of a container.
        ended: hears of every end of a program.
    """

    def __init__(
        self,
        node: str,
        capacity: Capacity,
        log: Log,
        started: Callable[[str, Container], None],
        ended: Callable[[str, Container], None],
    ) -> None:
        self.id = node
        self.capacity = capacity
        self.journal = Journal()
        self.engine: dict[Key, Container] = {}
        self.boot = 1
        self.sessions = 0
        self.on_task: Callable[[Agent, TaskId, Running], None] = lambda *_: None
        self.tempo: Callable[[Key], Tempo] = lambda _: Tempo()
        self.info = NodeInfo(id=node, name=node, runtimes=("process",))
        self._usage = Usage(memory_available=capacity.memory, disk_free=capacity.disk)
        self._log = log
        self._started = started
        self._ended = ended
        self.machine: m.Machine | None = None
        self.facts: list[f.Fact] = []
        self.tasks: dict[TaskId, Running] = {}
        self.unsent: dict[str, e.Report] = {}
        self.beats = 0
        self.asked: tuple[float, int] | None = None  # the heartbeat under way: when, and its number
        self.interval_s = 2.0

    # --- life ---

    @property
    def boot_id(self) -> str:
        """Return what names the machine's start."""
        return f"{self.id}-{self.boot}"

    @property
    def is_up(self) -> bool:
        """Return whether the agent runs."""
        return self.machine is not None

    def start(self, mono: float) -> None:
        """Start the agent on what its journal and its engine hold."""
        self.sessions += 1
        self.beats = 0
        journal = self.journal
        self._beat = Heartbeat.model_construct(
            node=self.info,
            session=f"{self.id}-{self.sessions}",
            boot_id=self.boot_id,
            capacity=self.capacity,
            usage=self._usage,
        )
        self.machine = m.Machine(
            dict(journal.held),
            journal.epoch,
            boot_id=self.boot_id,
            lease=journal.lease,
            dropped=dict(journal.dropped),
        )
        self.unsent = dict(self.journal.outbox)
        waiting = {report.key for report in self.unsent.values()}
        # As the agent does: a lease that ran out meanwhile counts before anything is started.
        self.facts = [f.Tick(mono), self._recovered()]
        for held in self.journal.held.values():
            if held.phase is Phase.FINISHED and not held.is_delivered and held.key not in waiting:
                self.facts.append(f.Delivered(held.key))

    def crash(self) -> None:
        """End it as kill -9 does."""
        self.machine, self.asked = None, None
        self.facts, self.unsent = [], {}
        for task in self.tasks.values():
            task.steps.close()
        self.tasks = {}

    def reboot(self) -> None:
        """Let the machine go down under it: programs die, what is on disk stays."""
        self.crash()
        self.boot += 1
        self.journal.lease = None  # its clock has begun anew
        for container in self.engine.values():
            self.end(container, KILLED)

    def wipe(self) -> None:
        """Lose the disk: no journal, no containers."""
        self.reboot()
        self.journal = Journal()
        self.engine = {}

    def end(self, container: Container, exit_code: int) -> None:
        """Let a program end."""
        if container.condition == "running":
            container.end(exit_code)
            self._ended(self.id, container)

    def _recovered(self) -> f.Recovered:
        found = {
            key: (one.key.job_id, "created" if one.condition == "created" else "started")
            for key, one in self.engine.items()
        }
        return f.Recovered("process", found)

    # --- turns ---

    def turn(self, now: Now, *, dies_after: int | None = None) -> bool:
        """Take in what is there: decide, write down, act. *dies_after* counts those parts, each act as one.

        Return whether there was anything to do.
        """
        assert self.machine is not None
        facts, self.facts = self.facts, []
        if facts and self.machine.must_watch_lease:
            facts.insert(0, f.Tick(now.mono))
        effects = [effect for fact in facts for effect in self.machine.handle(fact, now.at)]
        if dies_after == 0:
            self.crash()
            return True
        self.journal.write(effects)
        acts = [effect for effect in effects if not isinstance(effect, e.Save | e.SaveEpoch | e.NoteLease)]
        for effect in acts[: None if dies_after is None else dies_after - 1]:
            self._act(effect)
        if dies_after is not None:
            self.crash()
        return bool(facts)

    def _act(self, effect: e.Effect) -> None:
        match effect:
            case e.Report():
                self.unsent.setdefault(effect.id, effect)
            case e.Drop(key):
                self.unsent = {id_: report for id_, report in self.unsent.items() if report.key != key}
            case e.Prepare(order, again):
                self._spawn(Key(order.job_id, order.attempt), "run", self._prepare(order, again=again))
            case e.Start(held):
                self._cancel(held.key, "run")
                self._spawn(held.key, "run", self._start(held))
            case e.Follow(held):
                self._spawn(held.key, "run", self._follow(held.key))
            case e.Stop(held, grace_s):
                self._spawn(held.key, "stop", self._stop(held.key, grace_s))
            case e.Abort(key):
                self._cancel(key, "run")
            case e.Collect(held):
                self._cancel(held.key, "run")
                self._spawn(held.key, "run", self._collect(held))
            case e.Clear(held):
                self._spawn(held.key, "clear", self._clear(held.key))
            case _:
                pass

    # --- tasks: each `yield` is a place where it may be interrupted for good ---

    def step(self, task_id: TaskId) -> bool:
        """Carry a task one part further; return whether it could go on."""
        task = self.tasks.get(task_id)
        if task is None or (isinstance(task.wait, Container) and task.wait.condition == "running"):
            return False
        try:
            task.wait = next(task.steps)
        except StopIteration:
            if self.tasks.get(task_id) is task:
                del self.tasks[task_id]
        else:
            if self.tasks.get(task_id) is task:
                self.on_task(self, task_id, task)
        return True

    def _spawn(self, key: Key, sort: str, steps: Task) -> None:
        if (key, sort) in self.tasks:
            steps.close()
            return
        task = self.tasks[key, sort] = Running(steps)
        self.on_task(self, (key, sort), task)

    def _cancel(self, key: Key, sort: str) -> None:
        if (task := self.tasks.pop((key, sort), None)) is not None:
            task.steps.close()

    def _prepare(self, order: Order, *, again: bool) -> Task:
        key = Key(order.job_id, order.attempt)
        tempo = self.tempo(key)
        if again:
            self._remove(key)
            yield 0.0
        if tempo.pull_s:
            self.facts.append(f.ImageMissing(key))
            yield tempo.pull_s
        self.facts.append(f.ImageFound(key, None))
        yield tempo.stage_s
        assert key not in self.engine, f"{self.id} makes the container of {key} while it exists"
        self.engine[key] = Container(key, order.spec.exclusive)
        yield 0.0
        self.facts.append(f.Staged(key, key.job_id))

    def _start(self, held: Held) -> Task:
        container = self.engine.get(held.key)
        if container is not None:
            container.condition = "running"
            self._started(self.id, container)
            yield 0.0
        self.facts.append(f.Started(held.key))
        yield from self._follow(held.key)

    def _follow(self, key: Key) -> Task:
        container = self.engine.get(key)
        if container is not None:
            yield container
            outcome = Outcome(container.exit_code)
        else:
            failure = Failure(reason=EndReason.AGENT_LOST_CONTAINER, message="The program is gone.")
            outcome = Outcome(None, failure=failure)
        self.facts.append(f.Exited(key, outcome))

    def _stop(self, key: Key, grace_s: float) -> Task:
        yield 0.0
        if (container := self.engine.get(key)) is not None:
            yield min(grace_s, 1.0)
            self.end(container, TERMINATED)

    def _collect(self, held: Held) -> Task:
        yield self.tempo(held.key).collect_s
        self.facts.append(f.Collected(held.key, outputs_of(self.id, held.key)))

    def _clear(self, key: Key) -> Task:
        for sort in ("stop", "run"):
            self._cancel(key, sort)
        yield 0.0
        self._remove(key)
        yield 0.0
        self.facts.append(f.Cleared(key))

    def _remove(self, key: Key) -> None:
        if (container := self.engine.pop(key, None)) is not None:
            self.end(container, KILLED)

    def sweep(self) -> None:
        """Remove containers that the agent does not know."""
        assert self.machine is not None
        for key in self.engine.keys() - self.machine.held.keys():
            self._remove(key)

    # --- messages ---

    def send(self, *, acknowledged: bool = True) -> bool:
        """Send the next report of each attempt. One whose acknowledgement is lost is sent again."""
        firsts = {report.key: id_ for id_, report in reversed(self.unsent.items())}
        for key, id_ in firsts.items():
            report = self.unsent[id_]
            self._log.tell(key.job_id, lifecycle.Report(self.id, report.data), f"{self.id}-{id_}")
            if acknowledged:
                del self.unsent[id_]
                self.journal.outbox.pop(id_, None)
                if report.name is AttemptEventName.FINISHED:
                    self.facts.append(f.Delivered(key))
        return bool(firsts)

    def heartbeat(self, mono: float, at: datetime) -> Heartbeat:
        """Return the next heartbeat, whose answer is now the only one that counts."""
        assert self.machine is not None
        self.beats += 1
        self.asked = mono, self.beats
        update = {
            "seq": self.beats,
            "attempts": self.machine.attempts() if self.machine.held else (),
            "epoch": self.machine.epoch,
            "at": at,
        }
        return self._beat.model_copy(update=update)

    def take(self, beat: Heartbeat, answer: DesiredState) -> bool:
        """Take in an answer; one to another heartbeat than the last, or a second one, is for nobody."""
        if self.machine is None or self.asked is None or beat.session != f"{self.id}-{self.sessions}":
            return False
        asked_at, number = self.asked
        if number != beat.seq:
            return False
        self.asked = None
        self.interval_s = answer.interval_s
        self.facts.append(f.Desired(answer, asked_at))
        return True

    def tick(self, mono: float) -> None:
        """Let the machine look at its limits and its lease."""
        if self.machine is not None and self.machine.held:
            self.facts.append(f.Tick(mono))


def outputs_of(node: str, key: Key) -> OutputsRef:
    """Return what an attempt on a node leaves: told apart from what any other leaves."""
    return OutputsRef(manifest=BlobRef(sha256=f"{node}/{key.job_id}/{key.attempt}", size=1), files=1, bytes=1)
