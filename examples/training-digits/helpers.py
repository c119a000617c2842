"""The network, and the weights on parameter servers: what the other two files share."""

import itertools
import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

WIDTH = HEIGHT = 8
PIXELS, CLASSES = WIDTH * HEIGHT, 10
#: Seconds that a member waits for another, to come up and then to answer.
PATIENCE_S = 120.0
#: A message: how many numbers, then the loss, then the numbers. No numbers: the worker is done.
_HEAD = struct.Struct("!Id")


@dataclass(frozen=True)
class Digits:
    """Images as rows of grey values from 0 to 1, and the digit of each."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Choice:
    """The parameters of a training."""

    sizes: tuple[int, ...]
    epochs: int
    batch: int
    rate: float
    momentum: float
    seed: int

    @classmethod
    def of(cls, params: dict) -> "Choice":
        """Return what *params* say.

        Raises:
            ValueError: there is no such parameter, or not such a value.
        """
        known = {"layers", "epochs", "batch", "rate", "momentum", "seed", "test_share"}
        if unknown := sorted(set(params) - known):
            raise ValueError(f"there is no parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
        hidden = [int(size) for size in params.get("layers", (64, 32))]
        epochs, batch = int(params.get("epochs", 30)), int(params.get("batch", 64))
        rate, momentum = float(params.get("rate", 0.1)), float(params.get("momentum", 0.9))
        if min([epochs, batch, *hidden]) < 1 or rate <= 0 or not 0 <= momentum < 1:
            raise ValueError("layers, epochs, batch and rate are above 0, momentum is from 0 to less than 1")
        return cls((PIXELS, *hidden, CLASSES), epochs, batch, rate, momentum, int(params.get("seed", 0)))


# --- the network -----------------------------------------------------------------------------------------------------


class Network:
    """Layers of neurons: rectified sums, and at the end the probability of each class.

    Attributes:
        weights: all weights and biases, as one vector.
    """

    def __init__(self, sizes: Sequence[int], weights: np.ndarray) -> None:
        self.sizes = tuple(sizes)
        self.weights = weights

    @classmethod
    def fresh(cls, sizes: Sequence[int], seed: int) -> "Network":
        """Return a network that knows nothing. The same seed gives the same one."""
        random = np.random.default_rng(seed)
        layers = [
            (random.normal(0, np.sqrt(2 / above), (above, below)), np.zeros(below))
            for above, below in itertools.pairwise(sizes)
        ]
        return cls(sizes, np.concatenate([part.ravel() for layer in layers for part in layer]))

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the weights and biases of each layer, as parts of the vector."""
        found, start = [], 0
        for above, below in itertools.pairwise(self.sizes):
            middle, end = start + above * below, start + (above + 1) * below
            found.append((self.weights[start:middle].reshape(above, below), self.weights[middle:end]))
            start = end
        return found

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return how probable each class is, a row for each image."""
        return self._forward(images)[-1]

    def gradient(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the gradient of the cross entropy, summed over the images, and that sum itself."""
        values = self._forward(images)
        rows = np.arange(len(labels))
        loss = -np.log(np.maximum(values[-1][rows, labels], 1e-300)).sum()
        error = values[-1].copy()
        error[rows, labels] -= 1
        parts: list[np.ndarray] = []
        for (weights, _), inputs in zip(reversed(self.layers()), reversed(values[:-1]), strict=True):
            parts += [error.sum(0), (inputs.T @ error).ravel()]
            error = (error @ weights.T) * (inputs > 0)
        return np.concatenate(parts[::-1]), float(loss)

    def _forward(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the input and then the output of each layer."""
        values = [images]
        layers = self.layers()
        for weights, biases in layers[:-1]:
            values.append(np.maximum(values[-1] @ weights + biases, 0))
        weights, biases = layers[-1]
        scores = values[-1] @ weights + biases
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return [*values, powers / powers.sum(1, keepdims=True)]

    def save(self, folder: Path) -> None:
        """Write the network as `model.npz` (arrays ``w0``, ``b0``, ``w1``, …) and `model.json` (what they are)."""
        arrays: dict[str, np.ndarray] = {}
        described = []
        for number, (weights, biases) in enumerate(self.layers()):
            arrays |= {f"w{number}": weights.astype(np.float32), f"b{number}": biases.astype(np.float32)}
            inputs, outputs = weights.shape
            described.append({"weights": f"w{number}", "biases": f"b{number}", "inputs": inputs, "outputs": outputs})
        np.savez(folder / "model.npz", **arrays)
        description = {
            "format": "wherry-numpy-mlp/1",
            "input": {"width": WIDTH, "height": HEIGHT, "channels": 1},
            "classes": [str(digit) for digit in range(CLASSES)],
            "layers": described,
            "activation": "relu",
        }
        (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n")


# --- where the weights are -------------------------------------------------------------------------------------------


class Local:
    """Weights that are here. A step goes against the gradient, with some of the step before (momentum)."""

    def __init__(self, weights: np.ndarray, rate: float, momentum: float) -> None:
        self.weights = weights.copy()
        self._rate, self._momentum = rate, momentum
        self._last = np.zeros_like(weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, gradient: np.ndarray, loss: float, count: int) -> tuple[np.ndarray, float]:
        """Take the gradient and the loss, each a sum over *count* images; return the new weights, and the loss."""
        self._last = self._momentum * self._last - self._rate * gradient / count
        self.weights = self.weights + self._last
        return self.weights, loss


class Remote:
    """Weights on parameter servers: each has a part of them, and makes its step once it has heard every worker."""

    def __init__(self, cluster: Any) -> None:
        self._servers = [_Peer(_connect(address), f"parameter server {_name(address)}") for address in cluster.servers]
        for server in self._servers:
            server.send(np.array([cluster.index], dtype=np.float64))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        for server in self._servers:
            if kind is None:
                server.send(np.empty(0))
            server.close()

    def step(self, gradient: np.ndarray, loss: float, count: int) -> tuple[np.ndarray, float]:
        """Send this worker's sums, and return the weights that come of those of all workers, and the loss of all.

        Raises:
            ConnectionError: a parameter server is gone, or does not answer.
        """
        for server, part in zip(self._servers, parts_of(gradient, len(self._servers)), strict=True):
            server.send(np.append(part, count), loss)
        answers = [server.receive() for server in self._servers]
        return np.concatenate([weights for weights, _ in answers]), answers[0][1]


def parts_of(vector: np.ndarray, servers: int) -> list[np.ndarray]:
    """Return the part of *vector* that each server has."""
    return np.array_split(vector, servers)


def serve(cluster: Any, store: Local) -> None:
    """Make step after step with all workers until they are done.

    Raises:
        ConnectionError: a worker is gone, or sends nothing.
    """
    workers = _gathered(cluster.here[1], len(cluster.workers))
    print(f"{len(workers)} workers are here", flush=True)
    steps = 0
    while True:
        heard = [worker.receive() for worker in workers]
        if not any(len(numbers) for numbers, _ in heard):
            break
        if not all(len(numbers) for numbers, _ in heard):
            raise ConnectionError("some workers are done and others are not: they have not the same data or parameters")
        # In the workers' order, so that a second run adds up to the last digit to the same.
        gradient = np.sum([numbers[:-1] for numbers, _ in heard], axis=0)
        weights, loss = store.step(gradient, sum(loss for _, loss in heard), int(heard[0][0][-1]))
        for worker in workers:
            worker.send(weights, loss)
        steps += 1
    print(f"the workers are done, after {steps} steps", flush=True)


def _gathered(port: int, count: int) -> list["_Peer"]:
    """Return the connections of all workers, in their order."""
    found: dict[int, _Peer] = {}
    with socket.create_server(("", port), backlog=count) as listener:
        listener.settimeout(PATIENCE_S)
        while len(found) < count:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(count)) - set(found))
                raise ConnectionError(f"workers {missing} have not come within {PATIENCE_S:g} s") from None
            peer = _Peer(connection, "a worker")
            numbers, _ = peer.receive()
            peer.name = f"worker {int(numbers[0])}"
            found[int(numbers[0])] = peer
    return [found[index] for index in range(count)]


def _connect(address: tuple[str, int]) -> socket.socket:
    """Connect to a server that may be a moment from listening."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(address, timeout=PATIENCE_S)
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(f"parameter server {_name(address)} cannot be reached: {error}") from None
            time.sleep(0.1)


def _name(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


class _Peer:
    """The other end of a connection. Vectors of numbers go to and fro, each with a loss."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.name = name
        self._connection = connection
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, numbers: np.ndarray, loss: float = 0.0) -> None:
        try:
            self._connection.sendall(_HEAD.pack(len(numbers), loss) + numbers.astype("<f8").tobytes())
        except OSError as error:
            raise ConnectionError(f"{self.name} is gone: {error}") from None

    def receive(self) -> tuple[np.ndarray, float]:
        count, loss = _HEAD.unpack(self._read(_HEAD.size))
        return np.frombuffer(self._read(count * 8), dtype="<f8"), loss

    def close(self) -> None:
        self._connection.close()

    def _read(self, size: int) -> bytes:
        held = bytearray()
        while len(held) < size:
            try:
                piece = self._connection.recv(size - len(held))
            except OSError as error:
                raise ConnectionError(f"{self.name} is gone: {error}") from None
            if not piece:
                raise ConnectionError(f"{self.name} is gone: it has closed the connection in the middle")
            held += piece
        return bytes(held)
