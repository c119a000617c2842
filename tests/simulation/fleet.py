"""A fleet in virtual time: the real cores, a seeded network, and a nemesis. The same seed gives the same history.

The clock jumps from event to event, so that an hour of a thousand nodes is a minute of one core.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from services.scheduler.core.fleet.invariants import check
from services.scheduler.core.lifecycle import Cancel
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.machine import Beat
from services.scheduler.core.need import CPU_UNIT
from shared.fleet import Capacity, DesiredState, Gpu, Heartbeat
from shared.job import Job
from shared.spec import GIB
from tests.simulation.agent import Agent, Container, Running, TaskId, Tempo
from tests.simulation.jobs import Program, make_job, programs_of
from tests.simulation.leader import Deposed, Leader, Snapshot
from tests.simulation.log import FleetLog, Log
from tests.simulation.oracle import Oracle, Violation

START = datetime(2026, 1, 1, tzinfo=UTC)
#: Back-offs are short, so that a run has an end.
LIMITS = Limits(backoff_failure_s=2, backoff_failure_max_s=30, backoff_loss_max_s=20)
TURN_S = 0.2  # between what arrives and the scheduler's turn about it
TICK_S = 1.0
SNAPSHOT_S = 10.0
RESEND_S = 0.3
CHECK_ALL_EVERY = 1000  # steps
LOSS, REPEAT = 0.003, 0.003  # shares of messages
HEAL_MAX_S = 1800.0  # after the last fault; back-offs, leases and the queue take their time


@dataclass(slots=True)
class Site:
    """A node, its link, and what is due on it."""

    agent: Agent
    speaks: bool = True  # what it sends arrives
    hears: bool = True
    is_dead: bool = False
    beat_ticket: int = 0  # only the last heartbeat that was planned takes place
    is_sending: bool = False


@dataclass(slots=True)
class Report:
    """What a run was like."""

    seed: int
    steps: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    core_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        seen = ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))
        time_taken = f"{self.virtual_s:.0f} s in {self.real_s:.1f} s, {self.core_s:.1f} s of a core"
        return f"seed {self.seed}: {self.steps} steps, {time_taken}; {seen}"


class Fleet:
    """Everything there is; `run` lets it happen.

    Args:
        seed: decides everything.
        nodes: how many machines.
        jobs: how many jobs are handed in, over *submit_s* seconds.
    """

    def __init__(self, seed: int, nodes: int, jobs: int, submit_s: float = 180.0) -> None:
        self.report = Report(seed)
        self.dice = random.Random(seed)
        self.limits = LIMITS
        self.seconds = 0.0
        self._now = Now(START, 1000.0)
        self.submit_s = submit_s
        self.quiet_from = submit_s * 1.25  # faults end, and everything must come to its end
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._events = 0
        self.oracle = Oracle(self.limits)
        self.log = Log(self.oracle.watch)
        self.fleet_log = FleetLog()
        self.sites: dict[str, Site] = {}
        self.leaders: list[Leader] = []
        self.paused: set[int] = set()  # epochs
        self._turns: set[int] = set()  # epochs whose next turn is planned
        self._snapshot: Snapshot | None = None
        self._epochs = 0
        for number in range(nodes):
            self._add_node(f"n{number}")
        self._programs: dict[str, Program] = {}
        self._jobs = jobs
        self._plan_jobs()

    # --- the run ---

    def run(self) -> Report:
        """Let it happen to its end.

        Raises:
            Violation: a promise was broken.
        """
        began, worked = time.monotonic(), time.process_time()
        self.elect()
        for site in self.sites.values():
            self.start(site, after_s=self.dice.uniform(0, 2))
        self.at(1.0, self._tick)
        self.at(SNAPSHOT_S, self._keep_snapshot)
        try:
            while self._queue and not self._is_over():
                self.seconds, _, act, arguments = heapq.heappop(self._queue)
                act(*arguments)
                self._step()
            self._check_end()
        finally:
            self.report.virtual_s = self.seconds
            self.report.real_s = time.monotonic() - began
            self.report.core_s = time.process_time() - worked
            self.report.seen.update(job.state.value for job in self.oracle.jobs.values())
        return self.report

    def at(self, after_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Plan *act* for *after_s* seconds from now."""
        self._events += 1
        heapq.heappush(self._queue, (self.seconds + after_s, self._events, act, arguments))

    @property
    def now(self) -> Now:
        """Return the time."""
        if self._now.mono != 1000 + self.seconds:
            self._now = Now(START + timedelta(seconds=self.seconds), 1000 + self.seconds)
        return self._now

    @property
    def is_quiet(self) -> bool:
        """Return whether the faults are over."""
        return self.seconds >= self.quiet_from

    def _is_over(self) -> bool:
        if not self.is_quiet or self.report.steps % 200 or len(self.oracle.jobs) < self._jobs:
            return False
        if self.seconds > self.quiet_from + HEAL_MAX_S:
            return True
        return self.oracle.all_ended() and not any(site.agent.engine for site in self.sites.values())

    # --- checks ---

    def _step(self) -> None:
        self.report.steps += 1
        if self.report.steps % CHECK_ALL_EVERY == 0:
            self._check_all()

    def _check_touched(self, leader: Leader, jobs: list[Job]) -> None:
        touched = {job.attempts[-1].node for job in jobs if job.attempts}
        if self._knows_all(leader):
            self.oracle.agrees(leader.state, touched)

    def _check_all(self) -> None:
        for leader in tuple(self.leaders):
            if broken := check(leader.state):
                raise Violation(f"I8: {broken[:5]}")
            if self._knows_all(leader):
                self.oracle.agrees(leader.state, self.sites)

    def _knows_all(self, leader: Leader) -> bool:
        return all(epoch in (0, leader.epoch) or seq <= leader.cursor for epoch, seq in self.oracle.writes.items())

    def _check_end(self) -> None:
        self.oracle.after_heal((site.agent.id, site.agent.engine) for site in self.sites.values())
        self._check_all()

    # --- schedulers ---

    def elect(self) -> None:
        """Let a new leader begin, whatever others believe."""
        self._epochs += 1
        self.oracle.elected[self._epochs] = self.log.end
        leader = Leader.elect(self.log, self.fleet_log, self.limits, self._epochs, self.now, self._snapshot)
        self.leaders.append(leader)
        self._plan_turn(leader)

    def depose(self, leader: Leader) -> None:
        """Let a leader be gone."""
        if leader in self.leaders:
            self.leaders.remove(leader)

    def _plan_turn(self, leader: Leader, after_s: float = TURN_S) -> None:
        if leader.epoch not in self._turns:
            self._turns.add(leader.epoch)
            self.at(after_s, self._planned_turn, leader)

    def _tick(self) -> None:
        self.at(TICK_S, self._tick)
        for leader in tuple(self.leaders):
            if leader.epoch not in self.paused:
                self._turn(leader, tick=True)

    def _planned_turn(self, leader: Leader) -> None:
        self._turns.discard(leader.epoch)
        self._turn(leader)

    def _turn(self, leader: Leader, *, tick: bool = False) -> None:
        if leader not in self.leaders or leader.epoch in self.paused:
            return
        try:
            effects = leader.decide(self.now, tick=tick)
            stored = leader.record(self.now)
        except Deposed:
            self.report.seen["deposed schedulers"] += 1
            self.depose(leader)
            return
        self._check_touched(leader, stored)
        for node_id in effects.wakes:
            self._plan_beat(self.sites[node_id], self._delay())
        for beat, answer in leader.answer(self.now):
            self._answer(self.sites[beat.node_id], beat.heartbeat, answer)
        if effects.again or leader.has_work:
            self._plan_turn(leader)

    def _keep_snapshot(self) -> None:
        self.at(SNAPSHOT_S, self._keep_snapshot)
        if self.leaders:
            self._snapshot = self.leaders[-1].snapshot(self.now)

    def _log_grew(self) -> None:
        for leader in self.leaders:
            self._plan_turn(leader)

    # --- agents ---

    def _add_node(self, node_id: str) -> None:
        cpus = self.dice.choice((4, 8, 8, 16))
        gpus = 4 if self.dice.random() < 0.1 else 0
        capacity = Capacity(
            cpus=cpus,
            memory=8 * cpus * GIB,
            disk=2000 * GIB,
            gpus=tuple(Gpu(uuid=f"{node_id}-g{g}", name="sim", memory_total=24 * GIB) for g in range(gpus)),
        )
        agent = Agent(node_id, capacity, self.log, self._started, self.oracle.ended_program)
        site = self.sites[node_id] = Site(agent)
        agent.on_task = lambda _, task_id, task: self._plan_task(site, task_id, task)
        agent.tempo = self._tempo
        self.oracle.ucpus[node_id] = cpus * CPU_UNIT

    def start(self, site: Site, after_s: float = 0.0) -> None:
        """Start an agent that does not run."""
        if not site.agent.is_up and not site.is_dead:
            site.agent.start(self.now.mono)
            site.is_sending = False
            self._work(site)
            self._plan_beat(site, after_s)

    def _plan_beat(self, site: Site, after_s: float) -> None:
        site.beat_ticket += 1
        self.at(after_s, self._beat, site, site.beat_ticket)

    def _beat(self, site: Site, ticket: int) -> None:
        agent = site.agent
        if ticket != site.beat_ticket or not agent.is_up:
            return
        self._plan_beat(site, agent.interval_s * self.dice.uniform(0.9, 1.1))
        if agent.machine is not None and agent.machine.held:
            agent.tick(self.now.mono)
            self._work(site)
        beat = agent.heartbeat(self.now.mono, self.now.at)
        if site.speaks and self.dice.random() >= LOSS:
            self.at(self._delay(), self._beat_arrives, agent.id, beat)
            if self.dice.random() < REPEAT:
                self.at(10 * self._delay(), self._beat_arrives, agent.id, beat)

    def _beat_arrives(self, node_id: str, beat: Heartbeat) -> None:
        for leader in self.leaders:
            if leader.epoch not in self.paused:
                leader.beats.append(Beat(node_id, beat))
                self._plan_turn(leader)

    def _answer(self, site: Site, beat: Heartbeat, answer: DesiredState) -> None:
        if site.hears and self.dice.random() >= LOSS:
            self.at(self._delay(), self._answer_arrives, site, beat, answer)

    def _answer_arrives(self, site: Site, beat: Heartbeat, answer: DesiredState) -> None:
        if site.hears and site.agent.take(beat, answer):
            self._work(site)
            if answer.more:
                self._plan_beat(site, 0.0)

    def _work(self, site: Site) -> None:
        agent = site.agent
        while agent.is_up and agent.facts:
            agent.turn(self.now)
        if agent.unsent and not site.is_sending:
            site.is_sending = True
            self.at(self._delay(), self._send, site, agent.sessions)

    def _send(self, site: Site, session: int) -> None:
        agent = site.agent
        if agent.sessions != session or not agent.is_up:
            return
        site.is_sending = False
        if site.speaks:
            agent.send(acknowledged=site.hears and self.dice.random() >= REPEAT)
            self._log_grew()
            self._work(site)
        if agent.unsent and not site.is_sending:
            site.is_sending = True
            self.at(RESEND_S, self._send, site, session)

    def _plan_task(self, site: Site, task_id: TaskId, task: Running) -> None:
        if not isinstance(task.wait, Container):
            self.at(task.wait, self._task, site, task_id, task)
        elif task.wait.condition == "ended":
            self.at(0.0, self._task, site, task_id, task)

    def _task(self, site: Site, task_id: TaskId, task: Running) -> None:
        if site.agent.tasks.get(task_id) is task:
            site.agent.step(task_id)
            self._work(site)

    def _tempo(self, key: Any) -> Tempo:
        return self._programs[key.job_id].tempo

    def _started(self, node_id: str, container: Container) -> None:
        self.oracle.started(node_id, container)
        program = self._programs[container.key.job_id]
        exit_code = 0 if container.key.attempt > program.fails else 1
        self.at(program.seconds, self._program_ends, self.sites[node_id], container, exit_code)

    def _program_ends(self, site: Site, container: Container, exit_code: int) -> None:
        site.agent.end(container, exit_code)
        if (task := site.agent.tasks.get((container.key, "run"))) is not None and task.wait is container:
            site.agent.step((container.key, "run"))
            self._work(site)

    def _delay(self) -> float:
        return self.dice.uniform(0.001, 0.05) if self.dice.random() < 0.99 else self.dice.uniform(0.1, 3.0)

    # --- users ---

    def _plan_jobs(self) -> None:
        for number in range(self._jobs):
            self.at(self.dice.uniform(0, self.submit_s), self._submit, number)

    def _submit(self, number: int) -> None:
        job = make_job(self.dice, number, self.now.at, list(self._programs))
        self._programs[job.id] = programs_of(self.dice, job)
        self.log.record(job, 0, 0)
        self._log_grew()
        if self.dice.random() < 0.03:
            self.at(self.dice.uniform(0, 60), self._cancel, job.id)

    def _cancel(self, job_id: str) -> None:
        self.log.tell(job_id, Cancel("u1"), f"cancel-{job_id}")
        self._log_grew()
