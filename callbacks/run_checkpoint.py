"""The two checkpoints of a run: best.ckpt and last.ckpt."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from errors import UserError
from lightning_modules.training import NonFiniteLossError, TrainingModule


class RunCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt`` by a validation metric, and ``last.ckpt`` to go on from.

    ``last.ckpt`` is of a moment between two batches: it is written before the first batch of each
    epoch, when all of the epoch before is logged, every few minutes before another, when training
    is interrupted, and at its end.

    Args:
        monitor: metric that decides what is best.
        mode: ``min`` or ``max``.
        minutes: most time between two ``last.ckpt`` within an epoch; None writes none there.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: str = "min", minutes: float | None = 10
    ) -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.minutes = minutes
        self._saved_at = 0.0
        self._saved_step = 0
        self._is_saved = True  # there is nothing yet
        self._has_last = False
        self._step_before_batch = 0
        self._within_step = False
        self._validation_cut_off = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the checkpoints in the run directory, with any logger or none."""
        self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    # ------------------------------------------------------------------ when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the validation that was cut off; Lightning would go on with the next epoch."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._step_before_batch = trainer.global_step
        self._has_last = trainer.strategy.broadcast(Path(self._last_path).exists())
        self._is_saved = not self._validation_cut_off
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.ready == epochs.processed:
            # With max_steps Lightning would take the finished epoch for one to go on with.
            trainer.fit_loop.epoch_loop.restarting = False
        if self._validation_cut_off:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # noqa: SLF001
            loop.restarting = False  # from its beginning
        self._validation_cut_off = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last.ckpt`` if this is a new epoch, or the last one is old."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._is_saved or self._should_skip(trainer):
            return
        if batch_idx % trainer.accumulate_grad_batches != 0:
            return  # gradients that are being accumulated are not in a checkpoint
        is_due = batch_idx == 0
        if not is_due and self.minutes is not None:
            is_due = time.monotonic() - self._saved_at >= 60 * self.minutes
            # The processes' clocks differ.
            is_due = trainer.strategy.reduce_boolean_decision(is_due, all=False)
        if is_due:
            with batch_put_back(trainer):
                self._save_last(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that the state is a new one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._is_saved = False
        self._within_step = False
        self._step_before_batch = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt``."""
        super().on_train_end(trainer, pl_module)
        if not self._is_saved and not self._should_skip(trainer):
            self._save_last(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save ``last.ckpt`` when training is interrupted, if the state is one to go on from.

        Lightning's own hook would also write the interrupted state to ``best.ckpt``.
        """
        if self._is_saved or self._should_skip(trainer):
            return
        # All processes save together: what has hit one of them alone leaves the others waiting.
        together = isinstance(exception, SIGTERMException | NonFiniteLossError)
        if (
            (trainer.world_size > 1 and not together)
            or find_broken(pl_module)
            or self._is_within_step(trainer)
        ):
            rank_zero_info(f"This state is none to go on from: {self._describe_last()}")
            return
        self._validation_cut_off = trainer.validating
        with batch_put_back(trainer):
            self._save_last(trainer)

    @staticmethod
    def _should_skip(trainer: Trainer) -> bool:
        return bool(trainer.fast_dev_run) or trainer.state.fn != TrainerFn.FITTING  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ what

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note that the weights are about to change."""
        self._within_step = True

    def _is_within_step(self, trainer: Trainer) -> bool:
        """Return whether weights or gradients are on the way from one step to the next."""
        loop = trainer.fit_loop.epoch_loop
        if not has_unfinished_batch(trainer):
            return loop._should_accumulate()  # noqa: SLF001
        steps = loop.manual_optimization.optim_step_progress.total
        return (
            self._within_step
            or steps.ready != steps.completed
            or trainer.global_step != self._step_before_batch
            or loop.batch_progress.current.completed % trainer.accumulate_grad_batches != 0
        )

    @property
    def _last_path(self) -> str:
        return str(Path(self.dirpath or "") / "last.ckpt")

    def _save_last(self, trainer: Trainer) -> None:
        best_saved_step = self._last_global_step_saved
        self._has_last = True
        self._save_checkpoint(trainer, self._last_path)
        self._last_global_step_saved = best_saved_step
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        self._is_saved = True

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        broken = find_broken(trainer.lightning_module)
        if broken:
            raise UserError(
                f"at step {trainer.global_step} {broken} is not finite, so that no checkpoint is "
                f"written: {self._describe_last()}; resume there with a lower learning rate or "
                "--trainer.gradient_clip_val"
            )
        for logger in trainer.loggers:  # a run that goes on here does not log it again
            logger.save()
        super()._save_checkpoint(trainer, filepath)
        accumulates = trainer.fit_loop._should_accumulate()  # noqa: SLF001
        if not self._has_last and not accumulates:
            # A run that is killed before the next batch has one to go on from.
            self._has_last = True
            super()._save_checkpoint(trainer, self._last_path)

    def _describe_last(self) -> str:
        if not self._has_last:
            return "there is no last.ckpt yet"
        return f"last.ckpt is of step {self._saved_step or 'that it had before this start'}"

    def state_dict(self) -> dict[str, Any]:
        """Add whether training stopped within a validation."""
        return {**super().state_dict(), "validation_cut_off": self._validation_cut_off}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up."""
        self._validation_cut_off = state_dict.pop("validation_cut_off", False)
        super().load_state_dict(state_dict)


def has_unfinished_batch(trainer: Trainer) -> bool:
    """Return whether the last batch that was fetched is not counted as done."""
    loader: Any = trainer.train_dataloader
    return loader.yielded != trainer.fit_loop.epoch_loop.batch_progress.current.completed


@contextmanager
def batch_put_back(trainer: Trainer) -> Iterator[None]:
    """Make everything that a checkpoint holds as it was before the batch in hand, if there is one.

    What goes on from there begins with that batch.
    """
    if not has_unfinished_batch(trainer):
        yield
        return
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    module = trainer.lightning_module
    assert isinstance(module, TrainingModule)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    before = progress.state_dict()
    counts: Any
    for counts in (progress.total, progress.current):
        counts.ready = counts.started = counts.processed = counts.completed
    progress.is_last_batch = False
    module.put_batch_back()
    data.put_batch_back()
    try:
        yield
    finally:
        data.take_batch_again()
        progress.load_state_dict(before)


def find_broken(module: LightningModule) -> str | None:
    """Return the name of a parameter, or of batch norm's means, that is not finite, or None."""
    norms = [(n, m) for n, m in module.named_modules() if isinstance(m, _NormBase)]
    statistics = ((f"{n}.{name}", b) for n, m in norms for name, b in m.named_buffers())
    values = chain(module.named_parameters(), statistics)
    return next((name for name, value in values if not bool(value.isfinite().all())), None)
