"""A small model for deployments: it says which pixel is the brightest."""

import io
import json

import numpy as np

from tests.e2e.stack import zip_of


def model(*classes: str, size: int = 2) -> bytes:
    """A zip with a network that says which pixel of *size* is the brightest, by the names *classes*."""
    arrays = io.BytesIO()
    np.savez(arrays, w0=20 * np.eye(size * size, dtype=np.float32), b0=np.zeros(size * size, dtype=np.float32))
    description = {
        "format": "wherry-numpy-mlp/1", "input": {"width": size, "height": size, "channels": 1},
        "classes": classes or [str(number) for number in range(size * size)],
        "layers": [{"weights": "w0", "biases": "b0", "inputs": size * size, "outputs": size * size}],
        "activation": "relu",
    }  # fmt: skip
    return zip_of({"model/model.json": json.dumps(description), "model/model.npz": arrays.getvalue()})


def instance(brightest: int) -> list[float]:
    """The image of four pixels of which that one is the brightest."""
    return [1.0 if number == brightest else 0.0 for number in range(4)]
