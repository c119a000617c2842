"""A small world in which everything may go wrong: two schedulers, three nodes, one log, and messages in between.

The cores are the real ones; what is around them is the least that keeps JetStream's, the journal's and the engine's
promises and no others. Every method is a step that Hypothesis may choose; one that is not possible does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from services.scheduler.core.fleet.invariants import check
from services.scheduler.core.lifecycle import Cancel
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Beat
from services.scheduler.core.need import CPU_UNIT
from shared.fleet import Capacity, DesiredState, Heartbeat
from shared.job import Job, Owner
from shared.spec import GIB, JobSpec, Resources
from tests.simulation.agent import Agent, Container, TaskId
from tests.simulation.leader import Deposed, Leader, Snapshot
from tests.simulation.log import FleetLog, Log
from tests.simulation.oracle import Oracle, Violation

START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = ("n0", "n1", "n2")
LEADERS = 2
JOBS_MAX = 4
LEASE_S = 6.0
#: Heartbeats that each agent has sent before the history begins: it has been up for long.
BEATS_BEFORE = 10_000
#: Everything must have ended this long after the last fault.
HEAL_S = 120
LIMITS = Limits(
    losses_max=4,
    backoff_failure_s=1,
    backoff_failure_max_s=2,
    backoff_loss_s=1,
    backoff_loss_max_s=2,
    lease_s=LEASE_S,
    interval_s=1,
    fresh_s=3,
    stall_s=2.5,
    mass_loss_patience_s=20,
    retry_all_s=2,
    killer_within_s=0,
    accept_s=10,
    clock_slack_s=4,
    obey_s=8,
    finishing_s=20,
    finishing_grace_s=5,
    orphan_s=12,
    fence_kill_s=0.5,
    fence_unknown_s=LEASE_S,
    delivered_s=2,
    condition_hold_s=3,
    flap_window_s=6,
    steady_beats=2,
    trouble_window_s=20,
    share_half_life_s=60,
    reserve_outright_s=20,
)
_SPEC = JobSpec(runtime="process", command="true", resources=Resources(cpus=1, memory=GIB, disk=GIB), max_attempts=2)
_TWO = Resources(cpus=2, memory=GIB, disk=GIB)
SPECS: dict[str, JobSpec] = {
    "plain": _SPEC,
    "once": _SPEC.model_copy(update={"max_attempts": 1}),
    "exclusive": _SPEC.model_copy(update={"exclusive": True}),
    "large": _SPEC.model_copy(update={"resources": _TWO}),
}


@dataclass(slots=True)
class Slot:
    """A scheduler process: leads, or is down (None). Paused, it neither hears nor acts."""

    leader: Leader | None = None
    is_paused: bool = False


@dataclass(slots=True)
class Node:
    """An agent, and its link."""

    agent: Agent
    is_cut: bool = False
    is_paused: bool = False
    is_destroyed: bool = False

    @property
    def acts(self) -> bool:
        """Return whether the agent can do anything now."""
        return self.agent.is_up and not self.is_paused


@dataclass(slots=True)
class World:
    """Everything there is."""

    seconds: float = 0.0
    epochs: int = 0
    oracle: Oracle = field(default_factory=lambda: Oracle(LIMITS, dict.fromkeys(NODES, 2 * CPU_UNIT)))
    snapshot: Snapshot | None = None
    beats: list[tuple[str, Heartbeat]] = field(default_factory=list)  # on their way
    answers: list[tuple[str, Heartbeat, DesiredState]] = field(default_factory=list)
    log: Log = field(init=False)
    fleet: FleetLog = field(init=False)
    slots: list[Slot] = field(default_factory=lambda: [Slot() for _ in range(LEADERS)])
    nodes: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        self.log, self.fleet = Log(self.oracle.watch), FleetLog()
        capacity = Capacity(cpus=2, memory=64 * GIB, disk=1000 * GIB)
        make = lambda node: Agent(node, capacity, self.log, self.oracle.started, self.oracle.ended_program)  # noqa: E731
        self.nodes = [Node(make(node)) for node in NODES]
        for node in self.nodes:
            node.agent.start(self.now.mono)
            node.agent.beats = BEATS_BEFORE
        self.elect(0)

    @property
    def now(self) -> Now:
        """Return the time."""
        return Now(START + timedelta(seconds=self.seconds), 1000 + self.seconds)

    # --- users ---

    def submit(self, kind: str) -> None:
        """Accept a job."""
        if len(self.oracle.jobs) < JOBS_MAX:
            job_id, now = f"j{len(self.oracle.jobs)}", self.now.at
            job = Job(id=job_id, owner=Owner(id="u1", name="ada"), spec=SPECS[kind], created_at=now, updated_at=now)
            self.log.record(job, 0, 0)

    def cancel(self, number: int) -> None:
        """Ask for a job to stop, whether or not it has ended."""
        if f"j{number}" in self.oracle.jobs:
            self.log.tell(f"j{number}", Cancel("u1"), f"cancel-{number}")

    # --- schedulers ---

    def elect(self, k: int) -> None:
        """Let a scheduler believe to lead from now on, whatever the other believes."""
        self.epochs += 1
        self.oracle.elected[self.epochs] = self.log.end
        self.slots[k] = Slot(Leader.elect(self.log, self.fleet, LIMITS, self.epochs, self.now, self.snapshot))

    def kill_scheduler(self, k: int) -> None:
        """Kill a scheduler between any two of its parts."""
        self.slots[k] = Slot()

    def pause_scheduler(self, k: int) -> None:
        """Stop a scheduler's time, or let it go on."""
        self.slots[k].is_paused = not self.slots[k].is_paused

    def decide(self, k: int, reads: int | None) -> None:
        """Begin a scheduler's turn with what it has heard and the next *reads* entries of the log."""
        self._decide(k, reads)

    def record(self, k: int, until: int | None) -> None:
        """Let a scheduler record what it has decided, or the first part of it."""
        leader = self._leading(k)
        if leader is None or not leader.is_deciding:
            return
        try:
            leader.record(self.now, until=until)
        except Deposed:
            self.kill_scheduler(k)

    def answer(self, k: int) -> None:
        """Let a scheduler end its turn: what it has not recorded it records, then it answers."""
        self.record(k, None)
        if (leader := self._leading(k)) is not None and leader.is_deciding:
            self._is_sound(leader)
            self.answers += [(beat.node_id, beat.heartbeat, desired) for beat, desired in leader.answer(self.now)]

    def turns(self, *, begun: bool = False) -> list[int]:
        """Return the schedulers that could begin a turn with something to decide, or are within one."""
        leading = [(k, leader) for k in range(LEADERS) if (leader := self._leading(k)) is not None]
        return [k for k, one in leading if one.is_deciding == begun and (begun or one.has_work)]

    def keep_snapshot(self, k: int) -> None:
        """Let a scheduler keep what it believes; of two the later position counts."""
        if (leader := self._leading(k)) is not None and not leader.is_deciding:
            kept = leader.snapshot(self.now)
            if self.snapshot is None or kept.position >= self.snapshot.position:
                self.snapshot = kept

    def _decide(self, k: int, reads: int | None, *, tick: bool = False) -> None:
        leader = self._leading(k)
        if leader is None or leader.is_deciding:
            return
        try:
            leader.decide(self.now, reads=reads, tick=tick)
        except Deposed:
            self.kill_scheduler(k)

    def _leading(self, k: int) -> Leader | None:
        slot = self.slots[k]
        return None if slot.is_paused else slot.leader

    def _is_sound(self, leader: Leader) -> None:
        if broken := check(leader.state):
            raise Violation(f"I8: {broken}")

    # --- messages ---

    def send_beat(self, n: int) -> None:
        """Let an agent send a heartbeat."""
        node = self.nodes[n]
        if node.acts:
            beat = node.agent.heartbeat(self.now.mono, self.now.at)
            if not node.is_cut:
                self.beats.append((node.agent.id, beat))

    def deliver_beat(self, i: int, *, again: bool) -> None:
        """Bring a heartbeat to whoever leads; *again*: and keep it, to be delivered another time."""
        if self.beats:
            i %= len(self.beats)
            node_id, beat = self.beats[i] if again else self.beats.pop(i)
            for slot in self.slots:
                if slot.leader is not None:
                    slot.leader.beats.append(Beat(node_id, beat))

    def deliver_answer(self, i: int) -> None:
        """Bring an answer to its agent."""
        if not self.answers:
            return
        node_id, beat, desired = self.answers.pop(i % len(self.answers))
        node = self.nodes[NODES.index(node_id)]
        if node.agent.is_up and not node.is_cut:
            node.agent.take(beat, desired)

    def lose(self, i: int) -> None:
        """Lose a message."""
        i %= len(self.beats) + len(self.answers) or 1
        if i < len(self.beats):
            del self.beats[i]
        elif self.answers:
            del self.answers[i - len(self.beats)]

    def send_reports(self, i: int, *, acknowledged: bool) -> None:
        """Let an agent send what it has to report; the acknowledgement may be lost."""
        if there := self.with_reports():
            _pick(there, i).agent.send(acknowledged=acknowledged)

    def with_reports(self) -> list[Node]:
        """Return the nodes that have something to report, and can."""
        return [node for node in self.nodes if node.acts and not node.is_cut and node.agent.unsent]

    # --- agents ---

    def agent_turn(self, i: int, dies_after: int | None) -> None:
        """Let an agent that has heard something decide, write and act, or die in the midst of it."""
        if there := self.with_facts():
            _pick(there, i).agent.turn(self.now, dies_after=dies_after)

    def with_facts(self) -> list[Node]:
        """Return the nodes whose agent has a turn to take."""
        return [node for node in self.nodes if node.acts and node.agent.facts]

    def agent_task(self, i: int) -> None:
        """Let one of the things that agents do go a part further."""
        if there := self.tasks():
            node, task_id = _pick(there, i)
            node.agent.step(task_id)

    def tasks(self) -> list[tuple[Node, TaskId]]:
        """Return what agents can go on with."""
        return [(node, task_id) for node in self.nodes if node.acts for task_id in _unblocked(node.agent)]

    def end_program(self, i: int, exit_code: int) -> None:
        """Let a program end."""
        if there := self.programs():
            agent, container = _pick(there, i)
            agent.end(container, exit_code)

    def programs(self) -> list[tuple[Agent, Container]]:
        """Return the programs that run."""
        return [
            (node.agent, one) for node in self.nodes for one in node.agent.engine.values() if one.condition == "running"
        ]

    def start_agent(self, n: int) -> None:
        """Start an agent that does not run, or let a paused one go on."""
        node = self.nodes[n]
        if node.is_paused:
            node.is_paused = False
            node.agent.tick(self.now.mono)
        elif not node.agent.is_up and not node.is_destroyed:
            node.agent.start(self.now.mono)

    def kill(self, n: int) -> None:
        """Kill an agent. Its programs run on."""
        self.nodes[n].agent.crash()
        self.nodes[n].is_paused = False

    def restart(self, n: int) -> None:
        """Kill an agent and start it again."""
        self.kill(n)
        self.start_agent(n)

    def pause(self, n: int) -> None:
        """Stop an agent's time."""
        self.nodes[n].is_paused = self.nodes[n].agent.is_up

    def reboot(self, n: int) -> None:
        """Let a machine go down. Its agent is not there until it is started."""
        self.nodes[n].agent.reboot()
        self.nodes[n].is_paused = False

    def wipe(self, n: int) -> None:
        """Let a machine lose its disk."""
        self.nodes[n].agent.wipe()
        self.nodes[n].is_paused = False
        self.oracle.wiped(NODES[n])

    def reimage(self, n: int) -> None:
        """Let a machine lose its disk and be back at once."""
        self.wipe(n)
        self.start_agent(n)

    def destroy(self, n: int) -> None:
        """Let a machine be gone for good; the last one stays."""
        if sum(node.is_destroyed for node in self.nodes) < len(NODES) - 1:
            self.wipe(n)
            self.nodes[n].is_destroyed = True

    def cut(self, n: int) -> None:
        """Cut a node's link, or mend it."""
        self.nodes[n].is_cut = not self.nodes[n].is_cut

    def sweep(self, n: int) -> None:
        """Let an agent look for containers that it does not know."""
        if self.nodes[n].acts:
            self.nodes[n].agent.sweep()

    # --- time ---

    def wait(self, seconds: int) -> None:
        """Let time pass: clocks tick, and what was begun is done; nothing is sent or read."""
        for _ in range(seconds):
            self.seconds += 1
            for n in range(len(NODES)):
                self._agent_second(n)
            for k in range(LEADERS):
                self._tick(k)

    def calm(self, seconds: int, stops_at: int | None = None, *, ends: bool = False) -> None:
        """Let all that can do so work as it does on a good day; the last second may stop at any of its parts.

        *ends*: programs end within a second.
        """
        for second in range(seconds):
            while ends and self.programs():
                self.end_program(0, 0)
            for part in self._day()[: stops_at if second == seconds - 1 else None]:
                part()

    def _day(self) -> tuple[Callable[[], None], ...]:
        return (
            lambda: self.wait(1),
            self._turns_of_all,
            self._beats_of_all,
            self._turns_of_all,
            self._answers_to_all,
            self._work_of_all,
            self._reports_of_all,
        )

    def _turns_of_all(self) -> None:
        for k in range(LEADERS):
            self.decide(k, None)
            self.answer(k)

    def _beats_of_all(self) -> None:
        for n in range(len(NODES)):
            self.send_beat(n)
        while self.beats:
            self.deliver_beat(0, again=False)

    def _answers_to_all(self) -> None:
        while self.answers:
            self.deliver_answer(0)

    def _work_of_all(self) -> None:
        for n in range(len(NODES)):
            self._agent_second(n)

    def _reports_of_all(self) -> None:
        for node in self.nodes:
            while node.acts and not node.is_cut and node.agent.send():
                pass

    def _tick(self, k: int) -> None:
        leader = self._leading(k)
        if leader is not None and not leader.is_deciding:
            self._decide(k, 0, tick=True)
            self.answer(k)

    def _agent_second(self, n: int) -> None:
        node = self.nodes[n]
        agent = node.agent
        if not node.acts:
            # Nobody is there to end what must not run twice: no promise about those.
            self.oracle.unwatched(agent.engine.values())
            return
        agent.tick(self.now.mono)
        is_busy = True
        while is_busy:
            went_on = [agent.step(task) for task in _unblocked(agent)]
            is_busy = agent.turn(self.now) or any(went_on)

    # --- what single steps seldom lead to ---

    def outlast_the_lease(self, n: int, how: str, *, ends: bool, comes_back: bool) -> None:
        """Let a node be away until others have what it had. *ends*: what runs on it ends meanwhile."""
        node = self.nodes[n]
        {"cut": self.cut, "kill": self.kill, "pause": self.pause, "reboot": self.reboot, "destroy": self.destroy}[how](
            n
        )
        for container in node.agent.engine.values() if ends else ():
            node.agent.end(container, 0)
        self.calm(int(LEASE_S) + 4)
        if comes_back:
            if how == "cut":
                self.cut(n)
            self.start_agent(n)
            self._reports_of_all()

    def interrupt(self, n: int, parts: int, how: str) -> None:
        """Let agents hear what is wanted of them, one do so many parts of it, and then something befall it."""
        self.calm(1, 5)
        node = self.nodes[n]
        for _ in range(parts):
            if not node.acts:
                break
            if node.agent.facts:
                node.agent.turn(self.now)
            elif waiting := _unblocked(node.agent):
                node.agent.step(waiting[0])
        getattr(self, how)(n)

    def usurp(self, k: int, seconds: int) -> None:
        """Let a scheduler stand still while the other takes over."""
        self.slots[k].is_paused = True
        self.elect(1 - k)
        self.calm(seconds, ends=True)

    def first_word(self, k: int, n: int) -> None:
        """Let a scheduler that may have stood still be the first to answer a node, before it reads on."""
        slot = self.slots[k]
        if slot.is_paused and slot.leader is not None:
            slot.is_paused = False
            slot.leader.beats.clear()  # the broker has cut off who did not read
        self.send_beat(n)
        if self.beats and (leader := self._leading(k)) is not None:
            self.deliver_beat(len(self.beats) - 1, again=False)
            self.answer(k)
            self.decide(k, 0)
            self.answer(k)
            if leader.beats or not self.answers:
                return
            self.deliver_answer(len(self.answers) - 1)

    # --- the end ---

    def heal(self) -> None:
        """End all faults, and check that everything comes to its end."""
        self._mend()
        for _ in range(HEAL_S):
            for node in self.nodes:
                for container in list(node.agent.engine.values()):
                    node.agent.end(container, 0)
            if not self._leaders():
                self.elect(0)  # nobody, or the last one found that it had been deposed
            self.calm(1)
            if self.oracle.all_ended() and not any(self._is_busy(node) for node in self.nodes):
                break
        for n in range(len(NODES)):
            self.sweep(n)
        self.oracle.after_heal((node.agent.id, node.agent.engine) for node in self.nodes)
        for leader in self._leaders():
            self.oracle.agrees(leader.state, NODES)

    def _mend(self) -> None:
        for n, node in enumerate(self.nodes):
            node.is_cut = False
            if not node.is_destroyed:
                self.restart(n)
        for slot in self.slots:
            slot.is_paused = False
        latest = max((leader.epoch for leader in self._leaders()), default=0)
        for k, slot in enumerate(self.slots):
            if slot.leader is not None and slot.leader.epoch < latest:
                self.kill_scheduler(k)
            self.answer(k)  # what was begun

    def _leaders(self) -> list[Leader]:
        return [slot.leader for slot in self.slots if slot.leader is not None]

    def _is_busy(self, node: Node) -> bool:
        return node.agent.machine is not None and bool(node.agent.machine.held)


def _unblocked(agent: Agent) -> list[TaskId]:
    return [
        task_id
        for task_id, task in agent.tasks.items()
        if not (isinstance(task.wait, Container) and task.wait.condition == "running")
    ]


def _pick(some: list[Any], i: int) -> Any:
    return some[i % len(some)]
