"""Time parts of the recognizer, each as a ratio to a named peer in the same run.

    python -m benchmarks.speech

Needs no data: clips are noise of 1.1 to 10.1 s, with lengths distributed roughly as in LJ Speech.
"""

import random
import string
import time
from collections.abc import Callable

import numpy as np
import torch
import torchmetrics.text
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datamodules.sampling import LengthBucketBatchSampler
from metrics import CharErrorRate
from networks import (
    AudioEncoder,
    GreedySearch,
    LogMelSpectrogram,
    SpeechToText,
    TextDecoderRecurrent,
    TextDecoderTransformer,
)

COURSE_FRAMES = 2754  # the course pads every clip to this length
HOP = 160


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of ``repeats`` calls after a warm-up call, in seconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def metric_ratio() -> tuple[float, float]:
    """Time the scoring of 300 pairs of 100 characters: ours, then torchmetrics'."""
    choice = random.Random(0)
    texts = ["".join(choice.choices(string.ascii_lowercase + " ", k=100)) for _ in range(600)]
    ours, theirs = CharErrorRate(), torchmetrics.text.CharErrorRate()
    return (
        seconds(lambda: ours.update(texts[:300], texts[300:])),
        seconds(lambda: theirs.update(texts[:300], texts[300:]), repeats=1),
    )


@torch.no_grad()
def decoding_ratio(
    decoder: type[TextDecoderTransformer | TextDecoderRecurrent],
) -> tuple[float, float]:
    """Time decoding 100 tokens for 16 clips of 350 positions: with caches, then without."""
    torch.manual_seed(0)
    network = SpeechToText(AudioEncoder(), decoder(35), LogMelSpectrogram()).eval()
    search = GreedySearch(max_tokens=100)
    memory, mask = torch.randn(16, 350, 200), torch.ones(16, 350, dtype=torch.bool)

    def cached() -> Tensor:
        never = -1
        return search.decode(network, memory, mask, start=0, stop=never, pad=2)

    def uncached() -> Tensor:
        tokens = torch.zeros(16, 1, dtype=torch.long)
        for _ in range(100):
            following = network.decoder(tokens, memory, mask)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat((tokens, following), dim=1)
        return tokens[:, 1:]

    assert torch.equal(cached(), uncached())
    return seconds(cached), seconds(uncached, repeats=1)


def padding_ratio() -> tuple[float, float]:
    """Time an encoder step on 64 clips: bucketed by length, then padded as in the course."""
    torch.manual_seed(0)
    network = SpeechToText(AudioEncoder(), TextDecoderTransformer(35), LogMelSpectrogram())
    lengths = np.random.default_rng(0).lognormal(np.log(6.2), 0.35, 64).clip(1.1, 10.1) * 22_050
    samples = torch.from_numpy(lengths).long()
    sampler = LengthBucketBatchSampler(samples.tolist(), 16)

    def step(waveforms: Tensor, real: Tensor) -> None:
        memory, _ = network.encode(waveforms, real)
        memory.square().mean().backward()

    def bucketed() -> None:
        for batch in sampler:
            step(torch.randn(len(batch), int(samples[batch].max())), samples[batch])

    def fixed() -> None:
        width = (COURSE_FRAMES - 1) * HOP
        for batch in samples.split(16):
            step(torch.randn(len(batch), width), torch.full_like(batch, width))

    return seconds(bucketed, repeats=1), seconds(fixed, repeats=1)


def main() -> None:
    """Measure everything and print a table."""
    table = Table(
        "what", "ours", "peer", "peer's time / ours", title=f"{torch.get_num_threads()} threads"
    )
    for what, (ours, theirs), peer in (
        ("character error rate", metric_ratio(), "torchmetrics"),
        ("Transformer decoding", decoding_ratio(TextDecoderTransformer), "no cache"),
        ("LSTM decoding", decoding_ratio(TextDecoderRecurrent), "no cache"),
        ("encoder training step", padding_ratio(), f"padded to {COURSE_FRAMES} frames"),
    ):
        table.add_row(what, f"{ours:.4f} s", f"{theirs:.4f} s ({peer})", f"{theirs / ours:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
