"""fit, validate, test and predict: LightningCLI with run directories."""

import json
import logging
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeUnion,
    ReduceLROnPlateau,
    SaveConfigCallback,
)
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from callbacks import RunCheckpoint, RunFacts
from callbacks.durable_checkpoints import DurableCheckpointIO
from callbacks.interruption import Interruption
from callbacks.metrics_csv import MetricsCSV
from callbacks.settings import ResumeSettings
from commands.run_directory import RunDirectory
from errors import UserError
from lightning_modules.schedules import WarmupLinearDecay, count_steps
from lightning_modules.training import NonFiniteLossError

LINKS = (
    ("vocabulary", "vocabulary"),
    ("vocabulary_size", "network.init_args.decoder.init_args.vocabulary_size"),
    ("class_count", "classes"),
    ("class_count", "network.init_args.classes"),
    ("channels", "network.init_args.channels"),
    ("inputs", "network.init_args.inputs"),
    ("dimension", "network.init_args.dimension"),
    ("low", "network.init_args.low"),
    ("high", "network.init_args.high"),
)
"""What the model takes from the data: attribute of the data module → argument of the model."""


class SaveFitConfig(SaveConfigCallback):
    """Save the configuration of fit as ``config.yaml``; the other stages leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save at the start of fit, without the checkpoint that a resumed run began with."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None
            super().setup(trainer, pl_module, stage)


class SuiteCLI(LightningCLI):
    """LightningCLI whose runs live in ``<trainer.default_root_dir>/<experiment>``."""

    run: RunDirectory
    interruption: Interruption
    checkpoint: Path | None
    resume_step: int

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the stages and the arguments of the trainer's methods that are not the user's."""
        return {
            stage: arguments | {"weights_only"}
            for stage, arguments in LightningCLI.subcommands().items()
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the experiment's name, the checkpoint callback and the links from data to model."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name of the run directory; by default the stem of the first config file.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        for source, target in LINKS:
            parser.link_arguments(
                f"data.{source}", f"model.init_args.{target}", apply_on="instantiate"
            )

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as given.

        Lightning would let the hyper-parameters in the checkpoint override the command line, and
        import whatever class the checkpoint names.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line.

        Raises:
            UserError: if a key is unknown or a value is not of its type.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(shorten(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """Find the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        if config.experiment is None:
            if not config.config:
                raise UserError("without --config the run needs a name: add --experiment NAME")
            config.experiment = Path(config.config[0].relative).stem
        self.run = RunDirectory(Path(config.trainer.default_root_dir) / config.experiment)
        name = config.ckpt_path
        if name is None and self.subcommand != "fit":
            name = "best"  # without a checkpoint Lightning would judge random weights
        name = None if name == "none" else name
        requeued = self.subcommand == "fit" and int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if requeued and (self.run.checkpoints / "last.ckpt").exists():
            rank_zero_info(f"SLURM has started this job again: {self.run.path} goes on")
            name = "last"
        if name is None and self.subcommand == "fit":
            rank_zero_only(self.run.check_unused)()  # the others start when it runs already
        self.checkpoint = None if name is None else self.run.checkpoint(name)
        self.resume_step = 0 if self.checkpoint is None else read_global_step(self.checkpoint)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer.

        Raises:
            UserError: if one of them refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(shorten(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer around the run directory; only fit logs curves."""
        kwargs["default_root_dir"] = str(self.run.path)
        trainer = self._get(self.config_init, "trainer")
        plugins = trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        self.interruption = Interruption()
        always = [self.interruption, ResumeSettings()]
        kwargs["callbacks"] = [*(trainer.callbacks or []), *always]
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif trainer.logger is not False:
            kwargs["callbacks"] += [RunFacts(), LearningRateMonitor("step")]
        if self.subcommand == "fit" and trainer.logger in (None, True):
            kwargs["logger"] = [
                TensorBoardLogger(
                    self.run.path,
                    name="",
                    version="",
                    default_hp_metric=False,
                    purge_step=self.resume_step or None,
                ),
                MetricsCSV(self.run.path, resume_step=self.resume_step),
            ]
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """Step the schedule once an optimizer step, over the whole training unless it says else."""
        if lr_scheduler is None or isinstance(lr_scheduler, ReduceLROnPlateau):
            if lr_scheduler is not None and not lightning_module.automatic_optimization:
                raise UserError("ReduceLROnPlateau needs --data.init_args.steps_per_execution=1")
            return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)
        if isinstance(lr_scheduler, WarmupLinearDecay) and lr_scheduler.total_steps is None:
            lr_scheduler.total_steps = count_steps(lightning_module.trainer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"},
        }

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the stage; leave no new run directory behind if it fails before its first step.

        Raises:
            UserError: if the memory does not suffice; names the batch.
            SystemExit: with a status other than 0 if the run is interrupted.
        """
        is_new = not self.run.path.exists()
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            if is_new and not self.run.holds_run() and self.trainer.is_global_zero:
                shutil.rmtree(self.run.path, ignore_errors=True)
            agreed = isinstance(error, SIGTERMException | NonFiniteLossError)
            if agreed and not self.trainer.is_global_zero:
                sys.exit(0)  # as all processes: the first one reports it, and is left to do so
            if isinstance(error, SIGTERMException):  # a SystemExit of status 0, with work undone
                self.interruption.requeue()
                sys.exit(128 + (self.interruption.signal_number or signal.SIGTERM))
            if is_out_of_memory(error):
                batch = self.datamodule.batch_in_hand
                at = self.datamodule.describe(batch) if batch else "the model, before any batch"
                raise UserError(
                    f"out of memory ({str(error).partition('. ')[0]}) at {at}: lower "
                    "--data.init_args.batch_size"
                ) from error
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": checkpoint, "weights_only": True}

    def after_test(self) -> None:
        """Write ``test_metrics.json``."""
        if self.trainer.is_global_zero:
            metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
            checkpoint = None if self.checkpoint is None else str(self.checkpoint)
            record = {"checkpoint": checkpoint, "metrics": metrics}
            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.test_metrics.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def shorten(message: str) -> str:
    """Return jsonargparse's report on a value as one line: what is wrong, without what it tried."""
    noise = re.compile(
        r"Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>"
        r"|Given value type:|Given value: (Namespace|NestedArg)\("
    )
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line.removeprefix("- ") for line in lines if line and not noise.match(line))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was asked for that is not there, on a GPU or a CPU."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def read_global_step(checkpoint: Path) -> int:
    """Return the number of optimizer steps taken before a checkpoint was written.

    Raises:
        UserError: if the file is no checkpoint.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(state["global_step"])
    except Exception as error:  # torch names no class for what a damaged file makes it raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{checkpoint} is not a whole checkpoint of a run ({reason})") from error


def run(args: list[str]) -> None:
    """Run a stage: ``fit``, ``validate``, ``test`` or ``predict`` and its arguments.

    Raises:
        UserError: if the arguments, the data or the checkpoint are not as they should be.
        SystemExit: with a status other than 0 if the run is interrupted.
    """
    quieten()
    # Batches by length have ever new shapes: of oneDNN's 1,024 cached convolutions none is used
    # again, and between them the heap fragments (+1.4 GB in 48 steps). Read at its first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    try:
        start(args)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            "the checkpoint does not fit this configuration's model: give the --config and the "
            f"overrides it was trained with ({' '.join(str(error).split())[:200]} …)"
        ) from error


class ParsedCLI(SuiteCLI):
    """The command line read and checked, and nothing built or run."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse(args: list[str]) -> Namespace:
    """Return the configuration that a stage would run with.

    Raises:
        UserError: if a key is unknown or a value is not of its type.
    """
    quieten()
    cli = start(args, ParsedCLI)
    return cli.config[cli.subcommand]


def start(args: list[str], cli: type[SuiteCLI] = SuiteCLI) -> SuiteCLI:
    """Run a stage with LightningCLI's own exceptions."""
    return cli(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=42,
        load_from_checkpoint_support=False,
        trainer_defaults={
            "default_root_dir": "runs",
            # The samplers of this suite's data modules deal out to processes themselves.
            "use_distributed_sampler": False,
        },
        parser_kwargs={"exit_on_error": False}
        | {stage: {"exit_on_error": False} for stage in SuiteCLI.subcommands()},
        args=args,
    )


def quieten() -> None:
    """Drop what is only noise to this suite's user; real warnings stay."""
    for module in ("pytorch_lightning", "lightning_fabric"):
        advertiser = logging.getLogger(f"{module}.utilities.rank_zero")
        advertiser.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in (
        r".*LeafSpec.*is deprecated",  # between torch and Lightning
        r"LightningCLI's args parameter is intended",  # cli.main(args) is called from tests
        r"Checkpoint directory .* exists and is not empty",  # of the run that is resumed
    ):
        warnings.filterwarnings("ignore", message)
