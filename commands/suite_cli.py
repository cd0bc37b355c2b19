"""LightningCLI with run directories."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentError
from jsonargparse.typing import PositiveInt
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeUnion,
    ReduceLROnPlateau,
    instantiate_class,
)
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from commands.arguments import LINKS, as_list, check_filled, check_nulls, check_trainer, find_filled
from commands.messages import explain, is_out_of_memory, is_refusal_of_lightning, shorten
from commands.settings import find_changes
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
    Scores,
    check_name,
    choose_precision,
    describe,
    find_checkpoint,
    fuse_steps,
    group_parameters,
    initialize_from,
    is_lost_peer,
    keep_freed_memory,
    read_checkpoint,
)
from engine.reproducibility import KEY
from errors import UserError
from lightning_modules.schedules import WarmupLinearDecay, count_steps


class SuiteCLI(LightningCLI):
    """LightningCLI whose runs live in ``<trainer.default_root_dir>/<experiment>``."""

    run: RunDirectory
    shutdown: GracefulShutdown
    checkpoint_name: str | None
    checkpoint: Path | None
    is_resumed: bool
    initial_checkpoint: Path | None
    resume_step: int
    resume_precision: str | None

    # ------------------------------------------------------------------ the command line

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return each stage with the arguments of its trainer method that users cannot set."""
        return {
            stage: arguments | {"weights_only"}
            for stage, arguments in LightningCLI.subcommands().items()
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the suite's own arguments, the checkpoint callback and the links to the model."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name of the run directory; by default the stem of the first config file.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Run directory or checkpoint to initialize a new fit from; ignored on resume.",
        )
        parser.add_argument(
            "--lr_factors",
            type=dict[str, float],
            default={},
            help="Learning-rate factor of each part of the model, such as {network.encoder: 0.3}.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of each process; by default as many as it has cores.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        for source, target in LINKS:
            parser.link_arguments(
                f"data.{source}", f"model.init_args.{target}", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line.

        Raises:
            UserError: if a key is unknown, or a value null or not of its type.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(explain(str(error))) from error
        check_nulls(self.config[self.config.subcommand])
        seed = self.config[self.config.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything {seed} is not between 0 and {2**32 - 1}")
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
        check_name(config.experiment)
        self.run = RunDirectory(Path(config.trainer.default_root_dir) / config.experiment)
        name = self.checkpoint_name
        if name is None and self.subcommand != "fit":
            name = "best"  # without a checkpoint Lightning would score random weights
        name = None if name == "none" else name
        requeued = self.subcommand == "fit" and int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if requeued and self.run.last.exists():
            rank_zero_info(f"SLURM has started this job again: resuming {self.run.path}")
            name = "last"
        try:
            self.checkpoint = None if name is None else find_checkpoint(name, self.run)
        except UserError as error:
            hint = "the run is named by --experiment, the checkpoint by --ckpt_path"
            raise UserError(f"{error} ({hint})") from error
        self._check_configs()
        home = self.run.checkpoints.absolute()
        self.is_resumed = self.checkpoint is not None and self.checkpoint.absolute().parent == home
        if self.subcommand == "fit" and not self.is_resumed:
            rank_zero_only(self.run.check_unused)()  # others start when the first already runs
        self.initial_checkpoint = None
        if config.init_from is not None and self.subcommand == "fit" and self.checkpoint is None:
            self.initial_checkpoint = find_checkpoint(config.init_from)
        self.resume_step, self.resume_precision = 0, None
        if self.checkpoint is not None:
            checkpoint = read_checkpoint(self.checkpoint)
            self.resume_step = checkpoint["global_step"]
            self.resume_precision = checkpoint.get(KEY, {}).get("precision")
            if self.subcommand == "fit" and "optimizer_states" not in checkpoint:
                raise UserError(
                    f"{self.checkpoint} has weights only and cannot be resumed: start a run from "
                    "them with --init_from"
                )

    def _check_configs(self) -> None:
        """Check that the run's ``config.yaml`` can be read, and that a given one is not of another.

        Raises:
            UserError: if not; before anything is trained or scored.
        """
        if self.run.config.is_file():
            self.run.read_config()
        config = self.config[self.subcommand]
        for given in as_list(config.config):
            other = RunDirectory(Path(given.relative).parent)
            if other.config.name != Path(given.relative).name or not other.holds_run():
                continue
            is_moved = other.path.resolve() != self.run.path.resolve()
            if is_moved and other.read_config().get("experiment") == config.experiment:
                raise UserError(
                    f"{other.config} was moved or copied and still names {self.run.path}: add "
                    f"--trainer.default_root_dir={other.path.parent} "
                    f"--experiment={other.path.name}, or another name for another run"
                )

    def instantiate_classes(self) -> None:
        """Build data, model and trainer.

        Raises:
            UserError: if an argument is invalid.
        """
        config = self.config[self.subcommand]
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            cause: BaseException = error
            while before := cause.__cause__ or cause.__context__:
                cause = before
            if isinstance(cause, TypeError | AttributeError | LookupError | NameError):
                check_filled(config.model, config.data)
                raise cause from error  # jsonargparse hides a mistake in a class of the user's
            raise UserError(shorten(str(error))) from error
        if config.lr_factors and not config.get("optimizer"):
            raise UserError("lr_factors needs an optimizer: section in the configuration")
        if self.initial_checkpoint is not None:
            initialize_from(self.model, self.initial_checkpoint)
        filled = ", ".join(find_filled(config.model, self.datamodule))
        if filled:
            rank_zero_info(f"Filled from the data: {filled}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer around the run directory; only fit logs curves.

        Raises:
            UserError: if a setting is invalid, or the weights would not be in float32.
        """
        keep_freed_memory()
        kwargs["default_root_dir"] = str(self.run.path)
        config = self.config_init[self.subcommand]
        trainer = config.trainer
        plugins = as_list(trainer.plugins)
        kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        self.shutdown = GracefulShutdown(find_slurm(plugins))
        # False leaves the initial weights unseeded; training is seeded in any case.
        seed = config.seed_everything
        seed = SystemRandom().getrandbits(31) if seed is False else seed
        # Shutdown comes first, to stop before other callbacks have seen the next batch. The
        # engine comes last, so that averaged weights are swapped out before a checkpoint is saved.
        engine = [OptimizerSettings(), Reproducibility(seed)]
        kwargs["callbacks"] = [self.shutdown, *as_list(trainer.callbacks), *engine]
        check_trainer(trainer, self.datamodule, is_fit=self.subcommand == "fit")
        mixed = getattr(self.model, "mixed_precision", False)
        if self.subcommand == "fit" and trainer.precision is None and mixed:
            kwargs["precision"] = self.resume_precision or choose_precision(trainer.accelerator)
            rank_zero_info(f"Precision: {kwargs['precision']} (change it with --trainer.precision)")
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
        try:
            return super().instantiate_trainer(**kwargs)
        except TypeError as error:  # such as of trainer.devices
            raise UserError(shorten(str(error))) from error

    def configure_optimizers(  # type: ignore[override] # LightningCLI's is static
        self,
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """Step the schedule after every optimizer step; by default it spans the whole training.

        ``lr_factors`` give parts of the model learning rates of their own.
        """
        config = self.config_init[self.subcommand]
        if config.lr_factors:
            rate = optimizer.defaults["lr"]
            groups = group_parameters(lightning_module, rate, config.lr_factors)
            optimizer = instantiate_class(groups, config.optimizer)
            if lr_scheduler is not None:
                lr_scheduler = instantiate_class(optimizer, config.lr_scheduler)
        fuse_steps(optimizer, lightning_module)
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
        """Train, and keep other processes from training the run; see `_run`."""
        with ExitStack() as locks:
            if self.trainer.is_global_zero:
                locks.enter_context(self.run.lock())
                self._check_start()
            self._run(self.trainer.fit, kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Score on the validation set; see `_run`."""
        self._log_changes()
        self._run(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Score on the test set; see `_run`."""
        self._log_changes()
        self._run(self.trainer.test, kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict; see `_run`."""
        hooks = ("on_predict_batch_end", "on_predict_epoch_end", "on_predict_end")
        writers = [self.model, *as_list(self.config_init[self.subcommand].trainer.callbacks)]
        if not any(is_overridden(hook, writer) for hook in hooks for writer in writers):
            rank_zero_info("Nothing in trainer.callbacks writes the predictions: they will be lost")
        self._run(self.trainer.predict, kwargs)

    def _run(self, stage: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Run a stage; leave no new run directory if it fails before its first step.

        Raises:
            UserError: if memory runs out; names the batch.
            SystemExit: with a non-zero status if the run is interrupted.
        """
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        is_new = self.run.is_empty()
        try:
            stage(**{**kwargs, "ckpt_path": checkpoint, "weights_only": True})
        except BaseException as error:
            progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
            is_untouched = is_new and not progress.completed and not self.run.holds_run()
            if is_untouched and self.trainer.is_global_zero:
                shutil.rmtree(self.run.path, ignore_errors=True)
            self._report(error)

    def _check_start(self) -> None:
        """Check that no other process has trained the run since this one began."""
        if self.checkpoint is None or not self.is_resumed:
            self.run.check_unused()
        elif read_checkpoint(self.checkpoint)["global_step"] != self.resume_step:
            raise UserError(f"{self.checkpoint} was replaced meanwhile: start again")

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
                "--data.init_args.batch_size, or max_batch_seconds"
            ) from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(130)  # Lightning's own is 1
        if is_lost_peer(error):
            raise UserError("another process of this run has ended: see its message") from error
        if isinstance(error, MisconfigurationException) or is_refusal_of_lightning(error):
            raise UserError(shorten(str(error))) from error
        raise error

    def after_test(self) -> None:
        """Write ``test_metrics.json``.

        Raises:
            UserError: if nothing was tested; earlier scores are kept.
        """
        if self.trainer.is_global_zero:
            metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
            if not sum(self.trainer.num_test_batches):
                raise UserError("nothing was tested: trainer.limit_test_batches is 0, or too small")
            checkpoint = None if self.checkpoint is None else str(self.checkpoint)
            changed = {key: new for key, (_, new) in self._changes().items()}
            self.run.write_scores(Scores(checkpoint, self.resume_step, metrics, changed))

    def _log_changes(self) -> None:
        for key, (old, new) in self._changes().items():
            rank_zero_info(f"{key} was {old} in training and is {new} now")

    def _changes(self) -> dict[str, tuple[Any, Any]]:
        """Return the settings of this stage that differ from those of fit."""
        if not self.run.config.is_file():
            return {}
        config = self._parser(self.subcommand).dump(
            self.config[self.subcommand], skip_unset=False, skip_validation=True
        )
        return find_changes(self.run.read_config(), yaml.safe_load(config))


def find_slurm(plugins: list[Any]) -> SLURMEnvironment | None:
    """Return SLURM's environment if the run is a SLURM job that may be requeued."""
    given = [plugin for plugin in plugins if isinstance(plugin, SLURMEnvironment)]
    if not given and SLURMEnvironment.detect():
        given = [SLURMEnvironment()]
    return given[0] if given and given[0].auto_requeue else None
