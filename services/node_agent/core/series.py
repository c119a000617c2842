"""What an attempt measures over time, in bounded room: a series that grows too long keeps every second point.

The points that pass are what is sent live, so that a program which measures without end sends ever fewer of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.events import MetricPoint

POINTS_MAX = 2000
NAMES_MAX = 100
#: Names of what the agent itself measures; a program's own lines cannot use them.
SYSTEM = "system."


@dataclass(slots=True)
class _Series:
    points: list[MetricPoint] = field(default_factory=list[MetricPoint])
    stride: int = 1  # of so many points that come, one is kept
    seen: int = 0
    greatest: float = float("-inf")

    def take(self, point: MetricPoint) -> bool:
        """Keep *point*, or not; return whether."""
        is_kept = self.seen % self.stride == 0
        self.seen += 1
        self.greatest = max(self.greatest, point.value)
        if is_kept:
            self.points.append(point)
            self._thin()
        return is_kept

    def _thin(self) -> None:
        while len(self.points) > POINTS_MAX:
            self.points = self.points[::2]
            self.stride *= 2


class SeriesSet:
    """All series of one attempt, at most NAMES_MAX of the program's own; what has more names is left out."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._last: dict[str, MetricPoint] = {}
        self._own = 0

    def take(self, points: Iterable[MetricPoint]) -> list[MetricPoint]:
        """Take points in and return those that are kept."""
        return [point for point in points if (series := self._of(point)) is not None and series.take(point)]

    def _of(self, point: MetricPoint) -> _Series | None:
        series = self._series.get(point.name)
        if series is None:
            is_own = not point.name.startswith(SYSTEM)
            if is_own and self._own >= NAMES_MAX:
                return None
            self._own += is_own
            series = self._series[point.name] = _Series()
        self._last[point.name] = point
        return series

    def whole(self) -> list[MetricPoint]:
        """Return every series in order of time, each with its very last point."""
        found = [point for series in self._series.values() for point in series.points]
        found += [last for name, last in self._last.items() if self._series[name].points[-1] is not last]
        return sorted(found, key=lambda point: point.at)

    def peaks(self) -> dict[str, float]:
        """Return the greatest value of everything that the agent measured, kept or not."""
        return {name: one.greatest for name, one in self._series.items() if name.startswith(SYSTEM)}

    def saved(self) -> dict[str, Any]:
        """Return, as JSON values, what the kept points do not tell."""
        return {name: [one.stride, one.seen, one.greatest] for name, one in self._series.items()}

    @classmethod
    def restored(cls, points: Iterable[MetricPoint], saved: Mapping[str, Any]) -> "SeriesSet":
        """Return the series that once kept *points*, going on where *saved* stopped."""
        whole = cls()
        whole.take(points)
        for name, (stride, seen, greatest) in saved.items():
            if (one := whole._series.get(name)) is not None:
                one.stride, one.seen = max(one.stride, stride), max(one.seen, seen)
                one.greatest = max(one.greatest, greatest)
        return whole
