"""The items of a map job: which there are, what has become of each, and which worker has which.

What has become of an item is in the log. Which worker has it is not: that is decided anew by whoever leads.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from shared.fleet import ItemOrder
from shared.job import Item, ItemCounts
from shared.states import ItemState

_SUCCEEDED = b"s"
_STATES = {b"w": ItemState.WAITING, b"f": ItemState.FAILED, _SUCCEEDED: ItemState.SUCCEEDED}
#: Part of the mean time of an item that the last one makes up.
_PACE_WEIGHT = 0.2


@dataclass(slots=True)
class Hand:
    """What one worker has, in the order in which it takes it.

    Attributes:
        items: by id.
        size: bytes of them as JSON.
        empty_since: in monotonic seconds; None while it has some.
        closing_since: the same, of when it was to end once it has done what it has; None: it is to go on.
        ended: how many it has said the end of.
        is_taken_over: whether it worked already when it came to be known: nobody knows what it was told before.
    """

    empty_since: float | None
    closing_since: float | None = None
    ended: int = 0
    items: dict[str, ItemOrder] = field(default_factory=dict[str, ItemOrder])
    size: int = 0
    is_taken_over: bool = False


class Book:
    """The items of one job. Every step costs the same however many there are.

    Of an item that has succeeded only its id is kept, of the others the JSON: there may be a hundred thousand.

    Attributes:
        pace_s: the mean time that the last items have taken, in seconds; None before the first.
        shunned: nodes on which a worker has failed by itself, and none has ended an item since.
    """

    def __init__(self) -> None:
        self._items: dict[str, bytes | None] = {}  # None: it has succeeded
        self._failed: dict[str, None] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()  # nobody has them
        self._held_by: dict[str, str] = {}
        self._hands: dict[str, Hand] = {}
        self.pace_s: float | None = None
        self.shunned: set[str] = set()
        self._losses: dict[str, int] = {}

    # --- what has become of them -----------------------------------------------------------------------------------

    def counts(self, *, closed: bool) -> ItemCounts:
        """Return how far the job is; `bytes` are not counted here."""
        total, failed = len(self._items), len(self._failed)
        return ItemCounts(total=total, succeeded=total - failed - self.open, failed=failed, closed=closed)

    @property
    def open(self) -> int:
        """Return how many have not ended."""
        return len(self._waiting) + len(self._held_by)

    @property
    def waiting(self) -> int:
        """Return how many no worker has."""
        return len(self._waiting)

    def get(self, item_id: str) -> Item | None:
        """Return an item; None for one that has succeeded, or that there is not."""
        body = self._items.get(item_id)
        return Item.from_bytes(body) if body is not None else None

    def state(self, item_id: str) -> ItemState | None:
        """Return where an item is; None: there is no such item."""
        if item_id not in self._items:
            return None
        if self._items[item_id] is None:
            return ItemState.SUCCEEDED
        return ItemState.FAILED if item_id in self._failed else ItemState.WAITING

    def failed(self) -> tuple[str, ...]:
        """Return the items that have come to nothing."""
        return tuple(self._failed)

    def believe(self, items: Iterable[Item]) -> None:
        """Take in items as an event of the log has them: no worker has those any more."""
        for item in items:
            body = item.to_bytes() if item.state is not ItemState.SUCCEEDED else None
            self._put(item.id, item.state, body)

    def lines(self) -> list[bytes]:
        """Return one line for each item, in order, from which `read` makes the same book."""
        return [self._line(item_id, body) for item_id, body in self._items.items()]

    def read(self, lines: Iterable[bytes]) -> None:
        """Take in what `lines` has written, after the items that there are already.

        Raises:
            ValueError: a line is none of those.
        """
        for line in lines:
            letter, item_id, body = line.split(b" ", 2)
            if letter not in _STATES:
                raise ValueError(f"no line of a book: {line[:80]!r}")
            self._put(item_id.decode(), _STATES[letter], body or None)

    def _line(self, item_id: str, body: bytes | None) -> bytes:
        letter = _SUCCEEDED if body is None else b"f" if item_id in self._failed else b"w"
        return b"%s %s %s" % (letter, item_id.encode(), body or b"")

    def _put(self, item_id: str, state: ItemState, body: bytes | None) -> None:
        self._items[item_id] = body
        self._failed.pop(item_id, None)
        self._losses.pop(item_id, None)
        self._let_go(item_id)
        if state is ItemState.WAITING:
            self._waiting[item_id] = None
            return
        self._waiting.pop(item_id, None)
        if state is ItemState.FAILED:
            self._failed[item_id] = None

    # --- who has them ----------------------------------------------------------------------------------------------

    def hands(self) -> tuple[str, ...]:
        """Return the workers that `share` knows."""
        return tuple(self._hands)

    def hand(self, worker: str) -> Hand | None:
        """Return what a worker has; None for one that `share` does not know."""
        return self._hands.get(worker)

    def said(self, worker: str, node: str, seconds: float) -> None:
        """Take note that a worker on *node* has said the end of an item, which took so long."""
        self.shunned.discard(node)
        self.pace_s = seconds if self.pace_s is None else self.pace_s + _PACE_WEIGHT * (seconds - self.pace_s)
        if hand := self._hands.get(worker):
            hand.ended += 1

    def lost(self, item_id: str) -> int:
        """Count that a worker was lost while it was at an item; return how often that was since its last change."""
        self._losses[item_id] = self._losses.get(item_id, 0) + 1
        return self._losses[item_id]

    def drop(self, worker: str) -> tuple[str, ...]:
        """Let a worker have nothing any more; return what it had, which is the next to be given."""
        hand = self._hands.pop(worker, None)
        if hand is None:
            return ()
        for item_id in reversed(hand.items):
            del self._held_by[item_id]
            self._put_first(item_id)
        return tuple(hand.items)

    def share(
        self,
        ahead: Mapping[str, int],
        begun: Iterable[str],
        mono: float,
        most_bytes: int,
        has: Mapping[str, Iterable[str]] | None = None,
    ) -> set[str]:
        """Give the waiting items to workers, those that have least first; return the workers that have others now.

        Args:
            ahead: how many each worker is to have, by worker; others have nothing any more.
            begun: those of them that work already: the first that such a one has is never taken from it.
            mono: the time, in seconds that never jump.
            most_bytes: that a worker may have and be given another item.
            has: items that workers are at, which come to be known only now: those stay with them.
        """
        for worker in self._hands.keys() - ahead.keys():
            self.drop(worker)
        at_work = frozenset(begun)
        for worker in ahead:
            if worker not in self._hands:
                self._hands[worker] = Hand(mono, is_taken_over=worker in at_work)
                self._leave_with(worker, (has or {}).get(worker, ()))
        changed = self._deal(ahead, most_bytes)
        changed |= self._even_out(ahead, at_work)
        for hand in self._hands.values():
            if hand.items:
                hand.empty_since = None
            elif hand.empty_since is None:
                hand.empty_since = mono
        return changed

    def _leave_with(self, worker: str, items: Iterable[str]) -> None:
        for item_id in items:
            if item_id in self._waiting:
                del self._waiting[item_id]
                self._take(worker, item_id)

    def _deal(self, ahead: Mapping[str, int], most_bytes: int) -> set[str]:
        """Fill up the workers that have half of their number or less: not one message for each item."""
        if not self._waiting:
            return set()
        room = [(len(hand.items), worker) for worker, hand in self._hands.items()]
        room = [(count, worker) for count, worker in room if count <= ahead[worker] // 2]
        heapq.heapify(room)
        changed: set[str] = set()
        while room and self._waiting:
            count, worker = heapq.heappop(room)
            if count >= ahead[worker] or self._hands[worker].size > most_bytes:
                continue
            item_id, _ = self._waiting.popitem(last=False)
            self._take(worker, item_id)
            changed.add(worker)
            heapq.heappush(room, (count + 1, worker))
        return changed

    def _even_out(self, ahead: Mapping[str, int], begun: frozenset[str]) -> set[str]:
        """Let workers that have nothing take half of what others have not begun."""
        idle = [worker for worker, hand in self._hands.items() if not hand.items and ahead[worker] > 0]
        if not idle or self._waiting:
            return set()
        rich = [(-self._spare(worker, begun), worker) for worker in self._hands if self._spare(worker, begun) > 0]
        heapq.heapify(rich)
        changed: set[str] = set()
        for worker in sorted(idle, key=lambda one: one not in begun):  # who works already is there at once
            if not rich:
                break
            spare, other = rich[0]
            if worker not in begun and other not in begun:
                break  # neither of them would begin any sooner
            count = min((1 - spare) // 2, ahead[worker])  # the larger half, for spare is negative
            for item_id in list(self._hands[other].items)[-count:]:
                self._let_go(item_id)
                self._take(worker, item_id)
            changed |= {worker, other}
            heapq.heapreplace(rich, (-self._spare(other, begun), other))
            while rich and rich[0][0] == 0:
                heapq.heappop(rich)
        return changed

    def _spare(self, worker: str, begun: frozenset[str]) -> int:
        return max(0, len(self._hands[worker].items) - (worker in begun))

    def _take(self, worker: str, item_id: str) -> None:
        item = self.get(item_id)
        assert item is not None  # noqa: S101 - only items that have not succeeded are given
        order = ItemOrder(id=item_id, spec=item.spec, tries=item.tries)
        hand = self._hands[worker]
        hand.items[item_id] = order
        hand.size += len(order.to_bytes())
        self._held_by[item_id] = worker

    def _let_go(self, item_id: str) -> None:
        worker = self._held_by.pop(item_id, None)
        if worker is not None and worker in self._hands:
            hand = self._hands[worker]
            hand.size -= len(hand.items.pop(item_id).to_bytes())

    def _put_first(self, item_id: str) -> None:
        self._waiting[item_id] = None
        self._waiting.move_to_end(item_id, last=False)

    def check(self) -> Iterator[str]:
        """Yield every broken rule."""
        held = {item_id: worker for worker, hand in self._hands.items() for item_id in hand.items}
        if held != self._held_by:
            yield f"items are held by {self._held_by}, the hands have {held}"
        for name, some in (("waits", self._waiting), ("is held", self._held_by), ("has failed", self._failed)):
            if succeeded := [item_id for item_id in some if self._items.get(item_id) is None]:
                yield f"{succeeded[0]} has succeeded, or is not known, and {name}"
        if twice := (self._waiting.keys() & self._held_by.keys()) | (self._failed.keys() & self.open_ids()):
            yield f"{min(twice)} is in two places"
        unended = sum(body is not None for body in self._items.values()) - len(self._failed)
        if unended != self.open:
            yield f"{unended} items have not ended, {self.open} wait or are held"

    def open_ids(self) -> set[str]:
        """Return the items that have not ended."""
        return self._waiting.keys() | self._held_by.keys()
