"""Statistics of a run: its size and its speed."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from networks import get_number_trainable_params


class RunStatistics(Callback):
    """Log ``parameters`` once and ``time/epoch``, in seconds, every epoch.

    The time of an epoch includes writing ``last.ckpt``, but no validation. An epoch that was
    resumed has no time.

    Both go to the loggers directly. With ``self.log``, the processes would have to communicate
    whenever the progress bar of one of them asks for metrics.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of parameters that training changes."""
        count = get_number_trainable_params(pl_module)
        rank_zero_info(f"{count:,} trainable parameters")
        self._log(trainer, "parameters", count, trainer.global_step)
        # A run resumed in the middle of an epoch does not start that epoch, and cannot time it.
        self._seconds: float | None = None
        self._start: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._seconds, self._start = 0.0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the clock go on after a validation within the epoch."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds."""
        self._stop()
        if self._seconds is not None:
            self._log(trainer, "time/epoch", self._seconds, trainer.global_step - 1)

    def _stop(self) -> None:
        if self._seconds is not None and self._start is not None:
            self._seconds += time.perf_counter() - self._start
        self._start = None

    @staticmethod
    def _log(trainer: Trainer, name: str, value: float, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value, "epoch": trainer.current_epoch}, step=step)
