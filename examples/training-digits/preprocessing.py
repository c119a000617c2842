"""Reads the digits and splits them: what the network learns from, and what it is judged by."""

from pathlib import Path

import helpers
import numpy as np


def prepare(dataset: Path | None, params: dict) -> helpers.Digits:
    """Return the images as rows of 64 numbers from 0 to 1, with their digits.

    Args:
        dataset: `digits.csv`, or a folder with it: 64 grey values from 0 to 16 and the digit in each line.
        params: `test_share` (0.2) of the images is kept for the test; `seed` (0) decides which.
    """
    if dataset is None:
        raise ValueError("there is no data set: give the digits as `dataset`")
    test_share = float(params.get("test_share", 0.2))
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is a share between 0 and 1, not {test_share:g}")
    file = dataset / "digits.csv" if dataset.is_dir() else dataset
    table = np.loadtxt(file, delimiter=",", dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != helpers.PIXELS + 1:
        raise ValueError(f"{file.name} is not the digits: {helpers.PIXELS} pixels and a digit belong in each line")
    order = np.random.default_rng(int(params.get("seed", 0))).permutation(len(table))
    images, labels = table[order, :-1] / 16, table[order, -1].astype(np.int64)
    tests = round(len(table) * test_share)
    print(f"{len(table) - tests} images to learn from, {tests} to be judged by", flush=True)
    return helpers.Digits(images[tests:], labels[tests:], images[:tests], labels[:tests])
