"""The clips that the speech benchmarks work on."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from commands.stages import load_run

SAMPLE_RATE = 22_050
WORDS = "the of and prison was in to that people different sentence morning before great".split()


def find_corpus(root: Path | None, folder: Path, clips: int) -> Path:
    """Return the given corpus, or write one of noise and random words.

    Clips and texts are about as long as LJ Speech's; what is said does not matter to times.
    """
    if root is not None:
        return root
    random = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="|", quoting=csv.QUOTE_NONE, quotechar=None)
        for i in range(clips):
            seconds = min(max(random.lognormal(np.log(6.2), 0.35), 1.1), 10.1)
            noise = 0.1 * random.standard_normal(int(seconds * SAMPLE_RATE))
            soundfile.write(folder / "wavs" / f"N-{i}.wav", noise, SAMPLE_RATE)
            text = " ".join(random.choice(WORDS, int(2.7 * seconds)))
            writer.writerow([f"N-{i}", text, text])
    return folder


def load_test(run: Path, clips: int | None = None) -> tuple[Any, Any]:
    """Return a run's recognizer, and its data module with the first clips of the test set."""
    model, data, *_ = load_run(run)
    data.max_clips = clips
    data.prepare_data()
    data.setup("test")
    return model, data
