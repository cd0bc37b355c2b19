"""fit, validate, test and predict: run a stage, parse its command line, or build what it needs."""

import atexit
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import ArgsType, LightningArgumentParser

from commands.fit_config import SaveFitConfig
from commands.messages import only_warnings, quieten
from commands.suite_cli import SuiteCLI
from engine import (
    RunDirectory,
    end_workers,
    leave_process_group,
    observe_patiently,
    read_checkpoint,
)
from errors import UserError


def run(args: list[str]) -> None:
    """Run a stage: ``fit``, ``validate``, ``test`` or ``predict`` and its arguments.

    Raises:
        UserError: if the arguments, the data or the checkpoint are invalid.
        SystemExit: with a non-zero status if the run is interrupted.
    """
    quieten()
    observe_patiently()
    atexit.register(leave_process_group)
    atexit.register(end_workers)
    threads = torch.get_num_threads()
    try:
        start(args)
    except OSError as error:
        if error.errno not in UNWRITABLE or (error.filename is None and error.errno not in FULL):
            raise
        name = error.filename or "a file of the run"  # an open file's name is not known
        raise UserError(f"{name} cannot be written ({error.strerror})") from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            "the checkpoint does not fit this configuration's model: give the --config and the "
            f"overrides it was trained with ({' '.join(str(error).split())[:200]} …)"
        ) from error
    finally:
        torch.set_num_threads(threads)


FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, *FULL)
"""Errors of the system that users can mend."""


class Parsed(Exception):  # noqa: N818 # not an error: it leaves LightningCLI's constructor
    """Raised once the command line is parsed and checked."""

    def __init__(self, config: Namespace) -> None:
        self.config = config


class ParsingCLI(SuiteCLI):
    """SuiteCLI that parses and checks the command line, but builds and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        raise Parsed(self.config[self.config.subcommand])


def parse(args: list[str]) -> Namespace:
    """Parse a command line into the configuration that a stage would run with.

    Raises:
        UserError: if a key is unknown or a value is not of its type.
    """
    quieten()
    try:
        start(args, ParsingCLI)
    except Parsed as parsed:
        return parsed.config
    raise AssertionError


class BuildingCLI(SuiteCLI):
    """SuiteCLI that builds what ``test`` needs, but runs nothing."""

    def test(self, **kwargs: Any) -> None:
        """Run nothing."""

    def after_test(self) -> None:
        """Write nothing."""


def as_argument(value: Any) -> str:
    """Return a value of a YAML as the command line writes it: ``null`` for None."""
    return value if isinstance(value, str) else json.dumps(value)


ON_CPU = ("accelerator=cpu", "devices=1", "num_nodes=1", "strategy=auto", "precision=32-true")


class LoadedRun(NamedTuple):
    """What a run trained.

    Attributes:
        model: in evaluation mode, on the CPU.
        data: data module, before its ``setup``.
        path: file of the checkpoint.
        checkpoint: its content.
    """

    model: Any
    data: Any
    path: Path
    checkpoint: dict[str, Any]


def load_run(
    folder: Path, checkpoint: Path | None = None, changed: Mapping[str, Any] | None = None
) -> LoadedRun:
    """Build a run's model and data.

    Args:
        folder: run directory.
        checkpoint: checkpoint to load; by default ``best.ckpt``.
        changed: settings that differ from those of the training.

    Raises:
        UserError: if the run was not trained, or its checkpoint does not fit its configuration.
    """
    run = RunDirectory(folder)
    if not run.config.is_file():
        raise UserError(f"{folder} is not a run directory: it has no {run.config.name}")
    quieten()
    path, home = checkpoint or run.checkpoint("best"), folder.absolute()
    where = [f"--trainer.{setting}" for setting in ON_CPU]
    where += [f"--trainer.default_root_dir={home.parent}", f"--experiment={home.name}"]
    where += [f"--ckpt_path={path.absolute()}", "--threads=null"]
    for key, value in (changed or {}).items():
        where.append(f"--{key}={as_argument(value)}")
    if run.language_model.is_file():  # the path in config.yaml holds where it was packed
        search = "--model.init_args.test_decoding.init_args"
        where += [f"{search}.language_model.init_args.run={run.language_model.absolute()}"]
    with only_warnings():
        built = start(["test", f"--config={run.config}", *where], BuildingCLI)
    model, state = built.model, read_checkpoint(path)
    model.trainer = built.trainer
    model.on_load_checkpoint(state)
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {run.config}: train the run again") from error
    return LoadedRun(model.eval(), built.datamodule, path, state)


def start(args: list[str], cli: type[SuiteCLI] = SuiteCLI) -> SuiteCLI:
    """Run a stage; errors are raised as LightningCLI raises them."""
    # Batches by length keep having new shapes: oneDNN's 1,024 cached convolutions are not reused,
    # and they fragment the heap (docs/speed.md, "Padding and memory"). oneDNN reads the variable
    # at its first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    # Probably cuDNN's attention, which plans anew for each shape, made first epochs on an H200 slow
    # (docs/how_to/devices.md).
    torch.backends.cuda.enable_cudnn_sdp(False)
    stage = args[0]
    arguments = {stage: SuiteCLI.subcommands()[stage]}

    class StageCLI(cli):  # type: ignore[misc, valid-type]
        """The stage alone: building the other stages' parsers takes time."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return arguments

    return StageCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveFitConfig,
        seed_everything_default=42,
        load_from_checkpoint_support=False,  # it would ask each model for all `LINKS`
        trainer_defaults={
            "default_root_dir": "runs",
            "enable_model_summary": False,  # the run logs its number of parameters itself
        },
        parser_kwargs={"exit_on_error": False, stage: {"exit_on_error": False}},
        args=args,
    )
