"""A scheduler core and a few agents as small models, in one process and virtual time; nodes die, messages are late."""

import random
from dataclasses import dataclass, field

import pytest

from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Input, Recorded
from services.scheduler.core.lifecycle import HOLDING, Report
from services.scheduler.core.limits import Limits
from services.scheduler.core.machine import Batch
from services.scheduler.core.replay import Replay
from shared.fleet import Order
from shared.states import AttemptState, EndReason, JobState


@dataclass
class Agent:
    """A node in a few lines: a journal, programs that need some seconds, reports that wait for the link."""

    id: str
    dice: random.Random
    session: int = 1
    seq: int = 0
    silent_until: float = -1.0
    left: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds of work; below 0: over, kept until told
    started: list[tuple[str, int]] = field(default_factory=list)
    outbox: list[tuple[str, object]] = field(default_factory=list)
    told: set[tuple[str, int]] = field(default_factory=set)  # attempts that a heartbeat of it has named
    address: str = ""
    begun: list[Order] = field(default_factory=list)  # since somebody looked

    def beat(self, make):
        self.seq += 1
        self.told |= set(self.left)
        held = tuple(self.left)
        return make.beat(self.id, seq=self.seq, session=f"s{self.session}", held=held, cpus=4, address=self.address)

    def obey(self, make, answer) -> None:
        for one in answer.assignments:
            key = (one.job_id, one.attempt)
            if one.action == "start" and key not in self.left:
                self.started.append(key)
                self.begun.append(one.order)
                self.left[key] = self.dice.uniform(1, 8)
                self.outbox.append((one.job_id, make.running(one.attempt)))
            elif one.action == "stop" and self.left.get(key, -1) >= 0:
                self.left[key] = -1
                self.outbox.append((one.job_id, make.finished(one.attempt, AttemptState.CANCELLED)))
            elif one.action == "forget":
                self.left.pop(key, None)

    def work(self, make) -> None:
        for key, seconds in self.left.items():
            if seconds >= 0:
                self.left[key] = seconds - 1
                if self.left[key] < 0:
                    failed = self.dice.random() < 0.1
                    end = (AttemptState.FAILED, EndReason.EXIT_CODE) if failed else (AttemptState.SUCCEEDED, None)
                    self.outbox.append((key[0], make.finished(key[1], *end)))

    def crash(self, *, loses_journal: bool) -> None:
        self.session += 1
        self.seq = 0
        if loses_journal:
            # What it had started and told nobody of is as if it had never been: only the journal makes it once.
            self.started = [key for key in self.started if key not in self.left or key in self.told]
            self.left.clear()
            self.outbox.clear()


def restart_scheduler(make, world) -> None:
    """A new leader: nothing but the log is left of the old one."""
    replay = Replay()
    for fact in world.log:
        replay.feed(fact)
    world.state = type(world.state)(world.limits, make.at(world.now))
    world.state.position = replay.position
    world.turn(*replay.facts())


def misfortune(make, world, agents, dice) -> None:
    agent = dice.choice(agents)
    match dice.randrange(5):
        case 0:
            agent.silent_until = world.now + dice.choice([5, 45, 90])
        case 1:
            agent.crash(loses_journal=True)
        case 2:
            agent.crash(loses_journal=False)
        case 3:
            restart_scheduler(make, world)
        case 4 if world.state.jobs:
            world.turn(world.cancel(dice.choice(sorted(world.state.jobs))))


def second(make, world, agents) -> None:
    world.now += 1
    for agent in agents:
        agent.work(make)
        if world.now <= agent.silent_until:
            continue
        facts = [world.report(agent.id, job_id, data) for job_id, data in agent.outbox]
        facts += [fact for fact in facts if agent.dice.random() < 0.2]  # at least once
        agent.outbox.clear()
        world.turn(*facts, beats=(agent.beat(make),))
        agent.obey(make, desired_state(world.state, agent.id, 1, make.at(world.now)))
    world.turn(tick=True)


