"""Series of what a job measured, as a table with a small picture of each."""

import itertools
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from client.wherry import models
from client.wherry.cli.words import plain, size

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 32


def table(found: models.Metrics) -> Table:
    """Return one row for each series."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("METRIC", "POINTS", "MIN", "MAX", "LAST", "OVER TIME"):
        rows.add_column(name, justify="right" if name in ("POINTS", "MIN", "MAX", "LAST") else "left")
    points: dict[str, list[float]] = {}
    for point in found.points:
        if point.value is not None:
            points.setdefault(point.name, []).append(point.value)
    for one in found.series:
        values = (_value(one.name, value) for value in (one.min, one.max, one.last))
        rows.add_row(plain(one.name), str(one.count), *values, Text(sparkline(points.get(one.name, ()))))
    return rows


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Return *values* as at most *width* blocks of eight heights, the lowest value as the lowest block."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [number * len(values) // count for number in range(count + 1)]
    means = [
        sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)
    ]  # fmt: skip
    low, high = min(means), max(means)
    if low == high:
        return _BLOCKS[3] * count
    return "".join(_BLOCKS[min(7, int((mean - low) / (high - low) * 8))] for mean in means)


def _value(name: str, value: float) -> str:
    is_memory = name.startswith("system.") and name.endswith("memory")
    return size(int(value)) if is_memory else f"{value:.4g}"
