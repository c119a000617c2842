"""Loads the images and brings them to 0 to 1, as the tutorial's first cell does."""

from pathlib import Path

import numpy as np


def prepare(dataset: Path | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return images and digits to learn from, and to be tested with."""
    if dataset is None:
        raise ValueError("there is no data set: give the digits as `dataset`")
    table = np.loadtxt(dataset / "digits.csv" if dataset.is_dir() else dataset, delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    images, digits = table[:, :-1] / 16.0, table[:, -1].astype(int)
    middle = len(table) * 5 // 6  # the tutorial's data is split 60,000 to 10,000
    return (images[:middle], digits[:middle]), (images[middle:], digits[middle:])