@pytest.mark.parametrize("seed", range(12))
def test_every_job_ends_once_whatever_happens_to_nodes_and_scheduler(make, seed) -> None:
    dice = random.Random(seed)
    world = make.World()
    agents = [Agent(f"n{n}", random.Random(f"{seed}-{n}")) for n in range(4)]
    jobs = [make.job(f"j{n}", created_s=0, max_attempts=3, priority=dice.randrange(100)) for n in range(40)]
    for moment in range(300):
        if jobs and (dice.random() < 0.3 or moment > 100):
            world.turn(world.create(jobs.pop()))
        if dice.random() < 0.1:
            misfortune(make, world, agents, dice)
        second(make, world, agents)
        assert moment < 299
        if not jobs and not world.state.jobs and moment > 120:
            break
        if moment > 150:
            dice.random = lambda: 1.0  # from here on all goes well, and the rest must come to an end
    for agent in agents:
        agent.silent_until = -1
    ends = [entry for entry in world.log if isinstance(entry, Recorded) and entry.job.is_terminal]
    assert len(ends) == len({entry.job.id for entry in ends}) == 40
    started = [key for agent in agents for key in agent.started]
    assert len(started) == len(set(started)), "an attempt was started twice"
    assert all(entry.job.losses <= 6 for entry in ends)
    for _ in range(3):
        second(make, world, agents)
    assert all(not agent.left for agent in agents), "an agent still holds something"


def test_the_simulation_does_lose_nodes_and_attempts(make) -> None:
    """If the misfortunes above did nothing, the test above would prove nothing."""
    seen = set()
    for seed in range(12):
        dice = random.Random(seed)
        world = make.World()
        agents = [Agent(f"n{n}", random.Random(n)) for n in range(4)]
        for moment in range(200):
            world.turn(world.create(make.job(f"j{moment}", created_s=moment)))
            if moment % 60 == 0:  # often enough to be seen, seldom enough that no new leader's grace covers it all
                misfortune(make, world, agents, dice)
            second(make, world, agents)
        seen |= {a.error.reason for job in world.latest.values() for a in job.attempts if a.error}
        seen |= {job.state for job in world.latest.values()}
    assert {EndReason.NODE_LOST, EndReason.AGENT_LOST_CONTAINER, EndReason.EXIT_CODE} <= seen
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} <= seen


@pytest.mark.parametrize("seed", range(4))
def test_services_have_their_replicas_again_whatever_happened_to_nodes_and_scheduler(make, seed) -> None:
    """Programs end by themselves again and again, at first; from then on they run, and nothing else goes wrong."""
    dice = random.Random(seed)
    world = make.World()
    agents = [Agent(f"n{n}", random.Random(f"{seed}-{n}")) for n in range(4)]
    services = ("s1", "s2")
    for job_id in services:
        small = {"cpus": 0.5, "memory": 2**23, "disk": 2**23}
        world.turn(world.create(make.job(job_id, kind="service", service={"port": 1, "replicas": 3}, resources=small)))
    for _ in range(150):
        if dice.random() < 0.1:
            misfortune(make, world, agents, dice)
        second(make, world, agents)
    for agent in agents:
        agent.silent_until = -1
        agent.dice.uniform = lambda *_: 1e9
    for _ in range(400):
        second(make, world, agents)
    cancelled = {job_id for job_id in services if world.job(job_id).is_terminal}
    assert all(world.job(job_id).state is JobState.CANCELLED for job_id in cancelled)
    wanted = {one.job_id for job_id in services for one in world.job(job_id).members}
    assert len(wanted) == 3 * (len(services) - len(cancelled))
    assert all(world.job(job_id).state is JobState.RUNNING for job_id in wanted)
    assert {job_id for agent in agents for job_id, _ in agent.left} == wanted
    started = [key for agent in agents for key in agent.started]
    assert len(started) == len(set(started)), "an attempt was started twice"
    assert len(started) < 200, "ended programs are replaced without a back-off"


