"""Who is placed in a turn, and in what order: priority, then fair share between owners, then who came first."""

import heapq
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from services.scheduler.core import gang_network, reservation
from services.scheduler.core.fleet.line import Block, Group, Place, Reservation
from services.scheduler.core.fleet.share import Ledger
from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.limits import Now
from services.scheduler.core.placement import Kept, Trial

#: Places a job if a node will do; returns whether it has.
PlaceOne = Callable[[Trial, Tracked], bool]


def place(state: State, now: Now, decided: Container[str], place_one: PlaceOne) -> bool:
    """Place what fits, best first, and return whether there may be more to place at once.

    A need that does not fit is passed over with all who share it, until something is gained; a group whose owner is
    over the quota, until the owner holds less.

    Args:
        state: what is believed.
        now: the time.
        decided: jobs that this turn has already decided about (a cancel): they leave the line.
        place_one: places one job.
    """
    state.settle(now)
    more = bool(state.line.ready.priorities()) and _Round(state, now, decided, place_one).run()
    _name_oldest(state, now)
    return more


def _name_oldest(state: State, now: Now) -> None:
    """Let one of those that have waited for very long go before all others of its priority, once anything is gained.

    By fair share alone it might never be its turn: new owners have used nothing, and there may always be another.
    """
    full, old = state.line.full, now.at.timestamp() - state.limits.reserve_outright_s
    top = max(full.priorities(), default=None)
    if top is None or (state.reservation is not None and state.reservation.priority >= top):
        return
    ledger = Ledger(state.shares, now.at.timestamp())
    firsts = [group for owner in full.owners(top) if (group := full.first(top, owner)) is not None]
    aged = [(ledger.rank(group.owner), group.head) for group in firsts if group.head[0] <= old]
    if aged:
        _, (_, job_id) = min(aged)
        if state.reservation is not None:
            state.line.blocked.clear_reserved()
        state.reservation = Reservation(job_id, top, "", now.at.timestamp(), now.at.timestamp())


