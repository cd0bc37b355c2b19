"""The two checkpoints of a run: best.ckpt and last.ckpt."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from errors import UserError
from lightning_modules.training import NonFiniteLossError, TrainingModule


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
        self._saved_step: int | None = None
        self._is_saved = False
        self._step_before_batch = 0
        self._within_step = False
        self._validation_cut_off = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the checkpoints in the run directory, with any logger or none."""
        self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the weights' step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._step_before_batch = trainer.global_step
        self._within_step = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note that the weights are about to change."""
        self._within_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last.ckpt`` if the last one is old."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher  # noqa: SLF001
        if (
            self.minutes is None
            # Gradients that are being accumulated are not in a checkpoint.
            or loop._should_accumulate()  # noqa: SLF001
            # Of what follows, Lightning would leave out the validation and the end of the epoch.
            or trainer.is_last_batch
            or (fetcher is not None and loop._should_check_val_fx(fetcher))  # noqa: SLF001
        ):
            return
        is_old = time.monotonic() - self._saved_at >= 60 * self.minutes
        # The processes' clocks differ.
        if trainer.strategy.reduce_boolean_decision(is_old, all=False):
            self._save_last_unless_saved(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where validation decides when, as with ``val_check_interval``."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_unless_saved(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt`` after every epoch; Lightning's hook would only if it is the best."""
        self._is_saved = False
        super().on_train_epoch_end(trainer, pl_module)
        if not self._is_saved:  # what a validation saved is not of the end of the epoch
            self._last_global_step_saved = -1
            self._save_last_unless_saved(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt`` when training ends within an epoch, as with ``max_steps``."""
        super().on_train_end(trainer, pl_module)
        self._save_last_unless_saved(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        broken = find_broken(trainer.lightning_module)
        if broken:
            raise UserError(
                f"at step {trainer.global_step} {broken} is not finite, so that no checkpoint is "
                f"written: {self._describe_last()}; resume there with a lower learning rate or "
                "--trainer.gradient_clip_val"
            )
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        self._is_saved = True

    def _save_last_unless_saved(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save ``last.ckpt`` when training is interrupted, if the state is one to go on from.

        Lightning's own hook would also write the interrupted state to ``best.ckpt``.
        """
        # What a run was resumed from is on disk, and whole; what failed while it was read is not.
        is_new = self._first_step is not None and trainer.global_step > self._first_step
        if (
            trainer.state.fn != TrainerFn.FITTING
            or not is_new
            or not self._should_save_on_exception(trainer)
        ):
            return
        # All processes save together: what has hit one of them alone leaves the others waiting.
        together = isinstance(exception, SIGTERMException | NonFiniteLossError)
        if (
            (trainer.world_size > 1 and not together)
            or find_broken(pl_module)
            or not self._go_back_to_whole_step(trainer)
        ):
            rank_zero_info(f"Stopped within a step: {self._describe_last()}")
            return
        self._validation_cut_off = trainer.validating
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _go_back_to_whole_step(self, trainer: Trainer) -> bool:
        """Put the batch in hand back if it was not finished; return whether that is possible."""
        loop = trainer.fit_loop.epoch_loop
        progress = loop.batch_progress
        loader: Any = trainer.train_dataloader
        if loader.yielded == progress.current.completed:
            return not trainer.fit_loop._should_accumulate()  # noqa: SLF001
        steps = loop.manual_optimization.optim_step_progress.total
        if (
            self._within_step
            or steps.ready != steps.completed
            or (
                progress.current.ready > progress.current.completed
                and trainer.global_step != self._step_before_batch
            )
            or progress.current.completed % trainer.accumulate_grad_batches != 0
        ):
            return False
        trainer.datamodule.put_batch_back()  # type: ignore[attr-defined]
        assert isinstance(trainer.lightning_module, TrainingModule)
        trainer.lightning_module.put_batch_back()
        counts: Any
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = counts.processed = counts.completed
        progress.is_last_batch = False
        return True

    def _describe_last(self) -> str:
        if self._saved_step is None:
            return "there is no last.ckpt of this run yet"
        return f"last.ckpt is of step {self._saved_step}"

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
        self._saved_step = trainer.global_step or None
        if self._validation_cut_off:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # noqa: SLF001
            loop.restarting = False  # from its beginning
        self._validation_cut_off = False


def find_broken(module: LightningModule) -> str | None:
    """Return the name of a parameter with a value that is not finite, or None."""
    values = module.named_parameters()
    return next((name for name, value in values if not bool(value.isfinite().all())), None)