def gangs_of(dice):
    """Return what some connected gangs are to be like: each has a server of two ports, and workers that follow it."""
    size = {"cpus": 1, "memory": 2**23, "disk": 2**23}
    roles = {"worker": {"count": 2, "start_after": ["ps"]}, "ps": {"count": 1, "ports": 2}}
    for _ in range(14):
        policy = {name: dice.choice(("stop", "restart")) for name in ("on_failure", "on_loss")}
        gang = {"roles": roles, "connected": True, "deadline": 60, **policy}
        yield {"kind": "gang", "gang": gang, "resources": size, "max_attempts": dice.choice((1, 3))}


def check_ports(world) -> None:
    """Check that no two members have a port of one machine at the same time."""
    held = []
    for job in world.latest.values():
        if job.spec.kind == "gang" and job.state in HOLDING:
            ports = ((one, job.spec.gang.roles[one.role].ports) for one in job.members)
            held += [(one.host, one.port + n) for one, count in ports for n in range(count)]
    assert len(held) == len(set(held)), "a port is taken twice"


def check_order(world, order) -> None:
    """Check that a member is told where all are as its gang has it, and begins after those that it follows."""
    gang = world.latest[order.wiring.gang_id]
    if gang.attempt != order.wiring.round:
        return
    assert [(one.host, one.port) for one in order.wiring.peers] == [(one.host, one.port) for one in gang.members]
    if order.wiring.peers[order.wiring.rank].role == "worker":
        server = next(one.job_id for one in gang.members if one.role == "ps")
        assert world.latest[server].attempts[-1].running_at is not None


def test_connected_gangs_end_once_and_are_never_in_each_others_way(make) -> None:
    """On few ports, and two nodes to a machine: who takes what another has is soon found out."""
    seen = set()
    for seed in range(16):
        dice = random.Random(seed)
        world = make.World(Limits(gang_ports=(20000, 20011)))
        agents = [Agent(f"n{n}", random.Random(f"{seed}-{n}"), address=f"10.0.0.{n // 2}") for n in range(6)]
        wanted = [make.job(f"g{n}", **spec) for n, spec in enumerate(gangs_of(dice))]
        for moment in range(500):
            if wanted and dice.random() < 0.2:
                world.turn(world.create(wanted.pop()))
            if moment < 150 and dice.random() < 0.15:
                misfortune(make, world, agents, dice)
            second(make, world, agents)
            check_ports(world)
            for agent in agents:
                for order in agent.begun:
                    check_order(world, order)
                agent.begun.clear()
            if not wanted and not world.state.jobs and not any(agent.left for agent in agents):
                break
        ends = [one.job for one in world.log if isinstance(one, Recorded) and one.job.is_terminal]
        assert len(ends) == len({job.id for job in ends}) == len(world.latest)
        assert not any(agent.left for agent in agents), "an agent still holds something"
        started = [key for agent in agents for key in agent.started]
        assert len(started) == len(set(started)), "an attempt was started twice"
        gangs = [job for job in ends if job.spec.kind == "gang"]
        assert len(gangs) == 14
        seen |= {(job.state, job.error.reason if job.error else None) for job in gangs}
        seen |= {"another round" for job in gangs if job.attempt > 1}
    assert (JobState.FAILED, EndReason.NODE_LOST) in seen, seen
    assert {(JobState.SUCCEEDED, None), (JobState.FAILED, EndReason.EXIT_CODE), "another round"} <= seen


def test_a_late_report_of_a_replaced_attempt_does_not_count(make) -> None:
    world = make.World()
    agents = [Agent(f"n{n}", random.Random(n)) for n in range(2)]
    world.turn(world.create(make.job()))
    second(make, world, agents)
    [first] = [agent for agent in agents if agent.started]
    first.silent_until = world.now + 60
    while world.job().attempt < 2:
        second(make, world, agents)
    late = Input(world.seq + 1, "j1", Report(first.id, make.finished(1)), "late")
    world.seq += 1
    world.log.append(late)
    before = world.job()
    world.turn(*Batch(facts=(late,)).facts)
    assert world.job() == before
