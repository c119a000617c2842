"""The same network in Keras' own lines, for an image that has TensorFlow."""

import json
from pathlib import Path

import tensorflow as tf


def train(data: tuple, params: dict, outputs: Path) -> dict:
    """Fit, evaluate and save, as the tutorial does; Keras' bar is the training's progress, its history the metrics.

    Args:
        data: what `preprocessing.prepare` has returned.
        params: `epochs` (15; the tutorial's 5 are of 40 times as many images), `batch` (32), `seed` (0).
        outputs: where the model goes.
    """
    (images, digits), (test_images, test_digits) = data
    tf.keras.utils.set_random_seed(int(params.get("seed", 0)))
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((64,)),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dropout(0.2),
            tf.keras.layers.Dense(10),
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    history = model.fit(images, digits, epochs=int(params.get("epochs", 15)), batch_size=int(params.get("batch", 32)))
    test_loss, test_accuracy = model.evaluate(test_images, test_digits, verbose=2)
    _save(outputs, tf.keras.Sequential([model, tf.keras.layers.Softmax()]))
    return {**history.history, "test_loss": test_loss, "test_accuracy": test_accuracy}


def _save(folder: Path, model: tf.keras.Model) -> None:
    model.save(folder / "model.keras")
    description = {
        "format": "keras",
        "file": "model.keras",
        "input": {"width": 8, "height": 8, "channels": 1},
        "classes": [str(digit) for digit in range(10)],
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n")
