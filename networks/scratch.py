"""Classifiers from scratch: numpy, hand-written gradients, one example at a time.

No machine-learning library is used. numba compiles the loops over examples. Each compiled function
is a textbook update; the tests compare every update with a readable numpy version. Images are rows
of an (N, inputs) float array, labels are (N,) integers, parameters are float64.
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
        """Update the parameters with one example after another, in the given order.

        Args:
            images: (N, inputs).
            labels: (N,).

        Returns:
            (N,) losses, each before its example's update; for the perceptron, 1 for a mistake and 0
            otherwise.
        """

    @abstractmethod
    def scores(self, images: Floats) -> Floats:
        """Return the scores (N, classes) of images; the highest one is the prediction."""


def with_bias_column(images: Floats) -> Floats:
    """Append a column of ones: the last column of a weight matrix is then its bias."""
    return np.hstack((images, np.ones((len(images), 1), images.dtype)))


class _Linear(ScratchNetwork):
    """Scores W·(x, 1), W (classes, inputs + 1) starting from zero."""

    def __init__(self, inputs: int = 784, classes: int = 4) -> None:
        self.parameters = {"weight": np.zeros((classes, inputs + 1))}

    def scores(self, images: Floats) -> Floats:
        return with_bias_column(images) @ self.parameters["weight"].T


class Perceptron(_Linear):
    """Multi-class perceptron (Rosenblatt 1958; Collins 2002 for several classes).

    On a mistake, the example is added to the row of the correct class and subtracted from that of
    the predicted class.

    Args:
        inputs: number of pixels per image.
        classes: number of classes.
    """

    def update(self, images: Floats, labels: Integers) -> Floats:
        return _update_perceptron(self.parameters["weight"], images, labels)

    def scores(self, images: Floats) -> Floats:
        """Return the scores (N, classes) of the weight matrix scaled to norm 1.

        The predictions do not depend on the scale. A perceptron's weights grow until a softmax
        over the scores is exactly 0 or 1, and an AUC cannot be computed from such ties.
        """
        return super().scores(images) / max(float(np.linalg.norm(self.parameters["weight"])), 1e-12)


class LogisticRegression(_Linear):
    """Multinomial logistic regression by stochastic gradient descent, W −= η (p − e_y) (x, 1)ᵀ.

    Args:
        inputs: number of pixels per image.
        classes: number of classes.
        learning_rate: learning rate η.
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
        inputs: number of pixels per image.
        hidden_size: number of hidden units.
        classes: number of classes.
        learning_rate: learning rate η.
        seed: seed of the initialization.
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


# fastmath allows the compiler to reorder sums, which is needed to vectorize the dot products.


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
    """Replace the scores by the gradient p − e_y, in place, and return the loss −log p_y."""
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
            if hidden[h] > 0.0:  # the ReLU's gradient is 0 elsewhere
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
