"""``inspect``: what a speech corpus holds, split by split, and what is odd in it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import yaml
from rich.progress import track

from commands.messages import shorten
from commands.tables import write_table
from datamodules.clips import Clip, read_clip
from datamodules.speech import SPLITS, SpeechDataModule
from errors import UserError

FRAME_SECONDS = 0.025
SILENT_DB = -50.0
"""Level below which a frame counts as silence, in dB relative to full scale."""
FULL_SCALE = 0.999
"""Magnitude from which a sample counts as clipped."""
CLIPPED_SAMPLES = 3
"""Number of clipped samples from which a clip counts as clipped; one or two are harmless."""
SHOWN = 3
"""Maximum number of examples per finding."""


@dataclass
class Recording:
    """A clip and what its audio is like.

    Attributes:
        clip: the clip.
        seconds: length.
        silence: fraction of frames that are silent.
        clipped: number of clipped samples.
        digest: checksum of the samples.
    """

    clip: Clip
    seconds: float
    silence: float
    clipped: int
    digest: bytes


def inspect_corpus(configs: Sequence[Path], others: Sequence[str], output: Path) -> None:
    """Print a table of a corpus, and write it with a picture.

    Args:
        configs: YAML files with a ``data`` section; later ones win.
        others: further arguments, ``--data.…``.
        output: folder of ``corpus.md`` and ``corpus.png``.

    Raises:
        UserError: if there is no speech corpus in the files, or it cannot be read.
    """
    data = build(configs, others)
    data.prepare_data()
    parts = data.split_transcripts()
    data.max_unreadable_clips = sum(map(len, parts.values()))  # all are reported below
    recordings: dict[str, list[Recording]] = {}
    unknown = [
        t.source for part in parts.values() for t in part if not data.vocabulary.knows(t.text)
    ]
    parts = {k: [t for t in part if data.vocabulary.knows(t.text)] for k, part in parts.items()}
    for split in SPLITS:
        if parts[split]:
            clips = data.inspect_clips(split, parts[split])
            recordings[split] = []
            for clip in track(clips, f"reading {split} clips", transient=True):
                try:
                    recordings[split] += [measure(clip, data)] if clip.samples else []
                except UserError as error:  # the header is whole, the samples are not
                    data.unreadable[clip.name] = str(error)
    if not recordings:
        raise UserError(
            f"{data.root} has no clip with a known character, such as in {unknown[0]}: check the "
            "alphabet"
        )
    if not any(recordings.values()):
        raise UserError(f"no clip can be read: {next(iter(data.unreadable.values()))}")
    columns = {split: summarize_split(found, data) for split, found in recordings.items()}
    headings = list(next(iter(columns.values())))
    rows = [[name, *(column[name] for column in columns.values())] for name in headings]
    output.mkdir(parents=True, exist_ok=True)
    notes = "\n".join(
        [
            f"{len(unknown):,} transcript(s) have no known character{examples(unknown)}.",
            *find_oddities(recordings, data),
        ]
    )
    write_table(["", *columns], rows, output / "corpus.md", notes)
    draw(recordings, data, output / "corpus.png")


def build(configs: Sequence[Path], others: Sequence[str]) -> SpeechDataModule:
    """Build the data module of the files' ``data`` sections, and nothing else."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SpeechDataModule, "data", required=True)
    try:
        config = None
        for path in configs:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("data"):
                config = parser.parse_object({"data": content["data"]}, config)
        config = parser.parse_args(list(others), config)
        data: SpeechDataModule = parser.instantiate(config).data
    except (OSError, yaml.YAMLError, jsonargparse.ArgumentError, ValueError) as error:
        names = ", ".join(map(str, configs))
        raise UserError(
            f"cannot build a speech corpus from {names}: {shorten(str(error))}"
        ) from error
    return data


def measure(clip: Clip, data: SpeechDataModule) -> Recording:
    """Read a clip and measure its silence, clipping and checksum."""
    waveform = read_clip(clip, data.sample_rate, data.channel).numpy()
    size = int(FRAME_SECONDS * data.sample_rate)
    padded = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    level = 10 * np.log10(np.square(padded).mean(1) + 1e-12)
    return Recording(
        clip,
        clip.samples / data.sample_rate,
        float((level < SILENT_DB).mean()),
        int((np.abs(waveform) >= FULL_SCALE).sum()),
        hashlib.blake2b(waveform.tobytes(), digest_size=16).digest(),
    )


