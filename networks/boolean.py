"""Networks for f(x) = +1 iff A ≤ Σ xᵢ ≤ B on {−1, +1}ᴰ: a perceptron, and two that compute f.

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
                f"{name} {value} is beyond ±{dimension}, where sums of {dimension} signs end"
            )


def interval_labels(x: Tensor, low: int, high: int) -> Tensor:
    """Return f(x), +1 or −1, of inputs (…, D) → (…)."""
    total = x.sum(-1)
    return torch.where((total >= low) & (total <= high), 1.0, -1.0).to(x.dtype)


def sign(x: Tensor) -> Tensor:
    """Return +1 or −1, +1 at 0 as the course defines it."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class BooleanPerceptron(nn.Linear):
    """One perceptron: sign(w·x + b).

    Args:
        dimension: number of inputs.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, 1)

    def preactivations(self, x: Tensor) -> Tensor:
        """(batch, D) → (batch, 1): what is thresholded; its last column is the output's."""
        return self(x)


class IntervalMLP(nn.Module):
    """Two hidden units and integer weights, constructed from D, A and B; it computes f exactly.

    There is nothing to train: weights are buffers. Every pre-activation is an odd integer on
    {−1, +1}ᴰ, so at least 1 from 0: perturbations smaller than 1/(4D) in each input change nothing
    (with ``sign`` smaller than 1/(2D)).

    Args:
        dimension: D, number of inputs.
        low: A, the smallest sum with f = +1.
        high: B, the largest.
        activation: of the hidden units: ``sign`` (hard threshold) or ``relu``.

    Raises:
        ValueError: unless D ≥ 1 and −D ≤ A ≤ B ≤ D.
    """

    def __init__(
        self, dimension: int, low: int, high: int, activation: Literal["sign", "relu"] = "sign"
    ) -> None:
        super().__init__()
        check_interval(dimension, low, high)
        self.activation = sign if activation == "sign" else F.relu
        if activation == "sign":  # is the sum large enough; is it small enough; both
            biases, output, bias = (1 - 2 * low, 1 + 2 * high), (1, 1), -1
        else:  # by how much is it too large; too small; neither
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
        """(batch, D) → (batch, 3): of the hidden units and, last, of the output."""
        hidden = F.linear(x, self.hidden_weight, self.hidden_bias)
        output = F.linear(self.activation(hidden), self.output_weight, self.output_bias)
        return torch.cat((hidden, output), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, D) → (batch, 1), whose sign is f(x)."""
        return self.preactivations(x)[:, -1:]
