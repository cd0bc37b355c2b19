"""What training does the same in every task."""

import math
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from datamodules.gathering import gather
from datamodules.splits import SplitDataModule
from errors import UserError


class NonFiniteLossError(UserError):
    """The loss of a step is NaN or infinite; raised by all processes."""


class TrainingModule(LightningModule):
    """A LightningModule that logs the mean losses of an epoch and stops at one that is not finite.

    The means, ``train/<name>``, are over all that was handed to `add_losses` in all processes. The
    sums so far are in the checkpoint: an epoch that is interrupted and resumed has the same means.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor | float] = {}
        self._weight: Tensor | float = 0.0
        self._behind_last_batch: tuple[dict[str, Tensor | float], Tensor | float] = ({}, 0.0)
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def add_losses(self, losses: Mapping[str, Tensor | float], weight: Tensor | float) -> None:
        """Add the mean losses of a batch to the epoch's.

        Args:
            losses: by name, without gradients.
            weight: number of what they are means over.
        """
        # With small networks a `self.log` or a metric a step costs as much as the step.
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss * weight
        self._weight = self._weight + weight

    def on_train_start(self) -> None:
        """Note the state of before the first batch."""
        buffers = [b for m in self.modules() if isinstance(m, _NormBase) for b in m.buffers()]
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what the next batch changes before its optimizer step: sums, batch norm's means."""
        self._behind_last_batch = (dict(self._sums), self._weight)
        for buffer, before in self._statistics:
            before.copy_(buffer)

    def put_batch_back(self) -> None:
        """Take back what a batch that was not finished has changed."""
        sums, self._weight = self._behind_last_batch
        self._sums = dict(sums)
        for buffer, before in self._statistics:
            buffer.copy_(before)

    def check_loss(self, loss: Tensor, batch: Any) -> float:
        """Return the loss of the step that is to come; if it is not finite in a process, stop all.

        Raises:
            NonFiniteLossError: then; names the batch.
        """
        value = float(loss.detach())
        self.check_finite(math.isfinite(value), self.global_step, value, batch)
        return value

    def check_finite(self, finite: bool, step: int, value: float, batch: Any) -> None:
        """Stop all processes if in one of them the loss of a step is not finite.

        Raises:
            NonFiniteLossError: then; names step and batch.
        """
        ours = finite
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        data: SplitDataModule[Any] = self.trainer.datamodule  # type: ignore[attr-defined]
        found = gather([] if ours else [f"{value} on {data.describe(batch)}"])
        raise NonFiniteLossError(
            f"the loss of step {step} is {' and '.join(found)}: look at them, lower the learning "
            "rate, or set --trainer.gradient_clip_val"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the losses so far in each process."""
        sums = {name: float(total) for name, total in self._sums.items()}
        checkpoint["loss_sums"] = gather([(sums, float(self._weight))])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up: a run that is resumed in the middle of an epoch does not start that one."""
        if self.trainer.state.fn == TrainerFn.FITTING and "loss_sums" in checkpoint:
            self._sums, self._weight = checkpoint["loss_sums"][self.global_rank]
            self._behind_last_batch = (dict(self._sums), self._weight)

    def on_train_epoch_start(self) -> None:
        """Start the sums of the losses."""
        self._sums, self._weight = {}, 0.0
        self._behind_last_batch = ({}, 0.0)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses; in `training_step` a run resumed behind it would not."""
        sums = {name: float(total) for name, total in self._sums.items()}
        processes = gather([(sums, float(self._weight))])
        weight = sum(weight for _, weight in processes)
        for name in self._sums:
            self.log(f"train/{name}", sum(sums[name] for sums, _ in processes) / weight)
