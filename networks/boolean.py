"""Networks for f(x) = +1 iff A ≤ Σ xᵢ ≤ B on {−1, +1}ᴰ: a perceptron, and two exact MLPs.

Derivations: docs/boolean_functions.md.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_interval(dimension: int, low: int, high: int) -> None:
    """Raise a ValueError unless D ≥ 1 and −D ≤ A ≤ B ≤ D."""
    if dimension < 1:
        raise ValueError(f"dimension {dimension} is less than 1")
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    for name, value in (("low", low), ("high", high)):
        if abs(value) > dimension:
            raise ValueError(
                f"{name} {value} is beyond ±{dimension}, the range of sums of {dimension} signs"
            )


def interval_labels(x: Tensor, low: int, high: int) -> Tensor:
    """Return f(x), +1 or −1, of inputs x: (…, D) → (…)."""
    total = x.sum(-1)
    return torch.where((total >= low) & (total <= high), 1.0, -1.0).to(x.dtype)


def sign(x: Tensor) -> Tensor:
    """Return the signs of x as ±1; the course defines that of 0 as +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class BooleanPerceptron(nn.Linear):
    """One perceptron: sign(w·x + b).

    Args:
        dimension: number of inputs.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, 1)

    def preactivations(self, x: Tensor) -> Tensor:
        """Return all values that are thresholded, (batch, D) → (batch, 1); the output's is last."""
        return self(x)


class IntervalMLP(nn.Module):
    """Compute f exactly with two hidden units and integer weights, constructed from D, A and B.

    There is nothing to train: the weights are buffers. On {−1, +1}ᴰ every pre-activation is an odd
    integer, so its distance from 0 is at least 1. Perturbations smaller than 1/(4D) in each input
    (with ``sign``, smaller than 1/(2D)) do not change the output.

    Args:
        dimension: D, number of inputs.
        low: A, smallest sum with f = +1.
        high: B, largest sum with f = +1.
        activation: activation of the hidden units: ``sign`` (hard threshold) or ``relu``.

    Raises:
        ValueError: unless D ≥ 1 and −D ≤ A ≤ B ≤ D.
    """

    def __init__(
        self, dimension: int, low: int, high: int, activation: Literal["sign", "relu"] = "sign"
    ) -> None:
        super().__init__()
        check_interval(dimension, low, high)
        self.activation = sign if activation == "sign" else F.relu
        if activation == "sign":  # hidden: sum ≥ A, sum ≤ B; output: both
            biases, output, bias = (1 - 2 * low, 1 + 2 * high), (1, 1), -1
        else:  # hidden: amounts above B and below A; output: neither
            biases, output, bias = (-1 - 2 * high, -1 + 2 * low), (-2, -2), 1
        self.hidden_weight: Tensor
        self.hidden_bias: Tensor
        self.output_weight: Tensor
        self.output_bias: Tensor
        signs = torch.tensor([[1.0], [-1.0]])
        self.register_buffer("hidden_weight", 2 * signs.expand(2, dimension).contiguous())
        self.register_buffer("hidden_bias", torch.tensor(biases, dtype=torch.float32))
        self.register_buffer("output_weight", torch.tensor([output], dtype=torch.float32))
        self.register_buffer("output_bias", torch.tensor([bias], dtype=torch.float32))

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the values that are thresholded, (batch, D) → (batch, 3); the output's is last."""
        hidden = F.linear(x, self.hidden_weight, self.hidden_bias)
        output = F.linear(self.activation(hidden), self.output_weight, self.output_bias)
        return torch.cat((hidden, output), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return values with the sign of f(x): (batch, D) → (batch, 1)."""
        return self.preactivations(x)[:, -1:]
