"""Statistics of a run: its size and its speed."""

import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info


class RunStatistics(Callback):
    """Log ``parameters`` once and ``time/epoch``, the seconds of training alone, every epoch.

    They go to the loggers directly. With ``self.log``, the processes would have to communicate
    whenever the progress bar of one of them asks for metrics.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of parameters that training changes."""
        count = getattr(pl_module, "parameter_count", None)
        if count is None:
            count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        rank_zero_info(f"{count:,} trainable parameters")
        self._log(trainer, "parameters", count, trainer.global_step)
        # A run resumed in the middle of an epoch does not start that epoch.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._seconds: float | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock if the trainer validates within the epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds."""
        seconds = time.perf_counter() - self._start if self._seconds is None else self._seconds
        self._log(trainer, "time/epoch", seconds, trainer.global_step - 1)

    @staticmethod
    def _log(trainer: Trainer, name: str, value: float, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value, "epoch": trainer.current_epoch}, step=step)
