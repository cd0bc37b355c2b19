"""``predict RUN PATH…``: use a trained run on files of any kind."""

import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from commands.classify import ImagePredictor
from commands.folders import make_console
from commands.outputs import as_user_error, choose_format, choose_output
from commands.stages import LoadedRun, load_run
from commands.transcribe import Transcriber
from datamodules.medmnist import MedMNISTDataModule
from engine import RunDirectory, find_checkpoint
from errors import UserError
from lightning_modules import SpeechRecognizer
from lightning_modules.classifier import Classifier


class Predictor(Protocol):
    """Interface of a task's predictor.

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
    path: Path,
    inputs: Sequence[Path],
    *,
    format: str | None,
    output: str | None,
    channels: str,
    ckpt_path: str | None,
) -> None:
    """Predict files with a trained run.

    Args:
        path: run directory.
        inputs: files, or folders that are searched for them.
        format: a format of `commands.formats`; by default that of the output's suffix.
        output: file or folder to write; None prints.
        channels: ``mix`` averages the channels of a recording, ``each`` transcribes all.
        ckpt_path: ``last``, ``best`` or a file; the best checkpoint by default.

    Raises:
        UserError: if the run cannot be used, there are no files, the output exists, or some files
            could not be predicted.
    """
    if ckpt_path == "none":
        raise UserError("--ckpt_path none: predict RUN needs a trained model")
    checkpoint = None if ckpt_path is None else find_checkpoint(ckpt_path, RunDirectory(path))
    messages = make_console(stderr=True)
    predictor: Predictor
    predictor, loaded = load_predictor(path, messages, checkpoint)
    files = find_files(inputs, predictor.suffixes)
    format = choose_format(output, format, predictor.formats)
    each = channels == "each"
    if isinstance(predictor, Transcriber):
        predictor.each_channel = each
    elif each:
        raise UserError("--channels each is for recordings")
    else:
        predictor.pictures = format == "html"
    checkpoint = loaded.path.absolute()
    content = zlib.crc32(checkpoint.read_bytes())  # training anew and `calibrate` change it
    settings = {"checkpoint": str(checkpoint), "crc32": content}
    settings |= {"channels": channels, "format": format}
    failed = 0
    target = choose_output(output, format, files, settings, each_channel=each)
    todo = [file for file in files if not target.has(file)]
    if len(todo) < len(files):
        messages.print(f"{len(files) - len(todo)} of {len(files)} are done already: skipped")
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # what goes to a file or a pipe stays there
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


def load_predictor(
    path: Path, messages: Console, checkpoint: Path | None = None
) -> tuple[Transcriber | ImagePredictor, LoadedRun]:
    """Return the predictor of a run, on a GPU if there is one, and the run.

    Raises:
        UserError: if the run cannot be used, or is of a task without files.
    """
    loaded = load_run(path, checkpoint)
    model, data, *_ = loaded
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(model, SpeechRecognizer):
        return Transcriber(model), loaded
    if isinstance(model, Classifier) and isinstance(data, MedMNISTDataModule):
        return ImagePredictor(model, data, messages), loaded
    raise UserError(
        f"{path} is a run of {type(model).__name__}: files are for recognizers of speech and "
        "classifiers of images"
    )


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a path in a folder, or a folder on the way to it, is hidden."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def find_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Return the given files, and the files with known suffixes in the given folders.

    Raises:
        UserError: if a path is neither a file nor a folder, or a folder holds no such file.
    """
    files: dict[Path, Path] = {}
    for path in inputs:
        try:
            if not path.exists():
                raise UserError(f"{path} does not exist")
            if not path.is_file() and not path.is_dir():
                raise UserError(f"{path} is a pipe or a device: save its content to a file first")
            found = [path]
            if path.is_dir():
                inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in suffixes)
                found = [p for p in inside if p.is_file() and not is_hidden(p, path)]
        except OSError as error:
            raise as_user_error(error, path) from error
        if not found:
            raise UserError(f"the folder {path} holds no file of {', '.join(suffixes)}")
        files |= {file.absolute(): file for file in found if file.absolute() not in files}
    return list(files.values())
