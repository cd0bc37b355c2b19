"""Classifiers by plain linear algebra: numpy, hand-written gradients, one example at a time.

No machine-learning library. The loops over examples are compiled by numba; each kernel is the
textbook's update, and the tests compare it, update for update, with a readable numpy version.
Images are rows of a (N, inputs) float array, labels integers (N,). Parameters are float64.
"""

from abc import ABC, abstractmethod

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class ScratchNetwork(ABC):
    """A classifier with numpy parameters.

    Attributes:
        parameters: arrays by name; training changes them in place.
    """

    parameters: dict[str, Floats]

    @abstractmethod
    def update(self, images: Floats, labels: Integers) -> Floats:
        """Update the parameters by one example after another, in the given order.

        Returns:
            For each example (N,) its loss before its update; for the perceptron 1 for a mistake.
        """

    @abstractmethod
    def scores(self, images: Floats) -> Floats:
        """Return the scores (N, classes); the highest is the prediction."""


def with_bias_column(images: Floats) -> Floats:
    """Append a column of ones, so that a weight matrix holds its bias as its last column."""
    return np.hstack((images, np.ones((len(images), 1), images.dtype)))


class _Linear(ScratchNetwork):
    """Scores W·(x, 1), W (classes, inputs + 1) starting from zero."""

    def __init__(self, inputs: int = 784, classes: int = 4) -> None:
        self.parameters = {"weight": np.zeros((classes, inputs + 1))}

    def scores(self, images: Floats) -> Floats:
        return with_bias_column(images) @ self.parameters["weight"].T


class Perceptron(_Linear):
    """Multi-class perceptron (Rosenblatt 1958; Collins 2002 for several classes).

    On a mistake the example is added to the right class's row and subtracted from the predicted
    one's.

    Args:
        inputs: pixels of an image.
        classes: number of classes.
    """

    def update(self, images: Floats, labels: Integers) -> Floats:
        return _update_perceptron(self.parameters["weight"], images, labels)

    def scores(self, images: Floats) -> Floats:
        """Return the scores for a weight matrix of norm 1: the same predictions.

        A perceptron's weights have no scale of their own, and grow until a softmax over the
        scores is 0 or 1 in floating point, without an order left to compute an AUC from.
        """
        return super().scores(images) / max(float(np.linalg.norm(self.parameters["weight"])), 1e-12)


class LogisticRegression(_Linear):
    """Multinomial logistic regression by stochastic gradient descent, W −= η (p − e_y) (x, 1)ᵀ.

    Args:
        inputs: pixels of an image.
        classes: number of classes.
        learning_rate: η.
    """

    def __init__(self, inputs: int = 784, classes: int = 4, learning_rate: float = 0.001) -> None:
        super().__init__(inputs, classes)
        self.learning_rate = learning_rate

    def update(self, images: Floats, labels: Integers) -> Floats:
        return _update_logistic(self.parameters["weight"], images, labels, self.learning_rate)


