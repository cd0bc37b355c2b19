"""Statistics of a run: its size and its speed."""

import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info


class RunStatistics(Callback):
    """Log ``parameters`` once and ``time/epoch``, the seconds of training alone, every epoch.

    An epoch that was resumed has no time. Both go to the loggers directly. With ``self.log``, the
    processes would have to communicate whenever the progress bar of one of them asks for metrics.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of parameters that training changes."""
        count = getattr(pl_module, "parameter_count", None)
        if count is None:
            count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        rank_zero_info(f"{count:,} trainable parameters")
        self._log(trainer, "parameters", count, trainer.global_step)
        # A run resumed in the middle of an epoch does not start that epoch, and cannot time it.
        self._start: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the clock stops, for a validation within or after the epoch."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._start is not None:
            self._start += time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds."""
        if self._start is not None:
            seconds = time.perf_counter() - self._start
            self._log(trainer, "time/epoch", seconds, trainer.global_step - 1)

    @staticmethod
    def _log(trainer: Trainer, name: str, value: float, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value, "epoch": trainer.current_epoch}, step=step)
