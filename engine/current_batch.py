"""Which batch is being worked on, for messages about failures."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class CurrentBatch(Callback):
    """Remember the current batch.

    Attributes:
        batch: the latest batch of any stage; None before the first.
    """

    def __init__(self) -> None:
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch."""
        self.batch = batch

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the batch."""
        self.batch = batch

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start