@dataclass(slots=True)
class _Round:
    state: State
    now: Now
    decided: Container[str]
    place_one: PlaceOne
    trial: Trial = field(init=False)
    ledger: Ledger = field(init=False)
    holds: bool = False  # whether the reservation's room is kept by now
    freed: bool = False  # whether something that was kept out of it is worth a try again
    placed: int = 0
    tried: int = 0

    def __post_init__(self) -> None:
        state = self.state
        self.trial = Trial(state.columns, self.now.mono - state.fresh_s, state.limits)
        self.ledger = Ledger(state.shares, self.now.at.timestamp())
        kept = state.reservation
        if kept is not None and kept.job_id not in state.line:
            self._end_reservation()

    def run(self) -> bool:
        """Go through the priorities, the highest first."""
        done = all(self._tier(priority) for priority in self.state.line.ready.priorities())
        self.state.refresh(self.trial.commit())
        return self.freed or not done

    def _tier(self, priority: int) -> bool:
        """Place jobs of *priority*; return False if the turn's measure is full before all were looked at."""
        ready = self.state.line.ready
        self._reserve_above(priority)
        self._serve_reservation(priority)
        if self._is_gang_due(priority):
            return True
        owners: list[tuple[float, Place, str]] = []
        for owner in ready.owners(priority):
            self._line_up(owners, priority, owner)
        head = self._head(priority) if owners and not self._has_reservation(priority) else None
        while owners:
            if self._is_full():
                return False
            rank, place, owner = heapq.heappop(owners)
            group = ready.first(priority, owner)
            if group is None:
                continue
            if group.head == place:
                if head is not None and head[:2] < (rank, place) and not self._has_reservation(priority):
                    self._reserve(head[2])
                    head = self._head(priority) if not self._has_reservation(priority) else None
                if self._try(group) is Block.FULL and head is None:
                    head = self._head(priority)
            self._line_up(owners, priority, owner)
        return True

    def _line_up(self, owners: list[tuple[float, Place, str]], priority: int, owner: str) -> None:
        group = self.state.line.ready.first(priority, owner)
        if group is not None:
            heapq.heappush(owners, (self.ledger.rank(owner), group.head, owner))

    def _try(self, group: Group) -> Block | None:
        """Try the first job of *group*. Return why it does not fit, if that is so."""
        line = self.state.line
        tracked = self.state.jobs[group.head[1]]
        if tracked.job.id in self.decided:
            line.discard(tracked.job.id)
        elif self.ledger.over_quota(group.owner, group.kind.need) is not None:
            line.over_quota(group)
        elif self.trial.may_fit(tracked.need) and self.place_one(self.trial, tracked):
            self._charge(tracked)
        else:
            self.tried += tracked.need.jobs
            why = Block.RESERVED if self.trial.is_kept_out(group.kind.need) else Block.FULL
            line.blocked.add(group.kind, why, group.priority)
            return why
        return None

    def _charge(self, tracked: Tracked) -> None:
        self.placed += tracked.need.jobs
        self.ledger.charge(tracked.job.owner.id, tracked.need)

    def _is_full(self) -> bool:
        limits = self.state.limits
        return self.placed >= limits.placements_per_turn or self.tried >= limits.classes_per_turn

    # --- the job at the head ---------------------------------------------------------------------------------------

    def _is_gang_due(self, priority: int) -> bool:
        """Return whether a gang has been at the head for so long that nothing is placed before it any more.

        It needs room on many nodes, and the reservation keeps that of one.
        """
        kept = self.state.reservation
        if kept is None or kept.priority < priority or self.state.jobs[kept.job_id].job.spec.gang is None:
            return False
        waits_long = self.now.at.timestamp() - kept.since_s >= self.state.limits.reserve_outright_s
        state, need = self.state, self.state.jobs[kept.job_id].need
        return waits_long and gang_network.could_hold(state.columns, need, self.now.mono - state.fresh_s, state.limits)

    def _has_reservation(self, priority: int) -> bool:
        kept = self.state.reservation
        return kept is not None and kept.priority >= priority

    def _head(self, priority: int) -> tuple[float, Place, Group] | None:
        """Return the first of those of *priority* that fit nowhere, with its rank; what it precedes is behind it."""
        full = self.state.line.full
        groups = [group for owner in full.owners(priority) if (group := full.first(priority, owner)) is not None]
        heads = [(self.ledger.rank(group.owner), group.head, group) for group in groups]
        return min(heads, default=None)

    def _reserve_above(self, priority: int) -> None:
        """Keep room for the first that fits nowhere of those of higher priority: all that follow are behind it."""
        for above in self.state.line.full.priorities():
            while above > priority and not self._has_reservation(above) and not self._is_full():
                head = self._head(above)
                if head is None:
                    break
                self._reserve(head[2])

    def _reserve(self, group: Group) -> None:
        """Keep room for the first job of *group*, or note that no node would ever do."""
        state, line = self.state, self.state.line
        self.tried += 1
        if self.ledger.over_quota(group.owner, group.kind.need) is not None:
            line.over_quota(group)
            return
        found = reservation.reserve(state, self.trial, state.jobs[group.head[1]], self.now)
        if found is None:
            line.blocked.add(group.kind, Block.NEVER)
            return
        self._end_reservation()
        self._keep(*found)

    def _serve_reservation(self, priority: int) -> None:
        """Before others of its priority or a lower one: place the job for which room is kept, or keep that."""
        kept = self.state.reservation
        if kept is None or self.holds or kept.priority < priority:
            return
        group = self.state.line.group_of(kept.job_id)
        tracked = self.state.jobs[kept.job_id]
        need = tracked.need
        if group is None or kept.job_id in self.decided or self.ledger.over_quota(group.owner, need) is not None:
            self._end_reservation()
        elif self.place_one(self.trial, tracked):
            self._charge(tracked)
            self._end_reservation()
        else:
            if group.kind.block is None:
                self.state.line.blocked.add(group.kind, Block.FULL)
            found = reservation.renew(self.state, self.trial, tracked, kept, self.now)
            if found is None:
                self.state.line.blocked.add(group.kind, Block.NEVER)
                self._end_reservation()
            else:
                self._keep(*found)

    def _keep(self, held: Reservation, kept: Kept) -> None:
        self.state.reservation = held
        self.trial.keep(kept)
        self.holds = True

    def _end_reservation(self) -> None:
        """Keep nothing any more; who was kept out is worth a try again."""
        if self.state.reservation is not None:
            self.state.reservation = None
            self.freed |= self.state.line.blocked.clear_reserved()
