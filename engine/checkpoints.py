"""The two checkpoints of a run: best.ckpt and last.ckpt."""

import time
from itertools import chain
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from engine.progress import accumulates_gradients, describe_between_batches, set_logged_step
from engine.reproducibility import running_statistics
from engine.run_directory import RunDirectory
from engine.signals import Interrupted
from engine.training import NonFiniteLossError
from errors import UserError


class RunCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt`` by a validation metric, and ``last.ckpt`` to resume from.

    ``last.ckpt`` captures the state between two batches. It is written before the first batch of
    each epoch, when the previous epoch is fully logged; every few minutes between batches; when
    training is interrupted; at the end of training; and before the first validation, so that there
    is never a ``best.ckpt`` without a ``last.ckpt``.

    Args:
        monitor: metric that decides which checkpoint is best.
        mode: ``min`` or ``max``.
        minutes: maximum time between saves of ``last.ckpt`` within an epoch; None for no saves.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: str = "min", minutes: float | None = 10
    ) -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.minutes = minutes
        self._saved_at = 0.0
        self._saved_step: int | None = None
        self._is_saved = True  # nothing has been trained yet
        self._has_last = False
        self._has_trained = False
        self._validation_cut_off = False
        self._stepping_batch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the checkpoints in the run directory, with any logger or none."""
        self.run = RunDirectory(Path(trainer.default_root_dir).absolute())
        self.dirpath = str(self.run.checkpoints)
        super().setup(trainer, pl_module, stage)

    # ------------------------------------------------------------------ when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; keep Lightning from repeating a finished epoch under max_steps."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._has_last = trainer.strategy.broadcast(self.run.last.exists())
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.ready == epochs.processed:
            trainer.fit_loop.epoch_loop.restarting = False  # else it repeats the finished epoch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last.ckpt`` if an epoch starts or the latest save is too old."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._has_trained = True
        if not (self._is_saved or self._should_skip(trainer) or accumulates_gradients(trainer)):
            is_due = batch_idx == 0
            if not is_due and self.minutes is not None:
                is_due = time.monotonic() - self._saved_at >= 60 * self.minutes
                # The processes' clocks differ.
                is_due = trainer.strategy.reduce_boolean_decision(is_due, all=False)
            if is_due:
                self._save_last(trainer)
        if not pl_module.automatic_optimization:
            self._note_step(trainer)  # the step may come at any time from now on

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note that the weights are about to change."""
        self._note_step(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that there is something new to save."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._is_saved = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the first ``last.ckpt``; log a repeated validation at its original step."""
        super().on_validation_start(trainer, pl_module)
        if trainer.sanity_checking or self._should_skip(trainer):
            return
        self._is_saved = False  # on resume the epoch may end without another batch
        if not self._has_trained:
            set_logged_step(trainer, trainer.global_step - 1)
        if not self._has_last and not accumulates_gradients(trainer):
            self._save_last(trainer, validation_cut_off=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before anything is trained, check that a validation logs the monitored metric.

        Raises:
            UserError: if it does not.
        """
        super().on_validation_end(trainer, pl_module)
        monitor, logged = self.monitor or "", trainer.callback_metrics
        # With several loaders, Lightning has no metrics of the check before training.
        is_known = trainer.sanity_checking and len(trainer.num_sanity_val_batches) == 1
        if is_known and monitor.startswith("val") and monitor not in logged:
            raise UserError(
                f"{type(pl_module).__name__} logs no {monitor}, which decides which checkpoint is "
                f"best: log it, or give --checkpoint.monitor one of: {', '.join(logged)}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt``."""
        super().on_train_end(trainer, pl_module)
        if not self._is_saved and not self._should_skip(trainer):
            self._save_last(trainer)
        taken, batches = trainer.fit_loop.epoch_loop.batch_idx + 1, trainer.num_training_batches
        if trainer.should_stop and taken < batches:
            rank_zero_info(
                f"Stopped after batch {taken} of {batches} of an epoch: resuming starts with the "
                "next epoch"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save ``last.ckpt`` when training is interrupted, if the run can resume from this state.

        Lightning's own hook would also write the interrupted state to ``best.ckpt``.
        """
        if self._is_saved or self._should_skip(trainer):
            return
        # All processes must save together: after an error in one, the others would wait for it.
        together = isinstance(exception, Interrupted | NonFiniteLossError)
        if (
            (trainer.world_size > 1 and not together)
            or accumulates_gradients(trainer)
            or is_within_epoch_end(trainer)
            or self._is_within_step(trainer)
            or find_non_finite(pl_module)
        ):
            rank_zero_info(f"Cannot resume from this state: {self._describe_last()}")
            return
        self._save_last(trainer, validation_cut_off=trainer.validating)

    @staticmethod
    def _should_skip(trainer: Trainer) -> bool:
        return bool(trainer.fast_dev_run) or trainer.state.fn != TrainerFn.FITTING  # type: ignore[attr-defined]

    def _note_step(self, trainer: Trainer) -> None:
        self._stepping_batch = trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _is_within_step(self, trainer: Trainer) -> bool:
        """Return whether the current batch has begun to change the weights."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        is_unfinished = progress.total.ready != progress.total.completed
        return is_unfinished and self._stepping_batch == progress.total.completed

    # ------------------------------------------------------------------ what

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which checkpoint is the best, also in a run directory that was moved."""
        best = self.run.best
        if best.exists():
            scores = state_dict["best_k_models"].values()
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(best),
                "kth_best_model_path": str(best),
                "best_k_models": dict.fromkeys([str(best)] * len(scores), *scores),
            }
        super().load_state_dict(state_dict)

    def _save_last(self, trainer: Trainer, *, validation_cut_off: bool = False) -> None:
        self._validation_cut_off = validation_cut_off
        try:
            trainer.save_checkpoint(self.run.last, weights_only=False)
        finally:
            self._validation_cut_off = False
        self._has_last = True
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        self._is_saved = not validation_cut_off

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Complete any checkpoint of the run, ``last.ckpt`` or other.

        Raises:
            UserError: if a weight is non-finite.
        """
        name = find_non_finite(pl_module)
        if name:
            raise UserError(
                f"at step {trainer.global_step} {name} is not finite, so no checkpoint is written: "
                f"{self._describe_last()}; resume there with a lower learning rate or "
                "--trainer.gradient_clip_val"
            )
        for logger in trainer.loggers:  # a run resumed from here does not log these rows again
            logger.save()
        describe_between_batches(trainer, checkpoint, validation_cut_off=self._validation_cut_off)

    def _describe_last(self) -> str:
        if not self._has_last:
            return "there is no last.ckpt yet"
        if self._saved_step is None:
            return "last.ckpt is the one that this run started from"
        return f"last.ckpt is of step {self._saved_step}"


def is_within_epoch_end(trainer: Trainer) -> bool:
    """Return whether an epoch is over, but not completely logged."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(epochs.processed != epochs.completed)


def find_non_finite(module: nn.Module) -> str | None:
    """Return the name of a parameter or running statistic with a non-finite value, or None."""
    values = chain(module.named_parameters(), running_statistics(module))
    return next((name for name, value in values if not bool(value.isfinite().all())), None)
