"""What an agent decides about a replica: whether it is well, and whether it takes one more request."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

#: Seconds between two looks at a replica: until it is ready, and from then on.
WARMUP_PAUSE_S, PAUSE_S = 0.5, 5.0
#: Looks in a row that find a ready replica unwell before it is given up.
MISSES_MAX = 3
#: Headers that are about one connection, and not about what passes over it (RFC 9110, 7.6.1); the length is counted.
_OF_CONNECTION = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


class News(StrEnum):
    """What a look at a replica changes."""

    NOTHING = "nothing"
    READY = "ready"
    UNHEALTHY = "unhealthy"


@dataclass(slots=True)
class Health:
    """What the looks at a replica have found so far. `is_ready`: it was well once."""

    is_ready: bool = False
    misses: int = 0

    def seen(self, *, is_well: bool) -> News:
        """Take in a look, and return what it changes."""
        if is_well:
            news = News.NOTHING if self.is_ready else News.READY
            self.is_ready, self.misses = True, 0
            return news
        self.misses += self.is_ready
        return News.UNHEALTHY if self.is_ready and self.misses == MISSES_MAX else News.NOTHING

    @property
    def pause_s(self) -> float:
        """Return the seconds until the next look."""
        return PAUSE_S if self.is_ready else WARMUP_PAUSE_S


@dataclass(slots=True)
class Door:
    """Whether a replica takes requests: once it is ready, and until it is to end. And how many it has and had."""

    is_open: bool = False
    is_draining: bool = False
    inside: int = 0
    served: int = 0

    def refusal(self) -> str | None:
        """Return the code of the answer to a new request that another replica has to be asked; None: it may come in."""
        if self.is_draining:
            return "replica_draining"
        return None if self.is_open else "replica_starting"


@dataclass(slots=True)
class Budget:
    """Bytes of bodies that wait here for the rest of them, or to be fetched; of all requests together."""

    most: int
    used: int = 0

    def take(self, count: int) -> bool:
        """Set *count* bytes aside; return False if there is no room for them."""
        if self.used + count > self.most:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Return what was taken."""
        self.used -= count


def passed_on(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return those of *headers* that are for the other end, and not for one connection."""
    return tuple((name, value) for name, value in headers if name.lower() not in _OF_CONNECTION)
