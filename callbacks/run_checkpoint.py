"""The two checkpoints of a run: best.ckpt and last.ckpt."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.trainer.states import TrainerFn


class RunCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt`` by a validation metric, and ``last.ckpt`` of the last epoch or moment.

    Args:
        monitor: metric that decides what is best.
        mode: ``min`` or ``max``.
        minutes: most time between two ``last.ckpt``, within an epoch too; None saves only behind
            epochs.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: str = "min", minutes: float | None = 10
    ) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=True,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self.minutes = minutes
        self._saved_at = 0.0
        self._first_step: int | None = None
        self._validation_cut_off = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the checkpoints in the run directory, with any logger or none."""
        self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last.ckpt`` if the last one is old."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.minutes is not None:
            is_old = time.monotonic() - self._saved_at >= 60 * self.minutes
            if trainer.strategy.broadcast(is_old):  # the processes' clocks differ
                self._save_last_unless_saved(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where validation decides when, as with ``val_check_interval``."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_unless_saved(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt`` after every epoch; Lightning's hook would only if it is the best."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last_unless_saved(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt`` when training ends within an epoch, as with ``max_steps``."""
        super().on_train_end(trainer, pl_module)
        self._save_last_unless_saved(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def _save_last_unless_saved(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save ``last.ckpt`` when training is interrupted.

        Lightning's own hook would also write the interrupted state to ``best.ckpt``.
        """
        # What a run was resumed from is on disk, and whole; what failed while it was read is not.
        is_new = self._first_step is not None and trainer.global_step > self._first_step
        if (
            trainer.state.fn == TrainerFn.FITTING
            and is_new
            and self._should_save_on_exception(trainer)
        ):
            self._validation_cut_off = trainer.validating
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Add whether training stopped within a validation."""
        return {**super().state_dict(), "validation_cut_off": self._validation_cut_off}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up."""
        self._validation_cut_off = state_dict.pop("validation_cut_off", False)
        super().load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the validation that was cut off; Lightning would go on with the next epoch."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._first_step = trainer.global_step
        if self._validation_cut_off:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # noqa: SLF001
            loop.restarting = False  # from its beginning
        self._validation_cut_off = False
