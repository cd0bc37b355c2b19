from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from networks.scratch import (
    LogisticRegression,
    MultiLayerPerceptron,
    Perceptron,
    ScratchNetwork,
    with_bias_column,
)

Floats = NDArray[np.float64]
Arrays = list[Floats]
Make = Callable[[], ScratchNetwork]
Naive = Callable[[Arrays, Floats, int], float]
ETA = 0.05


def examples(
    count: int = 60, inputs: int = 12, classes: int = 4
) -> tuple[Floats, NDArray[np.int64]]:
    random = np.random.default_rng(0)
    return random.uniform(0, 1, (count, inputs)), random.integers(0, classes, count)


def softmax(scores: Floats) -> NDArray[np.float64]:
    exps = np.exp(scores - scores.max())
    return exps / exps.sum()


def naive_perceptron(parameters: Arrays, x: Floats, label: int) -> float:
    (weight,) = parameters
    x = with_bias_column(x[None])[0]
    predicted = int(np.argmax(weight @ x))
    if predicted == label:
        return 0.0
    weight[label] += x
    weight[predicted] -= x
    return 1.0


def naive_logistic(parameters: Arrays, x: Floats, label: int) -> float:
    (weight,) = parameters
    x = with_bias_column(x[None])[0]
    probabilities = softmax(weight @ x)
    weight -= ETA * np.outer(probabilities - np.eye(len(weight))[label], x)
    return float(-np.log(probabilities[label]))


def naive_mlp(parameters: Arrays, x: Floats, label: int) -> float:
    weight_1, bias_1, weight_2, bias_2 = parameters
    before = weight_1 @ x + bias_1
    hidden = np.maximum(before, 0)
    probabilities = softmax(weight_2 @ hidden + bias_2)
    error = probabilities - np.eye(len(bias_2))[label]
    back = (weight_2.T @ error) * (before > 0)
    weight_2 -= ETA * np.outer(error, hidden)
    bias_2 -= ETA * error
    weight_1 -= ETA * np.outer(back, x)
    bias_1 -= ETA * back
    return float(-np.log(probabilities[label]))


NETWORKS = [
    pytest.param(lambda: Perceptron(12), naive_perceptron, id="perceptron"),
    pytest.param(lambda: LogisticRegression(12, learning_rate=ETA), naive_logistic, id="logistic"),
    pytest.param(
        lambda: MultiLayerPerceptron(12, hidden_size=7, learning_rate=ETA), naive_mlp, id="mlp"
    ),
]


@pytest.mark.parametrize(("make", "naive"), NETWORKS)
def test_every_update_equals_the_readable_version(make: Make, naive: Naive) -> None:
    network: ScratchNetwork = make()
    reference = [array.copy() for array in network.parameters.values()]
    images, labels = examples()
    for n in range(len(images)):
        loss = network.update(images[n : n + 1], labels[n : n + 1])[0]
        assert loss == pytest.approx(naive(reference, images[n], labels[n]), rel=1e-9, abs=1e-12)
        for ours, theirs in zip(network.parameters.values(), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "naive"), NETWORKS)
def test_examples_of_one_call_are_used_one_by_one(make: Make, naive: Naive) -> None:
    images, labels = examples()
    whole, parts = make(), make()
    losses = whole.update(images, labels)
    one_by_one = [parts.update(images[n : n + 1], labels[n : n + 1])[0] for n in range(len(images))]
    np.testing.assert_allclose(losses, one_by_one)
    for a, b in zip(whole.parameters.values(), parts.parameters.values(), strict=True):
        np.testing.assert_allclose(a, b)


def torch_scores(
    network: ScratchNetwork, parameters: list[torch.Tensor], x: Floats
) -> torch.Tensor:
    image = torch.from_numpy(x)
    if isinstance(network, LogisticRegression):
        return parameters[0] @ torch.cat((image, torch.ones(1, dtype=torch.float64)))
    weight_1, bias_1, weight_2, bias_2 = parameters
    return weight_2 @ F.relu(weight_1 @ image + bias_1) + bias_2


@pytest.mark.parametrize(("make", "naive"), NETWORKS[1:])
def test_hand_written_gradients_equal_autograds_and_finite_differences(
    make: Make, naive: Naive
) -> None:
    network: ScratchNetwork = make()
    images, labels = examples()
    network.update(images[:30], labels[:30])  # away from the initialization
    before = [array.copy() for array in network.parameters.values()]
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in before]
    label = torch.tensor(labels[30])

    def loss_of(parameters: list[torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch_scores(network, parameters, images[30])[None], label[None])

    expected = torch.autograd.grad(loss_of(tensors), tensors)
    network.update(images[30:31], labels[30:31])
    random = np.random.default_rng(0)
    for k, (old, new) in enumerate(zip(before, network.parameters.values(), strict=True)):
        gradient = (old - new) / ETA
        np.testing.assert_allclose(gradient, expected[k].numpy(), rtol=1e-7, atol=1e-9)
        for _ in range(5):
            place = tuple(random.integers(0, size) for size in old.shape)
            slopes = []
            for step in (1e-6, -1e-6):
                moved = [torch.from_numpy(array.copy()) for array in before]
                moved[k][place] += step
                slopes.append(loss_of(moved).item())
            difference = (slopes[0] - slopes[1]) / 2e-6
            assert gradient[place] == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_initializations_and_parameter_counts_match_the_course() -> None:
    def count(network: ScratchNetwork) -> int:
        return sum(array.size for array in network.parameters.values())

    assert count(Perceptron()) == count(LogisticRegression()) == 3_140
    assert not Perceptron().parameters["weight"].any()
    mlp = MultiLayerPerceptron()
    assert count(mlp) == 157_804
    for name in ("weight_1", "weight_2"):
        assert mlp.parameters[name].mean() == pytest.approx(0.1, abs=0.01)
        assert mlp.parameters[name].std() == pytest.approx(0.1, abs=0.01)
    assert not mlp.parameters["bias_1"].any()
    assert not mlp.parameters["bias_2"].any()


def test_scaling_a_perceptrons_scores_keeps_the_predictions_and_avoids_saturation() -> None:
    network = Perceptron(12)
    images, labels = examples(500)
    network.update(1000 * images, labels)
    raw = with_bias_column(images) @ network.parameters["weight"].T
    assert (network.scores(images).argmax(1) == raw.argmax(1)).all()
    assert np.abs(network.scores(images)).max() < 10
