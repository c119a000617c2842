"""What must hold whatever happens, checked as each fact becomes durable and as each container starts or ends.

I1 every accepted job reaches one end · I2 which never changes · I3 and is that of its current attempt · I4 nothing
runs that is not current · I5 a container is started at most once · I6 two attempts of an exclusive job never run at
a time · I7 tries and losses are within their budgets, and a machine's failure costs the user no try · I8 what is
promised is what the current attempts need, and no more than there is. (reliability.md, 2.3)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.node_agent.core.container import Key
from services.scheduler.core.facts import Fact, Input
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, need_of
from shared.job import Attempt, Job
from shared.states import ATTEMPT_TERMINAL, INFRASTRUCTURE_REASONS, JOB_TERMINAL, AttemptState, EndReason, JobState
from tests.simulation.agent import Container, outputs_of


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class _Promise:
    node: str
    ucpus: int
    epoch: int
    seq: int


@dataclass(slots=True)
class Oracle:
    """Its own books, made from the log alone. Raises `Violation` at the first broken promise.

    Args:
        limits: the losses that a job survives.
        ucpus: what each node offers.
    """

    limits: Limits
    ucpus: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    promises: dict[str, dict[str, _Promise]] = field(default_factory=dict)  # by node and job
    starts: dict[tuple[str, Key], int] = field(default_factory=dict)  # by node, whose disk they die with
    running: dict[str, dict[str, Container]] = field(default_factory=dict)  # of exclusive jobs: by job and node
    unguarded: set[Container] = field(default_factory=set)  # whose agent was not there to end them
    elected: dict[int, int] = field(default_factory=dict)  # by epoch: the log's end at the time
    writes: dict[int, int] = field(default_factory=dict)  # by epoch: its last event
    seq: int = 0

    # --- the log ---

    def watch(self, fact: Fact) -> None:
        """Hear of a fact that is now durable."""
        self.seq = fact.seq
        if isinstance(fact, Input):
            return
        self.writes[fact.epoch] = fact.seq
        job, before = fact.job, self.jobs.get(fact.job.id)
        if before is not None:
            self._follows(before, job)
        elif job.state is not JobState.QUEUED or job.attempt:
            raise Violation(f"{job.id} begins as {job.state}")
        self.jobs[job.id] = job
        if job.state in JOB_TERMINAL:
            self.ended.add(job.id)
            self._is_sound_end(job)
        self._count_promises(before, job, fact.epoch)

    def _follows(self, before: Job, job: Job) -> None:
        if before.state in JOB_TERMINAL:
            raise Violation(f"I2: {job.id} had ended {before.state}, and now it is {job.state}")
        if job.attempt not in (before.attempt, before.attempt + 1):
            raise Violation(f"{job.id} goes from attempt {before.attempt} to {job.attempt}")
        if job.attempt and not before.attempt:
            self._needs_are_met(job)
        if job.attempt != before.attempt and before.state is not JobState.QUEUED:
            raise Violation(f"{job.id} gets attempt {job.attempt} while {before.attempt} is {before.state}")
        if job.tries > job.spec.max_attempts:
            raise Violation(f"I7: {job.id} has {job.tries} tries of {job.spec.max_attempts}")
        if job.losses > self.limits.losses_max + 1:
            raise Violation(f"I7: {job.id} survived {job.losses} losses")
        if job.tries < before.tries or job.losses < before.losses:
            raise Violation(f"I7: {job.id} forgets tries or losses")
        last = job.current
        if last is not None and last.state in ATTEMPT_TERMINAL and job.attempt == before.attempt:
            self._is_charged_rightly(before, job, last)

    def _needs_are_met(self, job: Job) -> None:
        for need in job.spec.needed():
            other = self.jobs.get(need.job)
            if other is None or other.state not in JOB_TERMINAL:
                raise Violation(f"{job.id} is placed before {need.job}, which it needs, has ended")
            is_wrong = {"ok": other.state is not JobState.SUCCEEDED, "any": other.state is JobState.CANCELLED}
            if is_wrong.get(need.on, False):
                raise Violation(f"{job.id} is placed though {need.job} has ended {other.state}, which is not {need.on}")

    def _is_charged_rightly(self, before: Job, job: Job, last: Attempt) -> None:
        if last.error is not None and last.error.reason is EndReason.REPORT_MISSING:
            raise Violation(f"I7: {job.id}'s last report could be read, and is said to be missing")
        tries, losses = job.tries - before.tries, job.losses - before.losses
        is_machines = last.state in (AttemptState.LOST, AttemptState.CANCELLED) or (
            last.error is not None and last.error.reason in INFRASTRUCTURE_REASONS
        )
        if (is_machines and tries) or (not is_machines and losses) or tries + losses > 1:
            raise Violation(f"I7: {job.id}'s attempt ended {last.error or last.state}: {tries} tries, {losses} losses")

    def _is_sound_end(self, job: Job) -> None:
        last = job.current
        if job.state is JobState.SUCCEEDED and (last is None or last.state is not AttemptState.SUCCEEDED):
            raise Violation(f"I3: {job.id} succeeded and its attempt did not: {last}")
        if job.outputs is None:
            return
        if last is None or job.outputs != outputs_of(last.node, Key(job.id, last.number)):
            raise Violation(f"I3: {job.id} ended with outputs of another attempt: {job.outputs.manifest.sha256}")

    def _count_promises(self, before: Job | None, job: Job, epoch: int) -> None:
        if before is not None and before.current is not None:
            self.promises.get(before.current.node, {}).pop(job.id, None)
        last = job.current
        if last is None or last.state in ATTEMPT_TERMINAL or job.state in JOB_TERMINAL:
            return
        is_new = before is None or before.attempt != job.attempt
        self.promises.setdefault(last.node, {})[job.id] = _Promise(last.node, need_of(job.spec).ucpus, epoch, self.seq)
        if is_new:
            self._fits(last.node, epoch)

    def _fits(self, node: str, epoch: int) -> None:
        """Check a placing against what its scheduler could know: not what another has placed since its election."""
        since = self.elected.get(epoch, 0)
        known = [p for p in self.promises[node].values() if p.epoch == epoch or p.seq <= since]
        if sum(p.ucpus for p in known) > self.ucpus[node]:
            raise Violation(f"I8: {node} is promised {known} and has {self.ucpus[node] / CPU_UNIT} cpus")

    # --- containers ---

    def started(self, node: str, container: Container) -> None:
        """Hear of a start."""
        key = node, container.key
        self.starts[key] = self.starts.get(key, 0) + 1
        if self.starts[key] > 1:
            raise Violation(f"I5: {container.key} was started {self.starts[key]} times on {node}")
        if container.exclusive:
            others = self.running.setdefault(container.key.job_id, {})
            for other_node, other in others.items():
                if other not in self.unguarded:
                    raise Violation(f"I6: {container.key} starts on {node} while {other.key} runs on {other_node}")
            others[node] = container

    def ended_program(self, node: str, container: Container) -> None:
        """Hear of a program's end."""
        if container.exclusive and self.running.get(container.key.job_id, {}).get(node) is container:
            del self.running[container.key.job_id][node]

    def unwatched(self, containers: Iterable[Container]) -> None:
        """Take note that nobody is there to end these in time: an agent that is down or stopped guards nothing."""
        self.unguarded.update(one for one in containers if one.exclusive)

    def wiped(self, node: str) -> None:
        """Take note that a node's disk is gone, and with it what it knew it had started."""
        self.starts = {key: count for key, count in self.starts.items() if key[0] != node}

    # --- the end, and the whole ---

    def is_current(self, node: str, key: Key) -> bool:
        """Return whether an attempt on *node* is the one that counts."""
        job = self.jobs[key.job_id]
        last = job.current
        return job.state not in JOB_TERMINAL and last is not None and last.number == key.attempt and last.node == node

    def all_ended(self) -> bool:
        """Return whether every job has ended."""
        return len(self.ended) == len(self.jobs)

    def after_heal(self, engines: Iterable[tuple[str, dict[Key, Container]]]) -> None:
        """Check what must hold once everything has been well for long enough."""
        for job in self.jobs.values():
            if job.state not in JOB_TERMINAL:
                raise Violation(f"I1: {job.id} is still {job.state} (attempt {job.attempt}): {job.current}")
        for node, engine in engines:
            for key in engine:
                raise Violation(f"I4: {node} still has the container of {key}, and its job has ended")

    def agrees(self, state: State, nodes: Iterable[str]) -> None:
        """Check that what a leader that has read all of the log believes of *nodes* is what the log says."""
        for node_id in nodes:
            promised = sum(promise.ucpus for promise in self.promises.get(node_id, {}).values())
            node = state.nodes.get(node_id)
            believed = node.ucpus if node else 0
            if promised != believed:
                raise Violation(f"I8: {node_id} is promised {promised}, and the scheduler believes {believed}")
