"""Layers in training against PyTorch's own, in bfloat16.

    python -m benchmarks.layers

The sizes are those of a batch of 19 clips of 6.3 s in a Conformer of 144 channels, and of 64 clips
of 6.7 s and of 10 s in the course's encoder.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import OURS, Contender, Section, report, take_turns
from networks import SoftmaxAttention
from networks.attention import KeyValues
from networks.dropout import Dropout

CLIPS, POSITIONS, CHANNELS = 19, 217, 144
SHAPES = ((CLIPS, 4, POSITIONS, 36), (64, 2, 462, 100), (64, 2, 692, 100))
"""Clips, heads, positions and channels of a head."""
CALLS = 20
"""Forward and backward passes in a round."""


def repeat(function: Contender) -> Contender:
    """Return a contender that calls a function several times."""

    def run() -> None:
        for _ in range(CALLS):
            function()

    return run


def measure(options: argparse.Namespace) -> Section:
    """Compare dropout and self-attention, forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(CLIPS, POSITIONS, CHANNELS, dtype=torch.bfloat16, requires_grad=True)

    def drop(layer: nn.Module) -> Contender:
        return repeat(lambda: layer(x).sum().backward())

    comparisons = [
        take_turns(
            f"dropout of 0.1, {CALLS} passes",
            {OURS: drop(Dropout(0.1)), "torch.nn.Dropout": drop(nn.Dropout(0.1))},
            options.rounds,
        )
    ]
    attention = SoftmaxAttention()
    for clips, heads, positions, size in SHAPES:
        shape = (clips, heads, positions, size)
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        lengths = torch.linspace(0.85 * positions, positions, clips)
        mask = torch.arange(positions) < lengths[:, None]

        def attend(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> None:
            attention(q, KeyValues(k, v), mask, causal=False).sum().backward()

        def attend_fused(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> None:
            F.scaled_dot_product_attention(q, k, v, mask[:, None, None]).sum().backward()

        work = f"self-attention, {clips} clips of {positions} positions, {heads} heads of {size}"
        contenders = {OURS: attend, "scaled_dot_product_attention": attend_fused}
        comparisons.append(take_turns(work, contenders, options.rounds))
    text = (
        "Forward and backward passes in bfloat16; dropout is of "
        f"{CLIPS} clips of {POSITIONS} positions and {CHANNELS} channels. "
        "The shortest of the clips that attend has 85 % of the length of the longest."
    )
    return Section("Layers", text, comparisons)


if __name__ == "__main__":
    report(measure, __doc__)
