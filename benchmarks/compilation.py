"""A training step with and without `torch.compile`, and how long compiling takes.

    python -m benchmarks.compilation

Float32, generated batches. Each network is compiled for the one shape it gets; batches of clips
have many shapes, for each of which the recognizer would be compiled anew, or once for all.
Needs a C++ compiler.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import OURS, Comparison, Contender, Section, report, stopwatch, take_turns
from networks import AudioEncoder, ConvNet, FeedForwardNetwork, TextDecoderTransformer

STEPS = 50
"""Steps of a classifier in a round; the recognizer takes one."""
COMPILED = "torch.compile"


class Recognizer(nn.Module):
    """The course's Transformer without the log-mel spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AudioEncoder()
        self.decoder = TextDecoderTransformer(35, max_tokens=200)

    def forward(self, features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, *self.encoder(features, lengths)).flatten(0, 1)


def training(
    network: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Contender:
    """Return a contender that takes training steps."""

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(*inputs), targets).backward()
            optimizer.step()

    return run


def compare(
    name: str, network: nn.Module, inputs: tuple[Tensor, ...], classes: int, rounds: int, steps: int
) -> tuple[Comparison, list[str]]:
    """Time steps of both, and the first step of the compiled one."""
    with torch.no_grad():
        targets = torch.randint(classes, (len(network(*inputs)),))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    compiled = torch.compile(network, dynamic=False)
    first = stopwatch(training(compiled, inputs, targets, optimizer, 1))
    contenders = {
        OURS: training(network, inputs, targets, optimizer, steps),
        COMPILED: training(compiled, inputs, targets, optimizer, steps),
    }
    work = f"{name}, {steps} steps" if steps > 1 else f"{name}, step"
    comparison = take_turns(work, contenders, rounds)
    ours, theirs = (statistics.median(comparison.seconds[key]) for key in contenders)
    pays = f"{steps * first / (ours - theirs):,.0f} steps" if theirs < ours else "never"
    return comparison, [name, f"{first:.1f} s", pays]


def measure(options: argparse.Namespace) -> Section:
    """Compare all."""
    torch.compiler.config.force_disable_caches = True  # what an earlier call compiled
    torch.manual_seed(0)
    images = {size: torch.rand(size, 1, 28, 28) for size in (8, 16, 256)}
    clips, frames = 16, 650
    speech = (
        torch.randn(clips, 80, frames),
        torch.full((clips,), frames),
        torch.randint(3, 35, (clips, 100)),
    )
    cases: list[tuple[str, nn.Module, tuple[Tensor, ...], int, int]] = [
        ("octmnist_mlp, batch 16", FeedForwardNetwork(), (images[16],), 4, STEPS),
        ("octmnist_cnn, batch 8", ConvNet(), (images[8],), 4, STEPS),
        ("octmnist_cnn, batch 256", ConvNet(), (images[256],), 4, STEPS),
        (f"Transformer recognizer, {clips} clips of 6.5 s", Recognizer(), speech, 35, 1),
    ]
    found = [compare(*case[:4], options.rounds, case[4]) for case in cases]
    return Section(
        "Compiling",
        "Training steps of a network as it is (ours) and compiled for one shape, in float32; then "
        "the time of the first step, in which it is compiled, and after how many steps that is "
        "regained.",
        [comparison for comparison, _ in found],
        ["network", "first step", "regained after"],
        [row for _, row in found],
    )


if __name__ == "__main__":
    report(measure, __doc__)
