"""The network of TensorFlow's quick start for beginners: Dense(128, relu), Dropout(0.2), Dense(10); Adam."""

import json
from pathlib import Path

import numpy as np
from helpers import Adam, Dense, Dropout, softmax


def train(data: tuple, params: dict, outputs: Path) -> dict:
    """Fit, evaluate and save, as the tutorial does.

    Args:
        data: what `preprocessing.prepare` has returned.
        params: `epochs` (15; the tutorial's 5 are of 40 times as many images), `batch` (32), `seed` (0).
        outputs: where the model goes.
    """
    (images, digits), (test_images, test_digits) = data
    epochs, batch = int(params.get("epochs", 15)), int(params.get("batch", 32))
    random = np.random.default_rng(int(params.get("seed", 0)))
    hidden = Dense(random, images.shape[1], 128, relu=True)
    dropout = Dropout(random, 0.2)
    last = Dense(random, 128, 10, relu=False)
    adam = Adam()
    loss = 0.0
    for epoch in range(epochs):
        order, total = random.permutation(len(images)), 0.0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            found = softmax(last.forward(dropout.forward(hidden.forward(images[chosen]))))
            rows = np.arange(len(chosen))
            total -= np.log(found[rows, digits[chosen]]).sum()
            error = found / len(chosen)
            error[rows, digits[chosen]] -= 1 / len(chosen)
            hidden.backward(dropout.backward(last.backward(error)))
            adam.apply([hidden, last])
        loss = total / len(images)
        print(f"::metric loss={loss:.4f} step={epoch + 1}")
        print(f"::progress {(epoch + 1) / epochs:.2f}::epoch {epoch + 1} of {epochs}", flush=True)
    accuracy = float((last.forward(hidden.forward(test_images)).argmax(1) == test_digits).mean())
    _save(outputs, [hidden, last])
    return {"loss": float(loss), "accuracy": accuracy}


def _save(folder: Path, layers: list[Dense]) -> None:
    arrays, described = {}, []
    for number, layer in enumerate(layers):
        weights, biases = layer.weights
        arrays |= {f"w{number}": weights.astype(np.float32), f"b{number}": biases.astype(np.float32)}
        inputs, count = weights.shape
        described.append({"weights": f"w{number}", "biases": f"b{number}", "inputs": inputs, "outputs": count})
    np.savez(folder / "model.npz", **arrays)
    description = {
        "format": "wherry-numpy-mlp/1",
        "input": {"width": 8, "height": 8, "channels": 1},
        "classes": [str(digit) for digit in range(10)],
        "layers": described,
        "activation": "relu",
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n")
