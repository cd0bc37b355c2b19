"""Layers in training against PyTorch's own, in bfloat16.

    python -m benchmarks.layers

The sizes are those of a batch of 19 clips of 6.3 s in a Conformer of 144 channels.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import OURS, Contender, Section, report, take_turns
from networks import SoftmaxAttention
from networks.attention import KeyValues
from networks.dropout import Dropout

CLIPS, POSITIONS, HEADS, HEAD_SIZE = 19, 217, 4, 36
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
    x = torch.randn(CLIPS, POSITIONS, HEADS * HEAD_SIZE, dtype=torch.bfloat16, requires_grad=True)
    shape = (CLIPS, HEADS, POSITIONS, HEAD_SIZE)
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.arange(POSITIONS).expand(CLIPS, -1) < POSITIONS - 10
    attention = SoftmaxAttention()

    def drop(layer: nn.Module) -> Contender:
        return repeat(lambda: layer(x).sum().backward())

    def attend() -> None:
        attention(q, KeyValues(k, v), mask, causal=False).sum().backward()

    def attend_fused() -> None:
        F.scaled_dot_product_attention(q, k, v, mask[:, None, None]).sum().backward()

    comparisons = [
        take_turns(
            "dropout of 0.1",
            {OURS: drop(Dropout(0.1)), "torch.nn.Dropout": drop(nn.Dropout(0.1))},
            options.rounds,
        ),
        take_turns(
            "self-attention",
            {OURS: repeat(attend), "scaled_dot_product_attention": repeat(attend_fused)},
            options.rounds,
        ),
    ]
    text = (
        f"{CALLS} forward and backward passes in bfloat16, {CLIPS} clips of {POSITIONS} positions, "
        f"{HEADS} heads of {HEAD_SIZE} channels."
    )
    return Section("Layers", text, comparisons)


if __name__ == "__main__":
    report(measure, __doc__)
