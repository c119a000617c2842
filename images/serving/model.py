"""Models in the format ``wherry-numpy-mlp/1``: `model.json` says what the arrays in `model.npz` are.

Those of Keras (``model.json`` with the format ``keras``, or a file `*.keras` alone) are found here too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, KERAS = "wherry-numpy-mlp/1", "keras"
DESCRIPTION, ARRAYS = "model.json", "model.npz"
_BYTES_MAX = 1024 * 1024  # of a description
_NAMED_MAX = 10  # models, where there are too many


class NoModelError(Exception):
    """There is no model, or none that can be read; the message says why."""


class Model:
    """A network of layers: rectified sums, and at the end the probability of each class.

    Attributes:
        platform: what it is, in a word.
        width, height, channels: of an image that it takes.
        classes: what its outputs stand for.
        size: numbers that it takes for one image.
    """

    platform = "wherry-numpy-mlp"

    def __init__(self, folder: Path, described: dict[str, Any]) -> None:
        try:
            arrays = np.load(folder / ARRAYS, allow_pickle=False)
            self.width, self.height, self.channels = (
                int(described["input"][k]) for k in ("width", "height", "channels")
            )
            self.classes = [str(name) for name in described["classes"]]
            self._layers = [
                (arrays[one["weights"]].astype(np.float32), arrays[one["biases"]].astype(np.float32))
                for one in described["layers"]
            ]
        except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
            raise NoModelError(f"the model in {folder} cannot be read: {type(error).__name__}: {error}") from error
        self.size = self.width * self.height * self.channels
        self._check(described)

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Return how probable each class is, a row for each row of *rows*: numbers from 0 to 1, pixel by pixel."""
        values = rows.astype(np.float32)
        for weights, biases in self._layers[:-1]:
            values = np.maximum(values @ weights + biases, 0)
        weights, biases = self._layers[-1]
        scores = values @ weights + biases
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def labels(self, probabilities: np.ndarray) -> list[str]:
        """Return the most probable class of each row."""
        return [self.classes[index] for index in probabilities.argmax(1)]

    def _check(self, described: dict[str, Any]) -> None:
        if described.get("activation") != "relu":
            raise NoModelError(f"its activation is {described.get('activation')!r}; only relu is known")
        wide = self.size
        for number, (weights, biases) in enumerate(self._layers):
            if weights.ndim != 2 or weights.shape[0] != wide or biases.shape != (weights.shape[1],):
                raise NoModelError(f"layer {number} does not fit: {weights.shape} and {biases.shape} behind {wide}")
            wide = weights.shape[1]
        if not self._layers or wide != len(self.classes):
            raise NoModelError(f"it has {wide} outputs and {len(self.classes)} classes")


def find(places: Iterable[Path]) -> Model:
    """Return the model that is in one of *places*, or in a folder within: the one that lies highest.

    Raises:
        NoModelError: there is none, or it cannot be read; or several lie equally high.
    """
    looked = list(places)
    for place in looked:
        for pattern in (DESCRIPTION, "*.keras"):
            if found := _highest(place, pattern):
                return _opened(found)
    where = " or ".join(str(place) for place in looked)
    raise NoModelError(
        f"there is no model: no {DESCRIPTION} in {where}. A model is a zip with {DESCRIPTION} and {ARRAYS}, or *.keras"
    )


def _highest(place: Path, pattern: str) -> Path | None:
    found = sorted(place.rglob(pattern), key=lambda path: (len(path.parts), path)) if place.is_dir() else []
    equal = [path for path in found if len(path.parts) == len(found[0].parts)]
    if len(equal) > 1:
        named = ", ".join(str(path.relative_to(place)) for path in equal[:_NAMED_MAX])
        more = f" and {len(equal) - _NAMED_MAX} more" if len(equal) > _NAMED_MAX else ""
        raise NoModelError(
            f"there are {len(equal)} models in {place}: {named}{more}. Leave the one that is to be served"
        )
    return found[0] if found else None


def _opened(path: Path) -> Model:
    """Return the model that *path* describes, or is."""
    described = _described(path) if path.name == DESCRIPTION else {"format": KERAS, "file": path.name}
    if described["format"] == FORMAT:
        return Model(path.parent, described)
    from serving.keras_model import KerasModel  # noqa: PLC0415 - it is such a model

    return KerasModel(path.parent / Path(str(described.get("file", "model.keras"))).name, described)


def _described(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _BYTES_MAX:
        raise NoModelError(f"{path} is too large to be a description")
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NoModelError(f"the model in {path.parent} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(described, dict) or described.get("format") not in (FORMAT, KERAS):
        told = described.get("format") if isinstance(described, dict) else None
        raise NoModelError(f"{path} has the format {told!r}; this image serves {FORMAT} and {KERAS}")
    return described
