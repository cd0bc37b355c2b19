"""Checks of docs/boolean_functions.md on every input of small functions."""

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from networks.boolean import IntervalMLP, interval_labels, sign
from networks.separability import Certificate, Separation, separate, signs


def intervals(dimension: int) -> list[tuple[int, int]]:
    """Return all intervals with −D ≤ A ≤ B ≤ D."""
    values = range(-dimension, dimension + 1)
    return [(low, high) for low, high in product(values, values) if low <= high]


def brute_force(dimension: int, low: int, high: int) -> list[int]:
    """Compute f by its definition, in integers, on all inputs."""
    inputs = product((-1, 1), repeat=dimension)
    return [1 if low <= sum(x) <= high else -1 for x in inputs]


@pytest.mark.parametrize("activation", ["sign", "relu"])
@pytest.mark.parametrize("dimension", range(1, 11))
def test_two_hidden_units_compute_every_interval_with_the_stated_margin(
    dimension: int, activation: str
) -> None:
    x = torch.from_numpy(signs(dimension)).double()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    # Corners of the box of perturbations that must not change the output.
    away = 0.999 / ((2 if activation == "sign" else 4) * dimension) * directions.sign()
    for low, high in intervals(dimension):
        network = IntervalMLP(dimension, low, high, activation).double()  # type: ignore[arg-type]
        expected = torch.tensor(brute_force(dimension, low, high), dtype=torch.float64)
        assert all((weights == weights.round()).all() for weights in network.buffers())
        assert (sign(network(x)[:, 0]) == expected).all()
        assert (interval_labels(x, low, high) == expected).all()
        preactivations = network.preactivations(x)
        assert preactivations.shape == (2**dimension, 3)
        assert (preactivations.abs() >= 1).all()
        assert (preactivations.abs() % 2 == 1).all()  # odd integers
        assert (sign(network(x + away)[:, 0]) == expected).all()
        assert (sign(network(x - away)[:, 0]) == expected).all()


@pytest.mark.parametrize("dimension", range(1, 9))
def test_the_linear_program_agrees_with_the_closed_form_and_proves_it(dimension: int) -> None:
    points = signs(dimension)
    totals = range(-dimension, dimension + 1, 2)  # the parity of D
    for low, high in intervals(dimension):
        labels = np.array(brute_force(dimension, low, high))
        found = separate(points, labels)
        # Separable iff f changes its sign at most once as the total grows.
        values = [low <= total <= high for total in totals]
        changes = sum(a != b for a, b in pairwise(values))
        assert isinstance(found, Separation) == (changes <= 1), (low, high)
        check(found, points.tolist(), labels.tolist())


def check(found: Separation | Certificate, points: list[list[int]], labels: list[int]) -> None:
    """Verify a proof in integers, independently of the code that found it."""
    if isinstance(found, Separation):
        for point, label in zip(points, labels, strict=True):
            score = sum(w * x for w, x in zip(found.weights, point, strict=True)) + found.bias
            assert isinstance(score, int)
            assert label * score > 0
        return
    means = []
    for mixture, label in ((found.positives, 1), (found.negatives, -1)):
        assert mixture
        assert sum(mixture.values()) == 1
        for corner, weight in mixture.items():
            assert isinstance(weight, Fraction)
            assert weight > 0
            assert labels[points.index(list(corner))] == label
        columns = zip(*mixture, strict=True)
        weights = list(mixture.values())
        means.append([sum(w * x for w, x in zip(weights, c, strict=True)) for c in columns])
    assert means[0] == means[1]


def test_other_functions_of_three_inputs_are_decided_too() -> None:
    """Of the 256 functions of three inputs 104 are computed by one perceptron (Muroga 1971)."""
    points = signs(3)
    separable = 0
    for values in product((-1, 1), repeat=8):
        found = separate(points, np.array(values))
        check(found, points.tolist(), list(map(int, values)))
        separable += isinstance(found, Separation)
    assert separable == 104


def test_a_wrong_proof_is_rejected() -> None:
    points, xor = signs(2), np.array([-1, 1, 1, -1])
    assert not Separation((1, 1), 1).is_valid(points, xor)
    half = Fraction(1, 2)
    right = Certificate({(-1, 1): half, (1, -1): half}, {(-1, -1): half, (1, 1): half})
    assert right.is_valid(points, xor)
    assert not Certificate(right.negatives, right.positives).is_valid(points, xor)
    other: dict[tuple[int, ...], Fraction] = {(-1, -1): Fraction(1, 3), (1, 1): Fraction(2, 3)}
    assert not Certificate(right.positives, other).is_valid(points, xor)


def test_the_four_point_argument() -> None:
    """n₁ + n₂ = p₁ + p₂ for every interval that excludes both extreme sums, up to D = 8."""
    for dimension in range(2, 9):
        attained = range(-dimension, dimension + 1, 2)
        for first, last in product(attained, attained):
            if first > last or first == -dimension or last == dimension:
                continue
            plus = (first - 2 + dimension) // 2  # number of +1 in the lower negative input
            free = (last + 2 - (first - 2)) // 2  # number of further +1 in the upper one
            lower = np.array([1] * plus + [-1] * (dimension - plus))
            upper = lower + 2 * np.array(
                [plus <= i < plus + free for i in range(dimension)], dtype=int
            )
            inner = lower.copy()
            inner[plus] = 1
            other = upper.copy()
            other[plus] = -1
            assert (lower + upper == inner + other).all()
            for point, positive in ((lower, 0), (upper, 0), (inner, 1), (other, 1)):
                assert set(point.tolist()) <= {-1, 1}
                assert (first <= point.sum() <= last) == positive


def test_a_perceptron_is_written_as_its_formula() -> None:
    assert str(separate(signs(2), np.array([1, 1, 1, -1]))) == "sign(− 1·x1 − 1·x2 + 1)"
    assert str(Separation((2, 0, -3), 0)) == "sign(2·x1 − 3·x3)"


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((2, 1, 0), "low 1 is above high 0"),
        ((2, -3, 0), "low -3 is beyond ±2"),
        ((2, 0, 3), "high 3 is beyond ±2"),
        ((0, 0, 0), "dimension 0 is less than 1"),
    ],
)
def test_invalid_intervals_are_rejected(interval: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntervalMLP(*interval)
