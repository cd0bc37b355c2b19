"""Long recordings against the clips that they are made of, through ``predict``.

    python -m benchmarks.long_recordings runs/asr_conformer_small --minutes 60

Test clips of the run's corpus are joined with silences of 0.3 to 2 s, repeated until the recording
is long enough. Its word error rate is compared with that of the clips alone, the borders of its
segments with those of the clips' voices, and its peak memory with that of its first minute.
Silence, noise and tones of a minute must give no text.

A clip's voice begins and ends where its level, outward from the first and the last character of its
aligned transcript, first falls 20 dB below the clip's. The level alone would take breath and noise
for the voice.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.corpus import load_test
from benchmarks.harness import run_measured
from datamodules.clips import Clip, read_clip
from metrics import WordErrorRate

CLI = Path(__file__).parent.parent / "cli.py"
QUIET = 0.1
"""Level around a clip's voice as a share of the clip's level: 20 dB less."""
STEP, WINDOW = 0.005, 0.025
"""Seconds between levels, and seconds of sound in each."""


def transcribe(run: Path, *files: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of ``predict`` and its peak memory in MiB."""
    command = [sys.executable, str(CLI), "predict", str(run), *map(str, files)]
    output, peak = run_measured([*command, "--format", "jsonl"])
    return [json.loads(line) for line in output.splitlines()], peak


@torch.no_grad()
def find_voice(model: Any, waveform: Tensor, text: str) -> tuple[float, float]:
    """Return when the voice in a clip with a known transcript begins and ends, in seconds."""
    memory, mask = model.network.encode(waveform[None], torch.tensor([len(waveform)]))
    (words,) = model.find_words(memory, mask, [text])
    rate = model.network.features.sample_rate
    padded = pad(waveform, (round(WINDOW / 2 * rate),) * 2)
    levels = padded.unfold(0, round(WINDOW * rate), round(STEP * rate)).square().mean(1).sqrt()
    quiet = levels < QUIET * waveform.square().mean().sqrt()
    quiet[[0, -1]] = True  # the voice is within the clip
    times = STEP * quiet.nonzero()[:, 0].numpy()
    return times[times <= words[0].start].max(), times[times >= words[-1].end].min()


def error_rate(predictions: list[str], references: list[str]) -> float:
    """Return the word error rate of normalized texts."""
    metric = WordErrorRate(normalize=True)
    metric.update(predictions, references)
    return float(metric.compute())


def join(
    model: Any, clips: list[Clip], rate: int, minutes: float
) -> tuple[list[int], list[NDArray[np.float32]], list[float], list[float]]:
    """Return indices of clips, the sound to join, and when each clip's voice begins and ends."""
    random = np.random.default_rng(0)
    order: list[int] = []
    parts: list[NDArray[np.float32]] = []
    starts, ends = [], []
    voices: dict[int, tuple[float, float]] = {}
    length = 0
    for i in np.resize(np.arange(len(clips)), 100_000).tolist():
        if length > minutes * 60 * rate:
            break
        silence = np.zeros(int(random.uniform(0.3, 2.0) * rate), np.float32)
        sound = read_clip(clips[i], rate)
        if i not in voices:
            voices[i] = find_voice(model, sound, clips[i].text)
        before = (length + len(silence)) / rate
        starts.append(before + voices[i][0])
        ends.append(before + voices[i][1])
        order.append(i)
        parts += [silence, sound.numpy()]
        length += len(silence) + len(sound)
    return order, parts, starts, ends


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    model, data = load_test(options.run)
    rate = data.sample_rate
    clips = data.datasets["test"].clips
    order, waveforms, starts, ends = join(model, clips, rate, options.minutes)
    whole = np.concatenate(waveforms)
    used = sorted(set(order))
    with TemporaryDirectory() as name:
        folder = Path(name)
        soundfile.write(folder / "long.wav", whole, rate)
        soundfile.write(folder / "minute.wav", whole[: 60 * rate], rate)
        alone, _ = transcribe(options.run, *(clips[i].path for i in used))
        (record,), peak = transcribe(options.run, folder / "long.wav")
        _, peak_minute = transcribe(options.run, folder / "minute.wav")
        texts = {i: found["text"] for i, found in zip(used, alone, strict=True)}
        references = [clips[i].text for i in order]
        separate = error_rate([texts[i] for i in order], references)
        joined = error_rate([record["text"]], [" ".join(references)])
        print(f"{len(order)} clips joined, {len(whole) / rate / 60:.1f} minutes")
        print(f"WER {joined:.4f}, of the clips alone {separate:.4f}: {joined - separate:+.4f}")
        for side, true in (("start", starts), ("end", ends)):
            borders = np.array([segment[side] for segment in record["segments"]])
            away = np.array([np.abs(borders - time).min() for time in true])
            print(
                f"{side}: median {np.median(away):.3f} s away from the true one, "
                f"{np.mean(away <= 0.3):.1%} within 0.3 s"
            )
        print(f"peak memory {peak:,} MiB, of one minute {peak_minute:,} MiB")
        time = torch.arange(60 * rate) / rate
        tones = sum(torch.sin(2 * np.pi * f * time) for f in (220.0, 277.2, 329.6))
        noise = 0.05 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))
        sounds = {
            "silence": torch.zeros(len(time)),
            "noise": noise,
            "tones": 0.1 * torch.as_tensor(tones) * (time % 0.5 < 0.4),
        }
        for kind, sound in sounds.items():
            soundfile.write(folder / f"{kind}.wav", sound.numpy(), rate)
            (record,), _ = transcribe(options.run, folder / f"{kind}.wav")
            print(f"a minute of {kind}: {record['text']!r}")


if __name__ == "__main__":
    main()
