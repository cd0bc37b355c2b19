"""From the command to the first optimizer step, against importing the libraries alone.

    python -m benchmarks.startup

Each is a process of its own, with the files in the operating system's cache.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.corpus import find_corpus
from benchmarks.harness import OURS, Section, report, take_turns
from datamodules.demo_oct import write_file

ROOT = Path(__file__).parent.parent
IMPORTS = "import torch, pytorch_lightning, torchvision"


def run(folder: Path, command: list[str]) -> None:
    """Run a process in a folder of its own."""
    with TemporaryDirectory(dir=folder) as runs:
        if "fit" in command:
            command = [*command, f"--trainer.default_root_dir={runs}"]
            command += ["--trainer.callbacks+=benchmarks.harness.EndAfterFirstStep"]
            command += ["--trainer.accelerator=cpu"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.stderr)


def measure(options: argparse.Namespace) -> Section:
    """Time the commands."""
    fit = [sys.executable, "cli.py", "fit", "--config"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_file(folder / "retinas.npz", 2_000, 28)
        root = find_corpus(options.speech, folder / "noise", 100)
        cnn = ["configs/octmnist_cnn.yaml", f"--data.init_args.file={folder / 'retinas.npz'}"]
        speech = ["configs/asr_transformer.yaml", f"--data.init_args.root={root}"]
        speech += ["--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]
        peer = {"the imports alone": partial(run, folder, [sys.executable, "-c", IMPORTS])}
        comparisons = [
            take_turns(
                f"command to first step of {command[0]}",
                {OURS: partial(run, folder, [*fit, *command]), **peer},
                options.rounds,
                targets,
            )
            for command, targets in ((cnn, {"the imports alone": 1 / 1.3}), (speech, None))
        ]
        help = [sys.executable, "cli.py", "--help"]
        python = {"python -c pass": partial(run, folder, [sys.executable, "-c", "pass"])}
        comparisons.append(
            take_turns(
                "cli.py --help", {OURS: partial(run, folder, help), **python}, options.rounds
            )
        )
    return Section("Start", f"The imports are `{IMPORTS}`.", comparisons)


if __name__ == "__main__":
    report(measure, __doc__, speech=True)
