"""Can one perceptron compute a Boolean function? Weights if it can, a certificate if it cannot.

A perceptron with w·x + b > 0 on the positive and < 0 on the negative points exists iff no convex
combination of positive points equals one of negative points (the separating hyperplane theorem): at
a common point, w·x + b would have to be above and below 0. Linear programming finds one or the
other in floating point; the result is verified in exact arithmetic before it is returned.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Point = tuple[int, ...]
Mixture = dict[Point, Fraction]
"""A convex combination: weights by point."""


@dataclass(frozen=True)
class Separation:
    """A perceptron that computes the function: y (w·x + b) ≥ 1 at every point, in integers."""

    weights: Point
    bias: int

    def __str__(self) -> str:
        """Return the perceptron as a formula, such as ``sign(− 1·x1 + 2·x3 + 1)``."""
        terms = [(w, f"·x{i}") for i, w in enumerate(self.weights, 1) if w]
        terms += [(self.bias, "")] if self.bias else []
        total = " ".join(f"{'+' if factor > 0 else '−'} {abs(factor)}{x}" for factor, x in terms)
        return f"sign({total.removeprefix('+ ')})"

    def is_valid(self, points: NDArray[np.int64], labels: NDArray[np.int64]) -> bool:
        """Check the perceptron at all points in exact arithmetic."""
        scores = points.astype(object) @ np.array(self.weights, dtype=object) + self.bias
        return all(y * score > 0 for y, score in zip(labels.tolist(), scores, strict=True))


@dataclass(frozen=True)
class Certificate:
    """Two convex combinations, one of positive and one of negative points, with equal means."""

    positives: Mixture
    negatives: Mixture

    def __str__(self) -> str:
        """Return the mean as a point, such as ``(0, 1/2)``."""
        return f"({', '.join(map(str, self.common_mean()))})"

    def common_mean(self) -> tuple[Fraction, ...]:
        """Return the point that both combinations are."""
        return mean(self.positives)

    def is_valid(self, points: NDArray[np.int64], labels: NDArray[np.int64]) -> bool:
        """Check both combinations in exact arithmetic."""
        label_of = dict(zip(map(tuple, points.tolist()), labels.tolist(), strict=True))
        return mean(self.positives) == mean(self.negatives) and all(
            sum(mixture.values()) == 1
            and all(weight > 0 and label_of[point] == label for point, weight in mixture.items())
            for mixture, label in ((self.positives, 1), (self.negatives, -1))
        )


def mean(mixture: Mixture) -> tuple[Fraction, ...]:
    """Return the point that a convex combination is."""
    coordinates = zip(*mixture, strict=True)
    weights = list(mixture.values())
    return tuple(
        sum((weight * x for weight, x in zip(weights, column, strict=True)), Fraction(0))
        for column in coordinates
    )


def separate(points: NDArray[np.int64], labels: NDArray[np.int64]) -> Separation | Certificate:
    """Decide whether one perceptron computes a function, and prove it.

    Args:
        points: (N, D) integers, without duplicates.
        labels: (N,) of +1 and −1.

    Raises:
        ArithmeticError: if the solver's result does not hold in exact arithmetic.
    """
    found = find_certificate(points, labels) or find_separation(points, labels)
    if found is None or not found.is_valid(points, labels):
        raise ArithmeticError("the linear program was not solved accurately enough for a proof")
    return found


def find_certificate(points: NDArray[np.int64], labels: NDArray[np.int64]) -> Certificate | None:
    """Find λ, μ ≥ 0, each of sum 1, with Σ λᵢ pᵢ = Σ μⱼ nⱼ; None if there are none."""
    positive = (labels > 0).astype(float)
    # One column per point, one row per coordinate and sum: a vertex has at most D + 2 points.
    conditions = np.vstack(((points * labels[:, None]).T, positive, 1 - positive))
    right = np.array([0.0] * points.shape[1] + [1.0, 1.0])
    solved = linprog(np.zeros(len(points)), A_eq=conditions, b_eq=right, method="highs-ds")
    if solved.status != 0:
        return None
    mixtures: dict[int, Mixture] = {1: {}, -1: {}}
    for i in np.flatnonzero(solved.x > 1e-9):
        weight = Fraction(solved.x[i]).limit_denominator(1_000_000)
        mixtures[int(labels[i])][tuple(points[i].tolist())] = weight
    return Certificate(mixtures[1], mixtures[-1])


def find_separation(points: NDArray[np.int64], labels: NDArray[np.int64]) -> Separation | None:
    """Find w = u − v and b with y (w·x + b) ≥ 1 and minimal Σ u + v; None if there are none."""
    size = points.shape[1]
    rows = labels[:, None] * np.hstack((points, -points, np.ones((len(points), 1), dtype=np.int64)))
    solved = linprog(
        [1.0] * (2 * size) + [0.0],
        A_ub=-rows,
        b_ub=-np.ones(len(points)),
        bounds=[(0, None)] * (2 * size) + [(None, None)],
        method="highs-ds",
    )
    if solved.status != 0:
        return None
    exact = [Fraction(value).limit_denominator(10_000) for value in solved.x]
    weights = [u - v for u, v in zip(exact[:size], exact[size : 2 * size], strict=True)]
    scale = math.lcm(*(value.denominator for value in (*weights, exact[-1])))
    return Separation(tuple(int(scale * w) for w in weights), int(scale * exact[-1]))


def signs(dimension: int) -> NDArray[np.int64]:
    """Return all points of {−1, +1}ᴰ, (2ᴰ, D)."""
    bits = np.arange(2**dimension)[:, None] >> np.arange(dimension)[::-1]
    return 2 * (bits & 1) - 1
