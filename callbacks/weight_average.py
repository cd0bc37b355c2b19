"""Averaging of weights over training."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


class ExponentialWeightAverage(WeightAveraging):
    """Evaluate and finally keep an exponential moving average of weights and buffers.

    The decay after n steps is min(``decay``, n / (n + 10)), which also suits short training runs.
    With a constant decay, as in Lightning's `EMAWeightAveraging`, the untrained weights still count
    0.999¹⁰⁰⁰ = 37 % after 1,000 steps, and averaged batch-norm statistics do not match the weights.

    Args:
        decay: maximum decay of the average.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
            if averaged[0].is_floating_point():  # all tensors of a call have one type
                steps = float(count)
                get_ema_multi_avg_fn(min(decay, steps / (steps + 10)))(averaged, current, count)
            else:  # batch norm's counts of batches
                for mean, latest in zip(averaged, current, strict=True):
                    mean.copy_(latest)

        super().__init__(multi_avg_fn=average)
        self._evaluates_average = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average on the trainer's device, which the model itself reaches later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the averaged weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._evaluates_average = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the average: other callbacks draw pictures with the weights that were evaluated."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the trained weights back in, before a checkpoint is saved."""
        if self._evaluates_average:
            super().on_validation_epoch_end(trainer, pl_module)
            self._evaluates_average = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the trained weights for the checkpoint written on interruption."""
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the trained weights, so that the last checkpoint can be resumed from."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the trained weights by their average."""
        super().on_train_end(trainer, pl_module)