def summarize_split(found: list[Recording], data: SpeechDataModule) -> dict[str, str]:
    """Return a column of the table: heading → cell."""
    seconds = np.array([recording.seconds for recording in found] or [0.0])
    texts = [recording.clip.text for recording in found]
    characters = sum(map(len, texts))
    words = [word for text in texts for word in text.split()]
    unknown = Counter(find_unknown("".join(texts), data))
    quantiles = np.quantile(seconds, [0, 0.5, 1])
    return {
        "clips": f"{len(found):,}",
        "hours": f"{seconds.sum() / 3600:.2f}",
        "seconds, shortest / median / longest": " / ".join(f"{q:.2f}" for q in quantiles),
        "characters": f"{characters:,}",
        "longest transcript, characters": f"{max(map(len, texts), default=0):,}",
        "words, different words": f"{len(words):,}, {len(set(words)):,}",
        "characters per second": f"{characters / max(seconds.sum(), 1e-9):.1f}",
        "characters not in the alphabet": show_counts(unknown) or "none",
        "silence": f"{np.mean([recording.silence for recording in found] or [0]):.1%}",
        "clipped clips": f"{sum(r.clipped >= CLIPPED_SAMPLES for r in found):,}",
    }


def find_unknown(text: str, data: SpeechDataModule) -> list[str]:
    """Return the characters of a text that the vocabulary spells as unknown."""
    vocabulary = data.vocabulary
    return [c for c in vocabulary.fold(text) if c not in vocabulary.alphabet]


def show_counts(counts: Counter[str]) -> str:
    """Return the most frequent characters with their counts."""
    shown = ", ".join(f"{c!r} {n:,}" for c, n in counts.most_common(10))
    return f"{shown} and {len(counts) - 10} more" if len(counts) > 10 else shown


def find_oddities(recordings: dict[str, list[Recording]], data: SpeechDataModule) -> list[str]:
    """Return sentences on unreadable, repeated, silent and strangely fast or slow clips."""
    everything = [(split, r) for split, found in recordings.items() for r in found]
    sentences = [
        f"{len(data.unreadable):,} clip(s) cannot be read{examples(data.unreadable.values())}."
    ]
    keys: dict[str, list[Any]] = {
        "transcript": [r.clip.text for _, r in everything],
        "recording": [r.digest for _, r in everything],
    }
    for what, values in keys.items():
        splits: dict[Any, dict[str, str]] = {}
        for value, (split, recording) in zip(values, everything, strict=True):
            splits.setdefault(value, {}).setdefault(split, recording.clip.id)
        shared = [" = ".join(ids.values()) for ids in splits.values() if len(ids) > 1]
        sentences.append(f"{len(shared):,} {what}(s) occur in several splits{examples(shared)}.")
    silent = [r.clip.id for _, r in everything if r.silence > 0.9]
    sentences.append(f"{len(silent):,} clip(s) are silent for over 90 %{examples(silent)}.")
    rates = np.array([len(r.clip.text) / r.seconds for _, r in everything])
    if len(rates):
        middle = np.median(rates)
        odd = [
            f"{r.clip.id} ({rate:.0f} per second)"
            for rate, (_, r) in zip(rates, everything, strict=True)
            if not middle / 2.5 < rate < middle * 2.5
        ]
        sentences.append(
            f"{len(odd):,} clip(s) have far more or fewer characters per second than the median "
            f"{middle:.0f}{examples(odd)}."
        )
    return sentences


def examples(names: Any) -> str:
    """Return the first of some names, for a sentence."""
    names = sorted(names)
    more = " …" if len(names) > SHOWN else ""
    return f": {', '.join(map(str, names[:SHOWN]))}{more}" if names else ""


def draw(recordings: dict[str, list[Recording]], data: SpeechDataModule, path: Path) -> None:
    """Draw lengths, characters against lengths, and the frequency of each character."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    lengths, sizes, letters = figure.subplots(1, 3)
    longest = max((r.seconds for found in recordings.values() for r in found), default=1.0)
    for i, (split, found) in enumerate(recordings.items()):
        seconds = [r.seconds for r in found]
        bins = np.linspace(0, longest, 40)
        lengths.hist(seconds, bins, histtype="step", density=True, color=f"C{i}", label=split)
        counts = [len(r.clip.text) for r in found]
        sizes.plot(seconds, counts, ".", markersize=2, color=f"C{i}", label=split)
    lengths.set(xlabel="seconds", ylabel="density", title="lengths")
    sizes.set(xlabel="seconds", ylabel="characters", title="transcripts")
    lengths.legend()
    texts = "".join(r.clip.text for found in recordings.values() for r in found)
    frequent = Counter(data.vocabulary.fold(texts)).most_common(40)
    known = ["C0" if c in data.vocabulary.alphabet else "C3" for c, _ in frequent]
    positions = range(len(frequent))
    letters.bar(positions, [n for _, n in frequent], color=known)
    letters.set_xticks(positions, [c.replace(" ", "␣") for c, _ in frequent], fontsize=7)
    letters.set(title="characters (red: not in the alphabet)", yscale="log")
    figure.savefig(path, dpi=120)
