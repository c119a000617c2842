"""What is ours by its labels and in no journal: removed once it has been so for a while, by our own clock."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.node_agent.core.container import Key


@dataclass(slots=True)
class Strays:
    """What nobody here knows, and since when.

    Args:
        age_s: how long something has to be unknown. What has just been made, or forgotten, is given its time.
    """

    age_s: float
    _since: dict[Key, float] = field(default_factory=dict[Key, float])

    def due(self, unknown: Iterable[Key], now: float) -> list[Key]:
        """Return which of *unknown* to remove. What is not unknown any more begins anew."""
        self._since = {key: self._since.get(key, now) for key in unknown}
        return [key for key, since in self._since.items() if now - since >= self.age_s]
