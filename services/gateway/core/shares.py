"""Who gets what there is not enough of for everybody."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """Somebody waits for so much."""

    owner: str
    amount: int


@dataclass(slots=True)
class Shares:
    """So much of something, of which each owner may hold as much as is left for the others.

    Who is alone gets half of it, two who want all of it a third each, and whoever comes next finds room: what one has
    waits for nobody else's end. Switches share their memory so among their ports (dynamic thresholds).

    Attributes:
        total: how much there is.
        held: by owner; who holds nothing is not in it.
        waiting: by owner, who came first in front; who waits for nothing is not in it.
    """

    total: int
    free: int = field(init=False)
    held: dict[str, int] = field(default_factory=dict[str, int])
    waiting: dict[str, deque[Wish]] = field(default_factory=dict[str, deque[Wish]])

    def __post_init__(self) -> None:
        self.free = self.total

    def take(self, wish: Wish) -> bool:
        """Give what is wished for, or have it wait behind its owner's others; return whether it was given."""
        if wish.owner not in self.waiting and self._has_room(wish):
            self._give(wish)
            return True
        self.waiting.setdefault(wish.owner, deque()).append(wish)
        return False

    def leave(self, wish: Wish) -> list[Wish]:
        """Take back what was given, or wait for it no more; return those that have what they wait for now."""
        queue = self.waiting.get(wish.owner, ())
        if wish in queue:
            self._forget(wish)
        else:
            self.free += wish.amount
            self.held[wish.owner] -= wish.amount
            if not self.held[wish.owner]:
                del self.held[wish.owner]
        return self._served()

    def _served(self) -> list[Wish]:
        """Serve who can be served, one at a time, of those first who holds the least."""
        served: list[Wish] = []
        while able := [queue[0] for queue in self.waiting.values() if self._has_room(queue[0])]:
            wish = min(able, key=lambda one: self.held.get(one.owner, 0))
            self._forget(wish)
            self._give(wish)
            served.append(wish)
        return served

    def _has_room(self, wish: Wish) -> bool:
        return self.held.get(wish.owner, 0) + wish.amount <= self.free

    def _forget(self, wish: Wish) -> None:
        queue = self.waiting[wish.owner]
        queue.remove(wish)
        if not queue:
            del self.waiting[wish.owner]

    def _give(self, wish: Wish) -> None:
        self.free -= wish.amount
        self.held[wish.owner] = self.held.get(wish.owner, 0) + wish.amount
