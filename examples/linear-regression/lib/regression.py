# ruff: noqa: B905 - zip(strict=) needs Python 3.10; this runs on 3.9
"""Linear regression by least squares: step by step, so that it can be watched, and in one go, to check the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lib.linalg import Matrix, solve_positive


@dataclass(frozen=True)
class Score:
    """How good predictions are: root mean squared error in the target's unit, and the share of variance explained."""

    rmse: float
    r2: float


def descend(rows: list[list[float]], targets: list[float], epochs: int) -> Iterator[list[float]]:
    """Yield the weights after each epoch of gradient descent with Nesterov's momentum over all rows.

    The step is one over a bound on the loss's curvature (the largest absolute row sum of the Gram matrix),
    so it cannot diverge whatever the data.
    """
    matrix, count = Matrix(rows), len(rows)
    gram = matrix.gram()
    step = count / max(sum(abs(x) for x in row) for row in gram)
    weights = ahead = [0.0] * len(rows[0])
    for epoch in range(1, epochs + 1):
        errors = [p - t for p, t in zip(matrix.times(ahead), targets)]
        gradient = [g / count for g in matrix.transposed_times(errors)]
        moved = [a - step * g for a, g in zip(ahead, gradient)]
        momentum = (epoch - 1) / (epoch + 2)
        ahead = [m + momentum * (m - w) for m, w in zip(moved, weights)]
        weights = moved
        yield weights


def exact(rows: list[list[float]], targets: list[float]) -> list[float]:
    """Return the weights that solve the normal equations.

    Raises:
        ValueError: the features depend on each other.
    """
    matrix = Matrix(rows)
    return solve_positive(matrix.gram(), matrix.transposed_times(targets))


def predict(rows: list[list[float]], weights: list[float]) -> list[float]:
    """Return a prediction for each row."""
    return Matrix(rows).times(weights)


def score(predictions: list[float], targets: list[float]) -> Score:
    """Compare *predictions* with the truth."""
    mean = sum(targets) / len(targets)
    missed = sum((p - t) ** 2 for p, t in zip(predictions, targets))
    spread = sum((t - mean) ** 2 for t in targets)
    return Score((missed / len(targets)) ** 0.5, 1 - missed / spread)
