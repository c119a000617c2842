"""Models that Keras has saved (`*.keras`), for an image that has Keras."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from serving.model import Model, NoModelError


class KerasModel(Model):
    """A model with one input and one output: a row of numbers for each image, one for each class.

    Args:
        file: what `model.save` has written. It is read as data alone: code in it (lambda layers) is refused.
        described: what `model.json` says of it, as far as there is one: `input` and `classes`.

    Raises:
        NoModelError: it cannot be read, or does not fit its description.
    """

    platform = "keras"

    def __init__(self, file: Path, described: dict[str, Any]) -> None:
        if cpus := os.environ.get("WHERRY_CPUS"):  # else as many threads compute as the machine has processors
            os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, math.ceil(float(cpus)))))
        try:
            import keras  # noqa: PLC0415 - most images have none, and it takes seconds
        except ImportError as error:
            raise NoModelError(f"{file.name} needs an image with Keras: {error}") from error
        try:
            self._model = keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:
            raise NoModelError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
        taken, given = self._model.input_shape, self._model.output_shape
        if not (_is_shape(taken) and _is_shape(given) and len(given) == 2):
            raise NoModelError(f"it takes {taken} and gives {given}; only one row of numbers for one image is known")
        self._taken = tuple(taken[1:])
        self.size = math.prod(self._taken)
        self.width, self.height, self.channels = _dimensions(self._taken, described)
        self.classes = [str(name) for name in described.get("classes", range(given[1]))]
        if self.width * self.height * self.channels != self.size or len(self.classes) != given[1]:
            raise NoModelError(f"it takes {taken} and gives {given}, and its description says otherwise")

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Return what the model gives for each row: of a model that ends in softmax, how probable each class is."""
        values = rows.astype(np.float32).reshape(-1, *self._taken)
        return np.asarray(self._model(values, training=False), dtype=np.float32)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) > 1 and all(isinstance(one, int) for one in shape[1:])


def _dimensions(taken: tuple[int, ...], described: dict[str, Any]) -> tuple[int, int, int]:
    """Return width, height and channels."""
    if said := described.get("input"):
        try:
            return int(said["width"]), int(said["height"]), int(said["channels"])
        except (KeyError, TypeError, ValueError) as error:
            raise NoModelError(f"its description says no width, height and channels: {error!r}") from error
    if len(taken) in (2, 3):
        height, width, *channels = taken
        return width, height, channels[0] if channels else 1
    return math.prod(taken), 1, 1
