"""fit, validate, test and predict: LightningCLI with run directories."""

import atexit
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
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
from torch.optim import Optimizer

from commands.links import LINKS, find_filled
from commands.messages import explain, is_out_of_memory, quieten, shorten
from engine import (
    DurableCheckpointIO,
    GracefulShutdown,
    Interrupted,
    MetricsCSV,
    NonFiniteLossError,
    OptimizerSettings,
    Reproducibility,
    RunCheckpoint,
    RunDirectory,
    RunStatistics,
    describe,
    end_workers,
    is_lost_peer,
    leave_process_group,
)
from errors import UserError
from lightning_modules.schedules import WarmupLinearDecay, count_steps


class SaveFitConfig(SaveConfigCallback):
    """Save the configuration of fit as ``config.yaml``; the other stages leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait: a run that refuses to resume keeps its configuration."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when training starts."""
        super().setup(trainer, pl_module, "fit")


class SuiteCLI(LightningCLI):
    """LightningCLI whose runs live in ``<trainer.default_root_dir>/<experiment>``."""

    run: RunDirectory
    shutdown: GracefulShutdown
    checkpoint_name: str | None
    checkpoint: Path | None
    resume_step: int

    # ------------------------------------------------------------------ the command line

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return each stage with the arguments of its trainer method that users cannot set."""
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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line.

        Raises:
            UserError: if a key is unknown or a value is not of its type.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(explain(str(error))) from error
        # Lightning must not see ckpt_path: it would let the checkpoint's hyper-parameters override
        # the command line, and import any class that the checkpoint names.
        config = self.config[self.config.subcommand]
        self.checkpoint_name, config.ckpt_path = config.ckpt_path, None

    # ------------------------------------------------------------------ building

    def before_instantiate_classes(self) -> None:
        """Find the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        if config.experiment is None:
            if not config.config:
                raise UserError("without --config the run needs a name: add --experiment NAME")
            config.experiment = Path(config.config[0].relative).stem
        self.run = RunDirectory(Path(config.trainer.default_root_dir) / config.experiment)
        name = self.checkpoint_name
        if name is None and self.subcommand != "fit":
            name = "best"  # without a checkpoint Lightning would score random weights
        name = None if name == "none" else name
        requeued = self.subcommand == "fit" and int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if requeued and (self.run.checkpoints / "last.ckpt").exists():
            rank_zero_info(f"SLURM has started this job again: resuming {self.run.path}")
            name = "last"
        self.checkpoint = None if name is None else self.run.checkpoint(name)
        home = self.run.checkpoints.absolute()
        is_resumed = self.checkpoint is not None and self.checkpoint.absolute().parent == home
        if self.subcommand == "fit" and not is_resumed:
            rank_zero_only(self.run.check_unused)()  # others start when the first already runs
        self.resume_step = 0 if self.checkpoint is None else read_global_step(self.checkpoint)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer.

        Raises:
            UserError: if an argument is invalid.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(shorten(str(error))) from error
        filled = ", ".join(find_filled(self.config[self.subcommand].model, self.datamodule))
        if filled:
            rank_zero_info(f"Filled from the data: {filled}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer around the run directory; only fit logs curves."""
        kwargs["default_root_dir"] = str(self.run.path)
        config = self.config_init[self.subcommand]
        trainer = config.trainer
        plugins = trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        self.shutdown = GracefulShutdown(find_slurm(plugins))
        # False leaves the initial weights unseeded; training is seeded in any case.
        seed = config.seed_everything
        seed = SystemRandom().getrandbits(31) if seed is False else seed
        # Shutdown comes first, to stop before other callbacks have seen the next batch. The
        # engine comes last, so that averaged weights are swapped out before a checkpoint is saved.
        engine = [OptimizerSettings(), Reproducibility(seed)]
        kwargs["callbacks"] = [self.shutdown, *(trainer.callbacks or []), *engine]
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif trainer.logger is not False:
            kwargs["callbacks"] += [RunStatistics(), LearningRateMonitor("step")]
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
        """Step the schedule after every optimizer step; by default it spans the whole training."""
        if lr_scheduler is None or isinstance(lr_scheduler, ReduceLROnPlateau):
            return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)
        if isinstance(lr_scheduler, WarmupLinearDecay) and lr_scheduler.total_steps is None:
            lr_scheduler.total_steps = count_steps(lightning_module.trainer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"},
        }

    # ------------------------------------------------------------------ running

    def fit(self, **kwargs: Any) -> None:
        """Train; see `_run`."""
        self._run(self.trainer.fit, kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Score on the validation set; see `_run`."""
        self._run(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Score on the test set; see `_run`."""
        self._run(self.trainer.test, kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict; see `_run`."""
        self._run(self.trainer.predict, kwargs)

    def _run(self, stage: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Run a stage; leave no new run directory if it fails before its first step.

        Raises:
            UserError: if memory runs out; names the batch.
            SystemExit: with a non-zero status if the run is interrupted.
        """
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        is_new = not self.run.path.exists()
        try:
            stage(**{**kwargs, "ckpt_path": checkpoint, "weights_only": True})
        except BaseException as error:
            progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
            is_untouched = is_new and not progress.completed and not self.run.holds_run()
            if is_untouched and self.trainer.is_global_zero:
                shutil.rmtree(self.run.path, ignore_errors=True)
            self._report(error)

    def _report(self, error: BaseException) -> NoReturn:
        if isinstance(error, Interrupted | NonFiniteLossError) and not self.trainer.is_global_zero:
            # All processes stop, and the first one reports the reason. If another process ended
            # with a non-zero status before that, the first would be killed.
            raise SystemExit(0)
        if isinstance(error, Interrupted):
            self.shutdown.requeue()
        if is_out_of_memory(error):
            batch = getattr(self.model, "current_batch", None)
            at = "a step of the model" if batch is None else describe(batch)
            raise UserError(
                f"out of memory ({str(error).partition('. ')[0]}) at {at}: lower "
                "--data.init_args.batch_size"
            ) from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(130)  # Lightning's own is 1
        if is_lost_peer(error):
            raise UserError("another process of this run has ended: see its message") from error
        raise error

    def after_test(self) -> None:
        """Write ``test_metrics.json``."""
        if self.trainer.is_global_zero:
            metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
            checkpoint = None if self.checkpoint is None else str(self.checkpoint)
            record = {"checkpoint": checkpoint, "metrics": metrics}
            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.test_metrics.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def find_slurm(plugins: list[Any]) -> SLURMEnvironment | None:
    """Return SLURM's environment if the run is a SLURM job that may be requeued."""
    given = [plugin for plugin in plugins if isinstance(plugin, SLURMEnvironment)]
    if not given and SLURMEnvironment.detect():
        given = [SLURMEnvironment()]
    return given[0] if given and given[0].auto_requeue else None


def read_global_step(checkpoint: Path) -> int:
    """Return the number of optimizer steps taken before a checkpoint was written.

    Raises:
        UserError: if the file is not a complete checkpoint.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(state["global_step"])
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"{checkpoint} is not a whole checkpoint of a run ({reason})") from error


def run(args: list[str]) -> None:
    """Run a stage: ``fit``, ``validate``, ``test`` or ``predict`` and its arguments.

    Raises:
        UserError: if the arguments, the data or the checkpoint are invalid.
        SystemExit: with a non-zero status if the run is interrupted.
    """
    quieten()
    atexit.register(leave_process_group)
    atexit.register(end_workers)
    # Batches by length keep having new shapes: oneDNN's 1,024 cached convolutions are not reused,
    # and they fragment the heap (+1.4 GB in 48 steps). oneDNN reads the variable at its first use.
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


def start(args: list[str], cli: type[SuiteCLI] = SuiteCLI) -> None:
    """Run a stage; errors are raised as LightningCLI raises them."""
    stage = args[0]
    arguments = {stage: SuiteCLI.subcommands()[stage]}

    class StageCLI(cli):  # type: ignore[misc, valid-type]
        """The stage alone: building the other stages' parsers takes time."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return arguments

    StageCLI(
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
            "enable_model_summary": False,  # the run logs its number of parameters itself
        },
        parser_kwargs={"exit_on_error": False, stage: {"exit_on_error": False}},
        args=args,
    )
