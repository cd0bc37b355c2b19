"""The share of the machine's matmul peak that a training step of the recognizer reaches.

    python -m benchmarks.matmul

The peak is the best rate of square matrix products of several sizes, measured in turn with the
steps. Floating-point operations are PyTorch's own count; what it does not count (normalizations,
activations, softmax, optimizer) takes time but adds no counted operations.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Section, report, stopwatch
from engine import choose_precision
from networks import (
    AudioEncoder,
    LogMelSpectrogram,
    SpecAugment,
    SpeechToText,
    TextDecoderTransformer,
)

CLIPS, SECONDS, TOKENS = 58, 6.5, 100
SIZES = (512, 1024, 2048)
SHOWN = 12


def measure(options: argparse.Namespace) -> Section:
    """Measure in float32 and under bfloat16 autocast."""
    torch.manual_seed(0)
    network = SpeechToText(
        AudioEncoder(),
        TextDecoderTransformer(35, max_tokens=200),
        LogMelSpectrogram(),
        augment=SpecAugment(),
    )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    samples = int(SECONDS * 22_050)
    waveforms, lengths = 0.1 * torch.randn(CLIPS, samples), torch.full((CLIPS,), samples)
    tokens = torch.randint(3, 35, (CLIPS, TOKENS))

    def step(dtype: torch.dtype) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            memory, mask = network.encode(waveforms, lengths)
            logits = network.decoder(tokens[:, :-1], memory, mask)
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    # PyTorch counts no operations in the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(torch.float32)
    flops = counter.get_total_flops()
    rows = []
    is_native = choose_precision("cpu") == "bf16-mixed"
    for dtype in (torch.float32, torch.bfloat16) if is_native else (torch.float32,):
        matrices = [torch.randn(size, size).to(dtype) for size in SIZES]
        step(dtype)
        steps, peaks = [], []
        for _ in range(options.rounds):
            steps.append(stopwatch(lambda dtype=dtype: step(dtype)))  # type: ignore[misc]
            peaks.append(max(rate(matrix) for matrix in matrices))
        shares = [flops / s / p for s, p in zip(steps, peaks, strict=True)]
        rows.append(
            [
                str(dtype).removeprefix("torch."),
                f"{statistics.median(steps):.2f} s",
                f"{flops / 1e9:,.0f}",
                f"{statistics.median(peaks) / 1e9:,.0f}",
                f"{statistics.median(shares):.0%} ({min(shares):.0%} … {max(shares):.0%})",
            ]
        )
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(torch.float32)
    averages = sorted(profiler.key_averages(), key=lambda item: -item.self_cpu_time_total)
    total = sum(item.self_cpu_time_total for item in averages)
    top = ", ".join(
        f"{item.key.removeprefix('aten::')} {item.self_cpu_time_total / total:.0%}"
        for item in averages[:SHOWN]
    )
    text = (
        f"The Transformer recognizer, {CLIPS} clips of {SECONDS} s, {TOKENS} tokens. Where a "
        f"float32 step spends its time: {top}."
    )
    header = ["precision", "step", "GFLOP", "peak, GFLOP/s", "share of the peak"]
    return Section("Share of the matmul peak", text, header=header, rows=rows)


def rate(matrix: Tensor) -> float:
    """Return the floating-point operations per second of a product of square matrices."""
    repeats = max(1, int(4e9 / matrix.shape[0] ** 3))

    def multiply() -> None:
        for _ in range(repeats):
            matrix @ matrix

    multiply()
    return 2 * matrix.shape[0] ** 3 * repeats / stopwatch(multiply)


if __name__ == "__main__":
    report(measure, __doc__)
