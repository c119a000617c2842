"""Rebuilding the state: a snapshot, then the log from there. Nothing is decided before the log is caught up with."""

from dataclasses import dataclass, field

from services.scheduler.core.facts import Fact, Input, Recorded
from services.scheduler.core.items import Book
from services.scheduler.core.mapping import ItemsSaid
from shared.job import Job


@dataclass(slots=True)
class Replay:
    """Takes facts in the log's order and keeps what still counts.

    Attributes:
        position: the sequence up to which the log has been taken in.
        jobs: active jobs by id, with the sequence of their last event.
        inputs: what nodes and users said that no event holds yet, by job; what workers said of items, by their job.
        books: the items of map jobs.
        epoch: the highest under which an event was written.
    """

    position: int = 0
    jobs: dict[str, tuple[Job, int]] = field(default_factory=dict)
    inputs: dict[str, list[Input]] = field(default_factory=dict)
    epoch: int = 0
    books: dict[str, Book] = field(default_factory=dict[str, Book])

    def feed(self, fact: Fact) -> None:
        """Take in the next fact. One at or before the position changes nothing."""
        if fact.seq <= self.position:
            return
        self.position = fact.seq
        if isinstance(fact, Input):
            if fact.job_id in self.jobs and (job_id := self._decided_for(fact)) in self.jobs:
                self.inputs.setdefault(job_id, []).append(fact)
            return
        self.epoch = max(self.epoch, fact.epoch)
        job = fact.job
        if job.is_terminal:
            self.jobs.pop(job.id, None)
            self.inputs.pop(job.id, None)
            self.books.pop(job.id, None)
            return
        if job.spec.map is not None:
            self.books.setdefault(job.id, Book()).believe(fact.items)
        self.jobs[job.id] = job, fact.seq
        if waiting := self.inputs.pop(job.id, None):
            late = [one for one in waiting if one.seq > job.input_seq]
            if late:
                self.inputs[job.id] = late

    def _decided_for(self, fact: Input) -> str:
        """Return the job whose events tell what has come of *fact*."""
        place = self.jobs[fact.job_id][0].member_of
        return place.gang_id if place is not None and isinstance(fact.event, ItemsSaid) else fact.job_id

    def facts(self) -> tuple[Fact, ...]:
        """Return what a fresh state has to be fed: each job as it is, then the inputs in order."""
        jobs = [Recorded(seq, job, 0) for job, seq in self.jobs.values()]
        inputs = [one for waiting in self.inputs.values() for one in waiting]
        return (*sorted(jobs, key=lambda one: one.seq), *sorted(inputs, key=lambda one: one.seq))
