"""The layers and the optimiser of the tutorial, in NumPy."""

import numpy as np


class Dense:
    """A layer in which every neuron hears every input."""

    def __init__(self, random: np.random.Generator, inputs: int, outputs: int, *, relu: bool) -> None:
        limit = np.sqrt(6 / (inputs + outputs))  # Glorot's, as in Keras
        self.weights = [random.uniform(-limit, limit, (inputs, outputs)), np.zeros(outputs)]
        self._relu = relu

    def forward(self, inputs: np.ndarray) -> np.ndarray:
        self._inputs = inputs
        sums = inputs @ self.weights[0] + self.weights[1]
        self._outputs = np.maximum(sums, 0) if self._relu else sums
        return self._outputs

    def backward(self, error: np.ndarray) -> np.ndarray:
        error = error * (self._outputs > 0) if self._relu else error
        self.gradients = [self._inputs.T @ error, error.sum(0)]
        return error @ self.weights[0].T


class Dropout:
    """Silences a share of the neurons while it learns."""

    def __init__(self, random: np.random.Generator, share: float) -> None:
        self._random, self._share = random, share

    def forward(self, inputs: np.ndarray) -> np.ndarray:
        self._kept = (self._random.random(inputs.shape) >= self._share) / (1 - self._share)
        return inputs * self._kept

    def backward(self, error: np.ndarray) -> np.ndarray:
        return error * self._kept


class Adam:
    """The optimiser `adam`, with Keras' numbers."""

    def __init__(self, rate: float = 0.001, first: float = 0.9, second: float = 0.999) -> None:
        self._rate, self._first, self._second, self._step = rate, first, second, 0
        self._means: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def apply(self, layers: list[Dense]) -> None:
        self._step += 1
        pairs = [pair for layer in layers for pair in zip(layer.weights, layer.gradients, strict=True)]
        for number, (weights, gradient) in enumerate(pairs):
            mean, square = self._means.get(number, (np.zeros_like(weights), np.zeros_like(weights)))
            mean = self._first * mean + (1 - self._first) * gradient
            square = self._second * square + (1 - self._second) * gradient**2
            self._means[number] = mean, square
            scale = np.sqrt(1 - self._second**self._step) / (1 - self._first**self._step)
            np.subtract(weights, self._rate * scale * mean / (np.sqrt(square) + 1e-7), out=weights)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
