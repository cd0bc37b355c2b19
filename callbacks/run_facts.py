"""What every run notes about itself: its size and its speed."""

import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from networks import get_number_trainable_params


class RunFacts(Callback):
    """Log ``parameters`` once and ``time/epoch``, the seconds of training alone, every epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of parameters that training changes."""
        count = getattr(pl_module, "parameter_count", get_number_trainable_params(pl_module))
        rank_zero_info(f"{count:,} trainable parameters")
        for logger in trainer.loggers:
            logger.log_metrics({"parameters": count}, step=trainer.global_step)
        # A run resumed in the middle of an epoch does not start that epoch.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._seconds: float | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it where the trainer validates inside the epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds."""
        seconds = time.perf_counter() - self._start if self._seconds is None else self._seconds
        pl_module.log("time/epoch", seconds, sync_dist=True)
