"""The REST form of TensorFlow Serving: ``{"instances": […]}`` is answered with ``{"predictions": […]}``."""

import base64
import binascii
from typing import Any

import numpy as np

from serving.model import Model
from serving.pictures import pixels

#: Instances of one request.
_INSTANCES_MAX = 4096


def predict(model: Model, asked: object) -> dict[str, Any]:
    """Return what *model* says.

    An instance is an image as ``{"b64": "…"}`` (PNG, JPEG, …: scaled to what the model takes), or its numbers, from 0
    to 1, in lists of any depth.

    Raises:
        ValueError: something is not as it must be.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("instances"), list) or not asked["instances"]:
        raise ValueError('send {"instances": [...]}')
    if len(asked["instances"]) > _INSTANCES_MAX:
        raise ValueError(f"at most {_INSTANCES_MAX} instances at a time")
    _check_size(model, asked)
    rows = [_row(model, index, one) for index, one in enumerate(asked["instances"])]
    found = model.probabilities(np.stack(rows))
    labels = model.labels(found)
    return {
        "predictions": [
            {"class": label, "probability": float(row.max()), "probabilities": [float(value) for value in row]}
            for label, row in zip(labels, found, strict=True)
        ]
    }


def _check_size(model: Model, asked: dict[str, Any]) -> None:
    for name in ("width", "height", "channels"):
        if asked.get(name) not in (None, getattr(model, name)):
            takes = f"{model.width} x {model.height} pixels of {model.channels} channels"
            raise ValueError(f"{name} is {asked[name]}, and the model takes {takes}")


def _row(model: Model, index: int, instance: object) -> np.ndarray:
    if isinstance(instance, dict) and isinstance(text := instance.get("b64"), str):
        try:
            return pixels(base64.b64decode(text, validate=True), model.width, model.height, model.channels)
        except binascii.Error as error:
            raise ValueError(f"instances[{index}].b64 is no base64: {error}") from error
        except ValueError as error:
            raise ValueError(f"instances[{index}]: {error}") from error
    try:
        row = np.asarray(instance, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"instances[{index}] is neither an image nor lists of numbers") from error
    if row.size != model.size or not np.isfinite(row).all():
        raise ValueError(f"instances[{index}] has {row.size} numbers; the model takes {model.size} that are finite")
    return row
