# ruff: noqa: B905 - zip(strict=) needs Python 3.10; this runs on 3.9
"""The three operations that the fit needs, by numpy where the image has it, else in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

try:
    import numpy as np
except ImportError:
    np = None

ENGINE = f"numpy {np.__version__}" if np else "plain Python"


class Matrix:
    """Rows of numbers. Vectors go in and come out as lists."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = np.array(rows) if np else rows
        self.columns = None if np else list(zip(*rows))

    def times(self, vector: list[float]) -> list[float]:
        """Return the matrix times *vector*: one value a row."""
        if np:
            return (self.rows @ vector).tolist()
        return [_dot(row, vector) for row in self.rows]

    def transposed_times(self, vector: list[float]) -> list[float]:
        """Return the transposed matrix times *vector*: one value a column."""
        if np:
            return (self.rows.T @ vector).tolist()
        return [_dot(column, vector) for column in self.columns]

    def gram(self) -> list[list[float]]:
        """Return the transposed matrix times the matrix."""
        if np:
            return (self.rows.T @ self.rows).tolist()
        return [[_dot(a, b) for b in self.columns] for a in self.columns]


def solve_positive(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a symmetric positive definite system by Cholesky's decomposition.

    Raises:
        ValueError: the matrix is not positive definite, so the features depend on each other.
    """
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - _dot(lower[i][:j], lower[j][:j])
            if i != j:
                lower[i][j] = rest / lower[j][j]
            elif rest > 0:
                lower[i][i] = rest**0.5
            else:
                raise ValueError("the features depend on each other: leave one of them out")
    forward: list[float] = []
    for i in range(size):
        forward.append((right[i] - _dot(lower[i][:i], forward)) / lower[i][i])
    result = [0.0] * size
    for i in reversed(range(size)):
        known = sum(lower[j][i] * result[j] for j in range(i + 1, size))
        result[i] = (forward[i] - known) / lower[i][i]
    return result


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b))
