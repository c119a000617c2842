# ruff: noqa: B905 - zip(strict=) needs Python 3.10; this runs on 3.9
"""Trains a linear regression on the diabetes data, reporting as it goes, and leaves the model and its measures."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lib import dataset, regression, report
from lib.linalg import ENGINE

DATA = Path(__file__).parent / "data" / "diabetes.csv"


@dataclass(frozen=True)
class Params:
    """What the job's parameters may set."""

    test_share: float = 0.2
    seed: int = 42
    epochs: int = 60
    #: The least time in seconds from one epoch to the next: the data is so small that nobody could watch otherwise.
    pace: float = 0.04

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Params:
        """Check *given*.

        Raises:
            ValueError: an unknown name, or a value out of bounds.
        """
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown parameter: {', '.join(sorted(unknown))}")
        params = cls(**given)
        if not 0.05 <= params.test_share <= 0.5 or params.epochs < 1 or params.pace < 0:
            raise ValueError("test_share is 0.05 to 0.5, epochs at least 1, pace at least 0")
        return params


def main() -> int:
    """Train, report, and write the results. Returns the exit status."""
    try:
        params = Params.from_json(report.params())
    except (TypeError, ValueError) as problem:
        print(f"app.py: bad parameters: {problem}", file=sys.stderr)
        return 2
    table = dataset.load(DATA)
    train, test = dataset.split(table, params.test_share, params.seed)
    scale = dataset.Scale.of(train.rows)
    print(f"{len(train.rows)} rows to train on, {len(test.rows)} to test with, computed by {ENGINE}")
    weights = fit(params, scale.apply(train.rows), train.targets, scale.apply(test.rows), test.targets)
    save(params, table.features, scale, weights, test)
    return 0


def fit(
    params: Params,
    rows: list[list[float]],
    targets: list[float],
    test_rows: list[list[float]],
    test_targets: list[float],
) -> list[float]:
    """Return the trained weights, having reported each epoch's error on the rows that it has not seen."""
    weights: list[float] = []
    due = time.monotonic()
    for epoch, weights in enumerate(regression.descend(rows, targets, params.epochs), start=1):
        now = regression.score(regression.predict(test_rows, weights), test_targets)
        report.metric("rmse", now.rmse, epoch)
        report.metric("r2", now.r2, epoch)
        report.progress(epoch / params.epochs, f"epoch {epoch} of {params.epochs}, rmse {now.rmse:.2f}")
        due += params.pace
        time.sleep(max(0.0, due - time.monotonic()))
    best = regression.score(regression.predict(rows, regression.exact(rows, targets)), targets)
    reached = regression.score(regression.predict(rows, weights), targets)
    print(f"training rmse {reached.rmse:.3f}; no linear model can do better than {best.rmse:.3f}")
    return weights


def save(params: Params, features: list[str], scale: dataset.Scale, weights: list[float], test: dataset.Table) -> None:
    """Write model.json, metrics.json and predictions/test.csv to the folder that is kept."""
    folder = report.outputs()
    predictions = regression.predict(scale.apply(test.rows), weights)
    result = regression.score(predictions, test.targets)
    report.write_json(
        folder / "model.json",
        {
            "kind": "linear regression",
            "target": "disease progression after one year",
            "features": features,
            "means": scale.means,
            "deviations": scale.deviations,
            "intercept": weights[0],
            "weights": dict(zip(features, weights[1:])),
        },
    )
    report.write_json(folder / "metrics.json", {**asdict(result), "rows": len(test.rows), "params": asdict(params)})
    (folder / "predictions").mkdir(exist_ok=True)
    with (folder / "predictions" / "test.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*features, "target", "prediction"])
        lines.writerows([*row, t, round(p, 3)] for row, t, p in zip(test.rows, test.targets, predictions))
    print(f"rmse {result.rmse:.2f}, r2 {result.r2:.3f}; wrote model.json, metrics.json and predictions/test.csv")


if __name__ == "__main__":
    sys.exit(main())
