"""The logs in memory, with JetStream's promises: one order, compare-and-set, each record whole or not at all."""

from collections.abc import Callable

from services.scheduler.core.facts import Fact, Input, Recorded
from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, Wish
from services.scheduler.core.lifecycle import Cancel, Report
from shared.fleet import NodeRecord, NodeWish
from shared.job import Job

#: Hears of every fact once it is durable.
Watcher = Callable[[Fact], None]


class Log:
    """What is in it stays; sequences count from 1. `watch` hears of each fact as it is stored."""

    def __init__(self, watch: Watcher) -> None:
        self.facts: list[Fact] = []
        self.jobs: dict[str, Recorded] = {}  # the last event of each job
        self._watch = watch

    @property
    def end(self) -> int:
        """Return the last sequence."""
        return len(self.facts)

    def after(self, seq: int, count: int | None = None) -> tuple[Fact, ...]:
        """Return the facts after *seq* in order, at most *count* of them."""
        return tuple(self.facts[seq : None if count is None else seq + count])

    def record(self, job: Job, expect: int, epoch: int) -> Recorded | None:
        """Store a job event and return it, or None if the job's last event is not at *expect*."""
        if not self.follows(job.id, expect):
            return None
        fact = Recorded(self.end + 1, job, epoch)
        self._store(fact)
        self.jobs[job.id] = fact
        return fact

    def follows(self, job_id: str, expect: int) -> bool:
        """Return whether the last event of a job is at *expect*; 0 is none."""
        last = self.jobs.get(job_id)
        return expect == (last.seq if last else 0)

    def tell(self, job_id: str, event: Report | Cancel, cause: str) -> None:
        """Store what a node or a user says."""
        self._store(Input(self.end + 1, job_id, event, cause))

    def _store(self, fact: Fact) -> None:
        self._watch(fact)
        self.facts.append(fact)


class FleetLog:
    """The same for the nodes' records and what admins wish of nodes."""

    def __init__(self) -> None:
        self.facts: list[FleetFact] = []
        self.nodes: dict[str, NodeRecorded] = {}  # the last record of each node

    @property
    def end(self) -> int:
        """Return the last sequence."""
        return len(self.facts)

    def record(self, record: NodeRecord, expect: int, epoch: int) -> NodeRecorded | None:
        """Store a node's record and return it, or None if the node's last one is not at *expect*."""
        if not self.follows(record.id, expect):
            return None
        fact = self.nodes[record.id] = NodeRecorded(self.end + 1, record, epoch)
        self.facts.append(fact)
        return fact

    def follows(self, node_id: str, expect: int) -> bool:
        """Return whether the last record of a node is at *expect*; 0 is none."""
        last = self.nodes.get(node_id)
        return expect == (last.seq if last else 0)

    def wish(self, node_id: str, verb: str, wish: NodeWish) -> None:
        """Store what an admin wants."""
        self.facts.append(Wish(self.end + 1, node_id, verb, wish, f"wish-{self.end + 1}"))
