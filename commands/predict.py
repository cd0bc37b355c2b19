"""``predict RUN PATH…``: use a trained run on files of any kind."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from commands.classify import ImagePredictor
from commands.outputs import choose_output
from commands.train import load
from commands.transcribe import Transcriber
from datamodules.medmnist import MedMNISTDataModule
from engine import RunDirectory, find_weights, read_checkpoint
from errors import UserError
from lightning_modules import SpeechRecognizer
from lightning_modules.classifier import Classifier


class Predictor(Protocol):
    """What a task does with files.

    Attributes:
        suffixes: suffixes of the files that count when a folder is searched.
        formats: formats of the predictions, the default first.
    """

    suffixes: Sequence[str]
    formats: Sequence[str]

    def predict(
        self, files: Sequence[Path], progress: Progress
    ) -> Iterator[tuple[Path, list[dict[str, Any]] | UserError]]:
        """Yield each file, in order, with its records or the reason why there are none."""


def predict(
    path: Path, inputs: Sequence[Path], format: str | None, output: str | None, channels: str
) -> None:
    """Predict files with a run's best checkpoint.

    Args:
        path: run directory.
        inputs: files, or folders that are searched for them.
        format: a format of `commands.formats`; by default that of the output's suffix.
        output: file or folder to write; None prints.
        channels: ``mix`` averages the channels of a recording, ``each`` transcribes all.

    Raises:
        UserError: if the run cannot be used, there are no files, or the output exists.
        SystemExit: with status 1 if some files could not be predicted.
    """
    run = RunDirectory(path)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the terminal shows predictions only
    model, data = load(run)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    predictor: Predictor
    if isinstance(model, SpeechRecognizer):
        predictor = Transcriber(model, each_channel=channels == "each")
    elif isinstance(model, Classifier) and isinstance(data, MedMNISTDataModule):
        is_page = "html" in (format, Path(output or "").suffix.removeprefix("."))
        predictor = ImagePredictor(model, data, messages, pictures=is_page)
    else:
        raise UserError(
            f"{path} is a run of {type(model).__name__}: predict RUN PATH is for recognizers of "
            "speech and classifiers of images"
        )
    files = find_files(inputs, predictor.suffixes)
    checkpoint = find_weights(str(path))
    step = read_checkpoint(checkpoint)["global_step"]
    origin = {"checkpoint": str(checkpoint), "step": step, "channels": channels}
    each = channels == "each"
    target = choose_output(output, format, predictor.formats, files, origin, each_channel=each)
    todo = [file for file in files if not target.has(file)]
    if len(todo) < len(files):
        messages.print(f"{len(files) - len(todo)} of {len(files)} are in {output} already: kept")
    failed = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    ) as progress:
        for file, found in predictor.predict(todo, progress):
            if isinstance(found, UserError):
                failed += 1
                messages.print(f"skipped: {found}")
            else:
                target.write(file, found)
    target.finish()
    if failed:
        raise UserError(f"{failed} of {len(files)} files could not be predicted")


def find_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Return the given files, and the files with known suffixes in the given folders.

    Raises:
        UserError: if a path does not exist, or a folder holds no such file.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
            if not inside:
                raise UserError(f"the folder {path} holds no file of {', '.join(suffixes)}")
            files += inside
        else:
            files.append(path)
    return list(dict.fromkeys(files))
