"""Series of what attempts measured: grouped, summed up, and thinned to as many points as somebody asks for."""

import itertools
from collections.abc import Iterable, Sequence

from services.storage.core.queries import ANSWER_BYTES_MOST
from shared.events import MetricPoint
from shared.requests.jobs import MetricPage, SeriesSummary

#: Points of one series in an answer.
POINTS_MOST = 5000


def page(attempt: int, points: Iterable[MetricPoint], names: Sequence[str], most: int) -> MetricPage:
    """Return the series *names* (none: all) with at most *most* points each, fewer where an answer cannot hold them."""
    series = grouped(points, names)
    most = max(2, min(most, POINTS_MOST))
    while True:
        answer = MetricPage(
            attempt=attempt,
            series=tuple(_summary(name, found) for name, found in series.items()),
            points=tuple(sorted((one for found in series.values() for one in thinned(found, most)), key=_time)),
        )
        if most == 2 or len(answer.to_bytes()) <= ANSWER_BYTES_MOST:
            return answer
        most = max(2, most // 2)


def grouped(points: Iterable[MetricPoint], names: Sequence[str]) -> dict[str, list[MetricPoint]]:
    """Return points by their series, in order of arrival."""
    wanted, series = set(names), dict[str, list[MetricPoint]]()
    for point in points:
        if not wanted or point.name in wanted:
            series.setdefault(point.name, []).append(point)
    return series


def thinned(points: Sequence[MetricPoint], most: int) -> list[MetricPoint]:
    """Return at most *most* points (two at least) with the first, the last and what stands out between them.

    Steinarsson's largest triangles (2013): of each stretch, the point that spans the largest triangle with the point
    chosen before and the middle of the stretch after.
    """
    if len(points) <= most:
        return list(points)
    chosen, stretches = [points[0]], _stretches(points, most - 2)
    for number, stretch in enumerate(stretches):
        after = stretches[number + 1] if number + 1 < len(stretches) else [points[-1]]
        middle = sum(map(_time, after)) / len(after), sum(one.value for one in after) / len(after)
        chosen.append(max(stretch, key=lambda one: _area(chosen[-1], one, middle)))
    return [*chosen, points[-1]]


def _stretches(points: Sequence[MetricPoint], count: int) -> list[Sequence[MetricPoint]]:
    """Return all but the first and the last point in *count* stretches, none of them empty."""
    inner = points[1:-1]
    edges = [number * len(inner) // count for number in range(count + 1)] if count else []
    return [inner[start:end] for start, end in itertools.pairwise(edges)]


def _area(before: MetricPoint, point: MetricPoint, after: tuple[float, float]) -> float:
    """Return twice the area of a triangle."""
    x, y = _time(before), before.value
    return abs((x - after[0]) * (point.value - y) - (x - _time(point)) * (after[1] - y))


def _summary(name: str, points: Sequence[MetricPoint]) -> SeriesSummary:
    values = [point.value for point in points]
    return SeriesSummary(name=name, count=len(values), least=min(values), greatest=max(values), last=values[-1])


def _time(point: MetricPoint) -> float:
    return point.at.timestamp()
