"""Rows of numbers from a CSV, split and scaled."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Rows of features and the value to be predicted from each."""

    features: list[str]
    rows: list[list[float]]
    targets: list[float]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each feature, learnt from the training rows only."""

    means: list[float]
    deviations: list[float]

    @classmethod
    def of(cls, rows: list[list[float]]) -> Scale:
        """Measure *rows*. A feature that never changes keeps its size."""
        columns = [[row[i] for row in rows] for i in range(len(rows[0]))]
        means = [sum(column) / len(column) for column in columns]
        squares = [sum((x - means[i]) ** 2 for x in column) / len(column) for i, column in enumerate(columns)]
        return cls(means, [square**0.5 or 1.0 for square in squares])

    def apply(self, rows: list[list[float]]) -> list[list[float]]:
        """Return scaled rows with a leading 1, whose weight is the intercept."""
        return [[1.0] + [(x - self.means[i]) / self.deviations[i] for i, x in enumerate(row)] for row in rows]


def load(path: Path) -> Table:
    """Read a CSV with a header; the last column is the target.

    Raises:
        ValueError: a cell is not a number, or a row has too many or too few.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines)
        table = [[float(cell) for cell in line] for line in lines if line]
    for number, row in enumerate(table, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path.name}, line {number}: {len(row)} cells where the header has {len(header)}")
    return Table(header[:-1], [row[:-1] for row in table], [row[-1] for row in table])


def split(table: Table, test_share: float, seed: int) -> tuple[Table, Table]:
    """Return training and test rows: the same ones for the same seed."""
    order = list(range(len(table.rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, not a secret
    cut = round(len(order) * test_share)
    return _take(table, order[cut:]), _take(table, order[:cut])


def _take(table: Table, order: list[int]) -> Table:
    return Table(table.features, [table.rows[i] for i in order], [table.targets[i] for i in order])
