"""Where a run keeps its files: one folder per experiment."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from engine.locks import hold
from engine.whole import whole_file
from errors import UserError

LOCK = ".lock"
LONGEST_NAME = 255
"""Maximum number of bytes in the name of a file or folder on Linux and macOS."""
GRACE_SECONDS = 10.0
"""How long a fit waits for another one of the same run: the workers of one that was killed need
some seconds to notice."""


@dataclass(frozen=True)
class Scores:
    """Result of a test.

    Attributes:
        checkpoint: file that was tested; None for a model that is constructed, not trained.
        step: number of optimizer steps after which it was saved.
        metrics: values by name.
        changed: settings that differ from those of the training: key → value in the test.
    """

    checkpoint: str | None
    step: int
    metrics: dict[str, float]
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one experiment.

    Attributes:
        path: ``<root>/<experiment>``.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Checkpoint chosen by validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def language_model(self) -> Path:
        """Weights of the recognizer's language model, in a run that ``pack`` wrote."""
        return self.checkpoints / "language_model.ckpt"

    @property
    def config(self) -> Path:
        """Configuration that fit ran with."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """All metrics logged while fitting."""
        return self.path / "metrics.csv"

    @property
    def test_metrics(self) -> Path:
        """Scores of the latest test."""
        return self.path / "test_metrics.json"

    @property
    def test_transcripts(self) -> Path:
        """Texts of the latest test of a recognizer."""
        return self.path / "test_transcripts.csv"

    @property
    def test_words(self) -> Path:
        """Words of the latest test of a recognizer with CTC."""
        return self.path / "test_words.jsonl"

    def read_config(self) -> dict[str, Any]:
        """Return the configuration that fit ran with.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is damaged: delete it, and give the configs again")
        return config

    def write_scores(self, scores: Scores) -> None:
        """Write ``test_metrics.json``."""
        text = json.dumps(asdict(scores), indent=2)
        with whole_file(self.test_metrics) as part:
            part.write_text(f"{text}\n", encoding="utf-8")

    def read_scores(self) -> Scores | None:
        """Return the scores of the latest test; None if there was none.

        Raises:
            UserError: if the file is damaged.
        """
        if not self.test_metrics.is_file():
            return None
        try:
            record = json.loads(self.test_metrics.read_text(encoding="utf-8"))
            return Scores(**{"step": -1, **record})  # version 0.1.0 did not write the step
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.test_metrics} is damaged: test the run again") from error

    def holds_run(self) -> bool:
        """Return whether anything was trained here."""
        return any(self.checkpoints.glob("*.ckpt"))

    def check_unused(self) -> None:
        """Raise a `UserError` if the folder holds a run."""
        if self.holds_run():
            raise UserError(
                f"{self.path} already holds a run: resume it with --ckpt_path last, or start "
                "another with --experiment OTHER"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training this run meanwhile.

        Raises:
            UserError: if one of them does.
        """
        with hold(self.path / LOCK, self.path, "trained", GRACE_SECONDS):
            yield

    def is_empty(self) -> bool:
        """Return whether the folder has no files, or does not exist."""
        return all(path.name == LOCK for path in self.path.glob("*"))

    def checkpoint(self, name: str) -> Path:
        """Return the path of ``last.ckpt`` or ``best.ckpt``.

        Args:
            name: ``last`` or ``best``.

        Raises:
            UserError: if it does not exist.
        """
        path = self.checkpoints / f"{name}.ckpt"
        if not path.is_file():
            reason = f"nothing was trained in {self.path} yet"
            if self.holds_run():
                is_best = name == "best"
                other = self.last if is_best else self.best
                why = "no validation has chosen it yet" if is_best else "the run was packed"
                reason = f"{why}; there is {other}"
            raise UserError(f"{path} does not exist: {reason}")
        return path


def check_name(experiment: str) -> None:
    """Check the name of a run.

    Raises:
        UserError: if it is empty or too long for a folder, or ``config.yaml`` would name a number,
            such as 1e-3.
    """
    if len(Path(experiment).name.encode()) > LONGEST_NAME:
        raise UserError(f"--experiment {experiment[:20]}… is too long for the name of a folder")
    if not experiment.strip():
        raise UserError("--experiment is empty: give the run a name")
    with suppress(ValueError):
        float(experiment)
        if isinstance(yaml.safe_load(experiment), str):
            raise UserError(f"--experiment {experiment} reads as a number: add a letter in front")


def find_checkpoint(name: str, run: RunDirectory | None = None) -> Path:
    """Return the path of a checkpoint.

    Args:
        name: a file; a run directory, of which the best checkpoint is taken; or ``last`` or
            ``best``, of ``run``.
        run: run that ``last`` and ``best`` are of; without one, they are names of files.

    Raises:
        UserError: if it does not exist.
    """
    if run is not None and name in ("last", "best"):
        return run.checkpoint(name)
    path = Path(name)
    if path.is_dir():
        return RunDirectory(path).checkpoint("best")
    if not path.is_file():
        raise UserError(f"{name} does not exist: name a checkpoint or a run directory")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its tensors are mapped into memory, not copied.

    Raises:
        UserError: if the file is damaged or not a checkpoint.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )
        _ = checkpoint["state_dict"], checkpoint["global_step"]
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a whole checkpoint of a run ({reason})") from error
    return checkpoint
