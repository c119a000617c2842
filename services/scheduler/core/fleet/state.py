"""What the scheduler believes. Jobs change only by `assign`, with what the log holds; nodes by what they report."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from services.scheduler.core import clocks
from services.scheduler.core.fleet.columns import Columns
from services.scheduler.core.fleet.gangs import Gangs
from services.scheduler.core.fleet.line import Line, Reservation
from services.scheduler.core.fleet.node import Key, Node
from services.scheduler.core.fleet.roster import Roster
from services.scheduler.core.fleet.share import Shares
from services.scheduler.core.fleet.uses import Uses
from services.scheduler.core.items import Book
from services.scheduler.core.lifecycle import HOLDING
from services.scheduler.core.limits import Limits, Now
from services.scheduler.core.need import Need, need_of
from services.scheduler.core.needs import Needs
from services.scheduler.core.nodes import THERE, empty_from, is_fit, is_open
from services.scheduler.core.snapshot import Carried, HeadOfLine
from shared.fleet import Heartbeat, NodeRecord, Quota
from shared.job import Item, Job
from shared.states import AttemptState, JobState

_COLD = frozenset({AttemptState.PLACED, AttemptState.STARTING})


@dataclass(slots=True)
class Tracked:
    """An active job and where it stands in the log.

    Attributes:
        seq: the last sequence under the job's filter: what the next write about it expects.
        deadline: the earliest of its limits that is on the list.
        never: whether its pending reasons, as last told, say that no node could ever run it.
    """

    job: Job
    seq: int
    need: Need
    deadline: datetime | None = None
    never: bool | None = None


class State:
    """Active jobs, nodes, the queue and the columns; terminal jobs are dropped, for the log has them.

    Attributes:
        position: the stream sequence up to which everything has been taken in.
        written: sequences of this scheduler's own events that have not come back on the stream yet.
        blocked: needs that were tried and fit nowhere since anything was last gained.
        shares: what each owner holds and has had, and the quotas.
        reservation: the room that is kept for the job at the head of the queue.
        quiet_until: until then, in monotonic seconds, nobody is declared lost.
        ticked: when the last tick was.
        retried: when everything in the queue was last tried.
        needs: the queued jobs that are not in the line, because others have to end first.
        gangs: members by gang, map job and service, and those of them that are to be looked at.
        uses: when services were last asked.
        books: the items of map jobs.
        let_be: workers of map jobs that have ended, and since when in monotonic seconds: they end by themselves.
        stopping: jobs whose current attempt was to be stopped by now.
    """

    def __init__(self, limits: Limits, now: Now) -> None:
        """Begin to lead at *now*: for one lease nobody is lost, because nobody could have been heard."""
        self.limits = limits
        self.jobs: dict[str, Tracked] = {}
        self.nodes: dict[str, Node] = {}
        self.columns = Columns()
        self.roster = Roster()
        self.line = Line()
        self.needs = Needs()
        self.gangs = Gangs()
        self.uses = Uses()
        self.books: dict[str, Book] = {}
        self.let_be: dict[str, float] = {}
        self.stopping: set[str] = set()
        self.position = 0
        self.written: set[int] = set()
        self.blocked = self.line.blocked
        self.shares = Shares(limits.share_half_life_s, now.at.timestamp() + limits.lease_s)
        self.reservation: Reservation | None = None
        self.quiet_until = now.mono + limits.lease_s
        self.ticked: float | None = None
        self.retried = now.mono
        self.reviews: list[tuple[float, str]] = []
        self._deadlines: list[tuple[datetime, str]] = []
        self._dirty: dict[str, Node] = {}
        self._lost: set[str] = set()  # counted at every heartbeat

    # --- jobs ------------------------------------------------------------------------------------------------------

    def assign(self, job: Job, seq: int, now: Now, items: Iterable[Item] = ()) -> None:
        """Believe what the log holds at *seq*. An older sequence than is known changes nothing.

        *items*: of a map job, those that the event changes.
        """
        tracked = self.jobs.get(job.id)
        if tracked is not None:
            if seq <= tracked.seq:
                return
            self._release(tracked, job)
        self._count(tracked, job, now)
        self.gangs.assign(job)
        self._watch_use(job, now)
        if not clocks.waits_for_needs(job):
            self.needs.discard(job.id)
        if job.is_terminal:
            self.jobs.pop(job.id, None)
            self.line.discard(job.id)
            self.needs.ended(job.id, job.state)
            self.books.pop(job.id, None)
            return
        if job.spec.map is not None:
            self.books.setdefault(job.id, Book()).believe(items)
        if tracked is None:
            tracked = self.jobs[job.id] = Tracked(job, seq, need_of(job.spec))
        tracked.job, tracked.seq = job, seq
        if job.state in HOLDING:
            self.line.discard(job.id)
            self._hold(tracked, now)
        else:
            self._enqueue(tracked, now)
        self._watch_deadline(tracked, now)

    def carried(self, now: Now) -> Carried:
        """Return what a snapshot keeps beside the jobs."""
        kept, at_s = self.reservation, now.at.timestamp()
        head = None
        if kept is not None:
            head = HeadOfLine(job_id=kept.job_id, priority=kept.priority, node=kept.node, since_s=kept.since_s)
        return Carried(at_s=at_s, lately=self.shares.carried(at_s), head=head)

    def adopt(self, books: Mapping[str, Book]) -> None:
        """Begin with what the log has told of items, before any job is believed."""
        self.books.update(books)

    def restore(self, carried: Carried) -> None:
        """Begin with what a snapshot has kept, before any job is believed."""
        self.shares.restore(carried.lately, carried.at_s)
        if carried.head is not None:
            head = carried.head
            self.reservation = Reservation(head.job_id, head.priority, head.node, head.since_s, head.since_s)

    def believe(self, job: Job, seq: int, now: Now, items: Iterable[Item] = ()) -> None:
        """Believe an event that this scheduler itself has just recorded at *seq*."""
        self.assign(job, seq, now, items)
        self.written.add(seq)

    def due(self, now: Now) -> list[str]:
        """Take and return the jobs for which a limit or a back-off has passed; the next one is watched."""
        jobs: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now.at:
            deadline, job_id = heapq.heappop(self._deadlines)
            tracked = self.jobs.get(job_id)
            if tracked is None or tracked.deadline != deadline:
                continue
            tracked.deadline = None
            self._watch_deadline(tracked, now)
            if tracked.job.state is JobState.QUEUED:
                self._enqueue(tracked, now)
            jobs.append(job_id)
        return jobs

    def refused(self, job_id: str, last_seq: int, now: Now) -> None:
        """Take note that an event about a job was not stored, because the log's last one about it is at *last_seq*.

        A sequence of 0 means that the job's events have expired, while it is still active.
        """
        tracked = self.jobs.get(job_id)
        if tracked is not None:
            tracked.seq = last_seq
            if tracked.job.state is JobState.QUEUED:
                self._enqueue(tracked, now)
                self.needs.again(job_id)
            self.gangs.assign(tracked.job)  # of a gang or a member, too

    def counts(self) -> dict[JobState, int]:
        """Return how many active jobs are in each state."""
        counts = dict.fromkeys(JobState, 0)
        for tracked in self.jobs.values():
            counts[tracked.job.state] += 1
        return counts

    # --- nodes -----------------------------------------------------------------------------------------------------

    def observe(self, node_id: str, beat: Heartbeat, now: Now) -> bool:
        """Take in a heartbeat and return whether it is news (not a repeat, nor overtaken by a later one)."""
        node = self._node(node_id, now)
        old = node.beat
        was_away = node.is_lost or old is None or now.mono - node.seen > self.fresh_s
        if was_away:
            node.back = now.mono
        node.seen, node.woken, node.is_lost = now.mono, None, False
        self._lost.discard(node_id)
        if old is not None and old.session == beat.session and beat.seq <= old.seq:
            self.columns.heard(node)
            return False
        if beat.node.id != node_id:  # the subject is what the broker has checked
            beat = beat.model_copy(update={"node": beat.node.model_copy(update={"id": node_id})})
        node.beat = beat
        node.steady = 1 if was_away else node.steady + 1
        self.columns.heard(node)
        self._dirty[node_id] = node
        if old is None or old.node != beat.node or old.images != beat.images:
            self.columns.relabel()
            was_away = True
        if was_away:
            self.blocked.clear()
        return True

    def believe_node(self, record: NodeRecord, seq: int, now: Now) -> None:
        """Believe what the log of the fleet holds at *seq*. A node that should be heard is missed from now on."""
        if not self.roster.believe(record, seq):
            return
        node = self.nodes.get(record.id)
        if node is None:
            if record.forgotten or record.condition not in THERE:
                return
            node = self._node(record.id, now)
        was_of_use = node.is_open and node.is_fit
        _obey(node, record)
        self.columns.heard(node)
        if node.is_open and node.is_fit and not was_of_use:
            self.blocked.clear()
        if record.forgotten:
            self.lose(node)

    def restrict(self, record: NodeRecord) -> None:
        """Give a node nothing new as soon as that is decided; what *record* allows it to have waits for the log."""
        if node := self.nodes.get(record.id):
            node.is_open, node.is_fit = node.is_open and is_open(record), node.is_fit and is_fit(record)
            self.columns.heard(node)

    def lose(self, node: Node) -> None:
        """Believe that *node* is gone until it is heard again."""
        node.is_lost = True
        self._lost.add(node.id)
        self.columns.heard(node)

    def forget(self, node: Node) -> None:
        """Drop a node that has been gone for long and has no jobs."""
        del self.nodes[node.id]
        self._lost.discard(node.id)
        self._dirty.pop(node.id, None)
        self.columns.remove(node)

    def settle(self, now: Now) -> None:
        """Bring the columns up to date. What wants no more than a node has that gained is worth another try."""
        if not self._dirty:
            return
        gained = [node.slot for node in self._dirty.values() if self.columns.refresh(node, self.limits)]
        self._dirty.clear()
        self.shares.measure(self.columns.fleet(), now.at.timestamp())
        if gained and len(self.blocked):
            limit = min(self.limits.classes_per_turn, 16 + 2 * len(gained))
            self.blocked.gained(self.columns.free(gained), limit)

    def refresh(self, slots: Iterable[int]) -> None:
        """Bring these rows of the columns up to date by the next turn."""
        self._dirty |= {node.id: node for slot in slots if (node := self.columns.nodes[slot]) is not None}

    def set_quota(self, owner: str, quota: Quota | None) -> None:
        """Believe what *owner* may have; None: all there is."""
        if quota is None:
            self.shares.quotas.pop(owner, None)
        else:
            self.shares.quotas[owner] = quota
        self.line.within_quota(owner)

    @property
    def fleet_size(self) -> int:
        """Return how many nodes count as there."""
        return len(self.nodes) - len(self._lost)

    @property
    def fresh_s(self) -> float:
        """Return the seconds of silence after which a node gets nothing new."""
        return self.limits.fresh_for(len(self.nodes))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _node(self, node_id: str, now: Now) -> Node:
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = self.columns.add(node_id, now.mono)
            if record := self.roster.record(node_id):
                _obey(node, record)
            self.columns.heard(node)
        return node

    def _enqueue(self, tracked: Tracked, now: Now) -> None:
        job = tracked.job
        if clocks.waits_for_needs(job):
            self.needs.add(job, self.jobs)
            return
        if job.spec.kind in ("map", "service"):
            return  # its members wait in its place
        if job.not_before is not None and job.not_before > now.at:
            return
        if job.id not in self.line:
            self.line.add(job, tracked.need)
            heapq.heappush(self.reviews, (now.mono + self.limits.pending_never_after_s, job.id))

    def _watch_use(self, job: Job, now: Now) -> None:
        if job.spec.service is not None:
            if job.is_terminal:
                self.uses.discard(job.id)
            else:
                self.uses.begin(job.id, now.at)
        elif job.member_of is not None and job.is_terminal:
            self.uses.replica_ended(job.member_of.gang_id, job.id)

    def _watch_deadline(self, tracked: Tracked, now: Now) -> None:
        if any(stop.at <= now.at for stop in clocks.stops(tracked.job, self.limits)):
            self.stopping.add(tracked.job.id)
        deadline = clocks.next_deadline(tracked.job, now.at, self.limits)
        if deadline is None or deadline == tracked.deadline:
            return
        tracked.deadline = deadline
        heapq.heappush(self._deadlines, (deadline, tracked.job.id))
        # Limits of days outlive most jobs: without this the list would hold a week of ended ones.
        if len(self._deadlines) > 2 * len(self.jobs) + 1000:
            self._deadlines = [(t.deadline, t.job.id) for t in self.jobs.values() if t.deadline is not None]
            heapq.heapify(self._deadlines)

    def _hold(self, tracked: Tracked, now: Now) -> None:
        if tracked.job.spec.kind != "run":
            return  # its members are what is held
        attempt = tracked.job.attempts[-1]
        node = self._node(attempt.node, now)
        node.jobs[tracked.job.id] = None
        for gpu in attempt.gpus:
            node.gpus[gpu] = tracked.job.id
        self._promise(node, tracked, 1)

    def _count(self, tracked: Tracked | None, after: Job, now: Now) -> None:
        """Count what the owner holds, as a job becomes *after*."""
        held = tracked is not None and tracked.job.state in HOLDING
        if (after.state in HOLDING) == held or after.spec.kind != "run":
            return  # what a gang has its members hold
        need, at_s = tracked.need if tracked is not None else need_of(after.spec), now.at.timestamp()
        self.shares.hold(after.owner.id, need, -1 if held else 1, at_s)
        if held:
            self.line.within_quota(after.owner.id)
        elif tracked is None:
            self.shares.held_before(after.owner.id, need, after.attempts[-1].placed_at.timestamp(), at_s)

    def _release(self, tracked: Tracked, after: Job) -> None:
        """Undo `_hold` for the job as it was; what is known of an attempt that goes on (*after*) is kept."""
        job = tracked.job
        if job.state not in HOLDING or job.spec.kind != "run":
            return
        attempt = job.attempts[-1]
        node = self.nodes[attempt.node]
        self._promise(node, tracked, -1)
        if after.state in HOLDING and after.attempt == job.attempt:
            return
        del node.jobs[job.id]
        for gpu in attempt.gpus:
            node.gpus.pop(gpu, None)
        key: Key = (job.id, attempt.number)
        node.accepted.discard(key)
        node.missing.pop(key, None)
        node.delivered.pop(key, None)

    def _promise(self, node: Node, tracked: Tracked, sign: int) -> None:
        need = tracked.need
        node.ucpus += sign * need.ucpus
        node.memory += sign * need.memory
        node.disk += sign * need.disk
        if tracked.job.attempts[-1].state in _COLD:
            node.cold_memory += sign * need.memory
            node.cold_disk += sign * need.disk
        self._dirty[node.id] = node


def _obey(node: Node, record: NodeRecord) -> None:
    node.is_open, node.is_fit, node.empty_from = is_open(record), is_fit(record), empty_from(record)
