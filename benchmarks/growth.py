"""How time and memory grow with clip length, batch, data set and processes.

    python -m benchmarks.growth

Each row is a process that trains the Transformer recognizer with `cli.py fit` on clips of noise.
Length and batch size grow from 2.5 s and 8 clips; the data sets have clips of 0.5 s, because only
their number matters, and train one epoch; two processes share an epoch of 256 clips of 5 s, each
with one thread and batches of 8, so that they take half as many steps.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import soundfile

from benchmarks.harness import Section, report, run_measured
from engine import RunDirectory, read_rows

ROOT = Path(__file__).parent.parent
RATE = 22_050
TEXT = "the prison was in to that by or with for his"


class Fit(NamedTuple):
    """A training to measure.

    Attributes:
        what: what grows.
        clips: number of training clips.
        seconds: length of each clip.
        batch: clips per batch and process.
        processes: number of processes.
        epochs: number of epochs; the last one is timed.
    """

    what: str
    clips: int
    seconds: float
    batch: int
    processes: int = 1
    epochs: int = 2

    @property
    def name(self) -> str:
        """Name of the run."""
        return "-".join(map(str, self)).replace(" ", "_")


FITS = [
    *(Fit("clip length", 24, 2.5 * factor, 8) for factor in (1, 2, 4, 8)),
    *(Fit("batch", 24 * factor, 2.5, 8 * factor) for factor in (1, 2, 4, 8)),
    *(Fit("data set", clips, 0.5, 64, epochs=1) for clips in (1_310, 13_100)),
    *(Fit("processes", 256, 5.0, 8, processes) for processes in (1, 2)),
]


def write_noise(folder: Path, clips: int, seconds: float) -> None:
    """Write training clips of noise, and two for validation."""
    random = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    noise = 0.1 * random.standard_normal(int(seconds * RATE))
    soundfile.write(folder / "noise.wav", noise, RATE)
    lines = []
    for i in range(clips + 2):
        os.link(folder / "noise.wav", folder / "wavs" / f"N-{i}.wav")
        lines.append(f"N-{i}|{TEXT}|{TEXT}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def measure_fit(fit: Fit, folder: Path) -> tuple[float, int]:
    """Return the seconds of the last epoch and the peak memory of the largest process in MiB."""
    corpus = folder / f"{fit.clips}-{fit.seconds}"
    if not corpus.exists():
        write_noise(corpus, fit.clips, fit.seconds)
    share = (fit.clips + 0.25) / (fit.clips + 2)  # of the clips, for training
    command = [sys.executable, "cli.py", "fit", "--config=configs/asr_transformer.yaml"]
    command += [f"--experiment={fit.name}", f"--trainer.default_root_dir={folder}"]
    command += [f"--data.init_args.root={corpus}", f"--data.init_args.batch_size={fit.batch}"]
    command += [f"--data.init_args.splits=[{share},{1 - share}]", "--trainer.accelerator=cpu"]
    command += [f"--trainer.max_epochs={fit.epochs}", "--trainer.limit_val_batches=0"]
    command += [f"--trainer.devices={fit.processes}", "--data.init_args.num_workers=0"]
    if fit.processes > 1:
        command += ["--trainer.strategy=ddp"]
    environment = dict(os.environ)
    if fit.what == "processes":
        environment["OMP_NUM_THREADS"] = "1"
    _, peak = run_measured(command, cwd=ROOT, env=environment)
    rows = read_rows(RunDirectory(folder / fit.name).metrics)
    return [float(row["time/epoch"]) for row in rows if "time/epoch" in row][-1], peak


def measure(options: argparse.Namespace) -> Section:
    """Measure every fit a few times, in turn."""
    found: dict[Fit, list[tuple[float, int]]] = {fit: [] for fit in FITS}
    with TemporaryDirectory() as folder:
        for i in range(options.rounds):
            (Path(folder) / str(i)).mkdir()
            for fit, results in found.items():
                results.append(measure_fit(fit, Path(folder) / str(i)))
    rows = []
    for fit, results in found.items():
        first = next(other for other in found if other.what == fit.what)
        seconds = statistics.median(seconds for seconds, _ in results)
        ratios = [ours / base for (ours, _), (base, _) in zip(results, found[first], strict=True)]
        memory = [ours - base for (_, ours), (_, base) in zip(results, found[first], strict=True)]
        rows.append(
            [
                fit.what,
                f"{fit.clips:,}",
                f"{fit.seconds:g} s",
                f"{fit.batch}",
                f"{fit.processes}",
                f"{seconds:.2f} s",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(memory):+,.0f} MiB",
            ]
        )
    header = ["grows", "clips", "length", "batch", "processes", "epoch"]
    header += ["time / first row", "memory − first row"]
    text = (
        "Time of an epoch, and peak memory of the largest process, relative to the first row of "
        "each kind. Data sets are trained for one epoch; of the others' two epochs, the second is "
        "timed. Two processes share an epoch, each with one thread and batches of 8: half as many "
        "steps."
    )
    return Section("Growth", text, header=header, rows=rows)


if __name__ == "__main__":
    report(measure, __doc__)
