"""A deep network (a multi-layer perceptron with its own backpropagation) that learns to read digits.

Alone, or as one of several workers: then each takes its part of every batch, and the parameter servers hold the
weights. Both ways make the same steps, so they come to the same network.
"""

from pathlib import Path
from typing import Any

import helpers
import numpy as np


def train(data: helpers.Digits, params: dict, outputs: Path, cluster: Any = None) -> dict:
    """Train, save the model (by the first worker), and return what it measures.

    Args:
        data: the images.
        params: `layers` ([64, 32]: the hidden ones), `epochs` (30), `batch` (64), `rate` (0.1), `momentum` (0.9),
            `seed` (0).
        outputs: where the model goes.
        cluster: the other members, where there are any.
    """
    choice = helpers.Choice.of(params)
    network = helpers.Network.fresh(choice.sizes, choice.seed)
    if cluster is None:
        store, part, parts = helpers.Local(network.weights, choice.rate, choice.momentum), 0, 1
    else:
        store, part, parts = helpers.Remote(cluster), cluster.index, len(cluster.workers)
    with store:
        loss = _learn(network, data, choice, store, part, parts)
    if cluster is not None and not cluster.is_chief:
        return {}
    accuracy = float((network.probabilities(data.test_images).argmax(1) == data.test_labels).mean())
    print(f"loss {loss:.6f}, {accuracy:.2%} of {len(data.test_labels)} unseen digits are right", flush=True)
    network.save(outputs)
    return {"loss": loss, "accuracy": accuracy, "epochs": choice.epochs, "images": len(data.labels), "workers": parts}


def serve(params: dict, cluster: Any) -> None:
    """Hold a part of the weights for the workers until they are done.

    Args:
        params: as `train` takes them.
        cluster: the members.
    """
    choice = helpers.Choice.of(params)
    network = helpers.Network.fresh(choice.sizes, choice.seed)
    own = helpers.parts_of(network.weights, len(cluster.servers))[cluster.index]
    helpers.serve(cluster, helpers.Local(own, choice.rate, choice.momentum))


def _learn(
    network: helpers.Network, data: helpers.Digits, choice: helpers.Choice, store: Any, part: int, parts: int
) -> float:
    """Go over the images again and again; return the loss over the last time."""
    random = np.random.default_rng(choice.seed)
    loss = 0.0
    for epoch in range(choice.epochs):
        order = random.permutation(len(data.labels))  # the same for every worker
        total = 0.0
        for start in range(0, len(order), choice.batch):
            batch = order[start : start + choice.batch]
            own = batch[part::parts]
            gradient, lost = network.gradient(data.images[own], data.labels[own])
            network.weights, lost = store.step(gradient, lost, len(batch))
            total += lost
        loss = total / len(order)
        print(f"::metric loss={loss:.6f} step={epoch + 1}")
        print(f"::progress {(epoch + 1) / choice.epochs:.3f}::epoch {epoch + 1} of {choice.epochs}", flush=True)
    return loss