class MultiLayerPerceptron(ScratchNetwork):
    """One hidden ReLU layer and softmax cross-entropy, by stochastic gradient descent.

    Weights start from N(0.1, 0.1²), biases from 0: the course's initialization.

    Args:
        inputs: pixels of an image.
        hidden_size: hidden units.
        classes: number of classes.
        learning_rate: η.
        seed: of the initialization.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden_size: int = 200,
        classes: int = 4,
        learning_rate: float = 0.001,
        seed: int = 42,
    ) -> None:
        random = np.random.RandomState(seed)  # the course's generator
        self.learning_rate = learning_rate
        self.parameters = {
            "weight_1": random.normal(0.1, 0.1, (hidden_size, inputs)),
            "bias_1": np.zeros(hidden_size),
            "weight_2": random.normal(0.1, 0.1, (classes, hidden_size)),
            "bias_2": np.zeros(classes),
        }

    def update(self, images: Floats, labels: Integers) -> Floats:
        weight_1, bias_1, weight_2, bias_2 = self.parameters.values()
        return _update_mlp(weight_1, bias_1, weight_2, bias_2, images, labels, self.learning_rate)

    def scores(self, images: Floats) -> Floats:
        weight_1, bias_1, weight_2, bias_2 = self.parameters.values()
        return np.maximum(images @ weight_1.T + bias_1, 0) @ weight_2.T + bias_2


# Fast maths lets the compiler reorder sums, which is what vectorizes the dot products.


@njit(cache=True, fastmath=True)
def _linear_scores(weight: Floats, x: Floats, scores: Floats) -> None:
    classes, inputs = weight.shape[0], x.shape[0]
    for c in range(classes):
        total = weight[c, inputs]
        for i in range(inputs):
            total += weight[c, i] * x[i]
        scores[c] = total


@njit(cache=True, fastmath=True)
def _softmax_loss(scores: Floats, label: int) -> float:
    """Turn scores into p − e_y, the gradient by the scores, and return −log p_y."""
    scores -= scores.max()
    loss = -scores[label]
    for c in range(scores.shape[0]):
        scores[c] = np.exp(scores[c])
    total = scores.sum()
    scores /= total
    scores[label] -= 1.0
    return loss + np.log(total)


@njit(cache=True, fastmath=True)
def _update_perceptron(weight: Floats, images: Floats, labels: Integers) -> Floats:
    count, inputs = images.shape
    mistakes = np.zeros(count)
    scores = np.empty(weight.shape[0])
    for n in range(count):
        x, label = images[n], labels[n]
        _linear_scores(weight, x, scores)
        predicted = scores.argmax()
        if predicted != label:
            mistakes[n] = 1.0
            for i in range(inputs):
                weight[label, i] += x[i]
                weight[predicted, i] -= x[i]
            weight[label, inputs] += 1.0
            weight[predicted, inputs] -= 1.0
    return mistakes


@njit(cache=True, fastmath=True)
def _update_logistic(
    weight: Floats, images: Floats, labels: Integers, learning_rate: float
) -> Floats:
    count, inputs = images.shape
    losses = np.empty(count)
    gradient = np.empty(weight.shape[0])
    for n in range(count):
        x = images[n]
        _linear_scores(weight, x, gradient)
        losses[n] = _softmax_loss(gradient, labels[n])
        for c in range(weight.shape[0]):
            step = learning_rate * gradient[c]
            for i in range(inputs):
                weight[c, i] -= step * x[i]
            weight[c, inputs] -= step
    return losses


@njit(cache=True, fastmath=True)
def _update_mlp(
    weight_1: Floats,
    bias_1: Floats,
    weight_2: Floats,
    bias_2: Floats,
    images: Floats,
    labels: Integers,
    learning_rate: float,
) -> Floats:
    count, inputs = images.shape
    hidden_size, classes = weight_1.shape[0], weight_2.shape[0]
    losses = np.empty(count)
    hidden = np.empty(hidden_size)
    gradient = np.empty(classes)
    for n in range(count):
        x = images[n]
        for h in range(hidden_size):
            total = bias_1[h]
            for i in range(inputs):
                total += weight_1[h, i] * x[i]
            hidden[h] = max(total, 0.0)
        for c in range(classes):
            total = bias_2[c]
            for h in range(hidden_size):
                total += weight_2[c, h] * hidden[h]
            gradient[c] = total
        losses[n] = _softmax_loss(gradient, labels[n])
        for h in range(hidden_size):
            if hidden[h] > 0.0:  # elsewhere the ReLU passes no gradient on
                back = 0.0
                for c in range(classes):
                    back += weight_2[c, h] * gradient[c]
                step = learning_rate * back
                for i in range(inputs):
                    weight_1[h, i] -= step * x[i]
                bias_1[h] -= step
        for c in range(classes):
            step = learning_rate * gradient[c]
            for h in range(hidden_size):
                weight_2[c, h] -= step * hidden[h]
            bias_2[c] -= step
    return losses
