"""Training logic shared by all tasks."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from engine.distributed import gather
from engine.progress import is_batch_done
from errors import UserError

Losses = Mapping[str, Tensor]
Sums = dict[str, Tensor | float]


class NonFiniteLossError(UserError):
    """The loss of a step is NaN or infinite; raised in all processes."""


class TrainingModule(LightningModule):
    """LightningModule that logs each epoch's mean losses and stops at a non-finite loss.

    A task implements `training_losses`. The means, ``train/<name>``, are over all items of all
    processes. Their partial sums are in the checkpoint, so that an epoch has the same means if it
    is interrupted and resumed.

    A batch may hold several optimizer steps, because the trainer's hooks cost more than a step of a
    small network. Such a batch has a method ``steps`` that returns the batch of each step.

    Attributes:
        batch_type: class of the batches that the task accepts.
        mixed_precision: whether training may use bfloat16 unless the configuration says otherwise.
        current_batch: latest batch of any stage; None before the first.
    """

    batch_type: type = object
    mixed_precision = False
    current_batch: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._sums: Sums = {}
        self._weight: Tensor | float = 0.0
        self._pending: list[tuple[Mapping[str, Tensor | float], Tensor | float]] = []

    def training_losses(self, batch: Any) -> tuple[Losses, Tensor | float]:
        """Compute the losses of one step's batch.

        Returns:
            Mean losses by name, and the number of items that they are means over. The loss named
            ``loss`` is minimized.
        """
        raise NotImplementedError

    def adapt_weights(
        self, weights: dict[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Convert another run's weights to this module's names and shapes; unchanged by default.

        Args:
            weights: weights by name.
            checkpoint: whole checkpoint that they are from.
        """
        return weights

    def on_train_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Remember the batch for messages, and check its type.

        Raises:
            UserError: if the batch is of another task.
        """
        self.current_batch = batch
        if not isinstance(batch, self.batch_type):
            data = type(self.trainer.datamodule).__name__  # type: ignore[attr-defined]
            raise UserError(
                f"{type(self).__name__} needs batches of type {self.batch_type.__name__}, but "
                f"{data} yields {type(batch).__name__}"
            )

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start
    on_predict_batch_start = on_train_batch_start

    # ------------------------------------------------------------------ steps

    def setup(self, stage: str) -> None:
        """Let the trainer take the optimizer steps unless a batch has several.

        Raises:
            UserError: if a setting of the trainer needs one step per batch.
        """
        trainer = self.trainer
        steps = getattr(trainer.datamodule, "steps_per_execution", 1)  # type: ignore[attr-defined]
        self.automatic_optimization = steps == 1
        if steps > 1 and (trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1):
            raise UserError(
                "trainer.gradient_clip_val and trainer.accumulate_grad_batches need "
                "--data.init_args.steps_per_execution=1"
            )

    def training_step(self, batch: Any) -> Tensor | None:
        """Return the loss; for a batch of several steps, take them and return None."""
        if not self.automatic_optimization:
            self._take_steps(batch)
            return None
        losses, weight = self.training_losses(batch)
        value = float(losses["loss"].detach())
        self.check_finite(value, batch, self.global_step)
        self.add_losses({name: loss.detach() for name, loss in losses.items()}, weight)
        return losses["loss"]

    def _take_steps(self, batch: Any) -> None:
        first_step = self.global_step
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        backward, step = self.manual_backward, optimizer.step  # type: ignore[union-attr]
        if self._needs_no_trainer():
            backward, step = Tensor.backward, self._step_uncalled
        taken = []
        for part in batch.steps():
            optimizer.zero_grad()  # type: ignore[union-attr]
            losses, weight = self.training_losses(part)
            taken.append((part, {k: loss.detach() for k, loss in losses.items()}, weight))
            backward(losses["loss"])
            step()
            if schedule is not None:
                schedule.step()  # type: ignore[union-attr]
            if first_step + len(taken) == self.trainer.max_steps:
                break
        # Checked together, to avoid waiting for a GPU in each step. A batch with a non-finite loss
        # is not saved.
        values = {
            name: torch.stack([losses[name] for _, losses, _ in taken]).tolist()
            for name in taken[0][1]
        }
        bad = next((i for i, value in enumerate(values["loss"]) if not math.isfinite(value)), 0)
        self.check_finite(values["loss"][bad], taken[bad][0], first_step + bad)
        for i, (_, _, weight) in enumerate(taken):
            self.add_losses({name: of_steps[i] for name, of_steps in values.items()}, weight)

    def _needs_no_trainer(self) -> bool:
        """Return whether the trainer's backward and step add nothing but hooks to PyTorch's.

        The hooks are not used here, and cost a fifth of a small network's step.
        """
        alone = isinstance(self.trainer.strategy, SingleDeviceStrategy)
        return alone and getattr(self.trainer.precision_plugin, "scaler", None) is None

    def _step_uncalled(self) -> None:
        """Take the optimizer's step and count it, without the trainer's hooks."""
        self.count_step_started()
        self.optimizers(use_pl_optimizer=False).step()  # type: ignore[union-attr]
        self.count_step_completed()

    def count_step_started(self) -> None:
        """Tell the trainer that an optimizer step begins; the trainer does not take it itself."""
        self._step_progress().increment_ready()

    def count_step_completed(self) -> None:
        """Tell the trainer that the step is complete: ``global_step`` counts it."""
        self._step_progress().increment_completed()

    def _step_progress(self) -> Any:
        return self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress

    def on_fit_start(self) -> None:
        """Check optimizer and schedule.

        Raises:
            UserError: if they need a trainer that takes the steps, but the model takes them.
        """
        if self.automatic_optimization:
            return
        if any(isinstance(optimizer, LBFGS) for optimizer in self.trainer.optimizers):
            raise UserError("LBFGS needs --data.init_args.steps_per_execution=1")
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise UserError("ReduceLROnPlateau needs --data.init_args.steps_per_execution=1")

    def check_finite(self, value: float, batch: Any, step: int) -> None:
        """Stop all processes if the loss of a step is non-finite in any of them.

        Raises:
            NonFiniteLossError: if a loss is non-finite; names the step and the batch.
        """
        ours = finite = math.isfinite(value)
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        found = gather([] if ours else [f"{value} on {describe(batch)}"])
        raise NonFiniteLossError(
            f"the loss of step {step} is {' and '.join(found)}: check the data, lower the learning "
            "rate, or set --trainer.gradient_clip_val"
        )

    # ------------------------------------------------------------------ means over an epoch

    def add_losses(self, losses: Mapping[str, Tensor | float], weight: Tensor | float) -> None:
        """Accumulate mean losses over the epoch.

        Args:
            losses: mean losses by name, without gradients.
            weight: number of items that they are means over.
        """
        self._pending.append((losses, weight))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Commit the losses of the batch, so that a failed batch adds none."""
        self._commit_losses()

    def _commit_losses(self) -> None:
        # For small networks, calling `self.log` or a metric in each step costs as much as the step.
        for losses, weight in self._pending:
            for name, loss in losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + loss * weight
            self._weight = self._weight + weight
        self._pending = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add each process's loss sums of the current epoch."""
        if is_batch_done(self.trainer):  # the callback that saves may come before `_commit_losses`
            self._commit_losses()
        checkpoint["loss_sums"] = gather([self._to_floats()])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the loss sums: resuming within an epoch does not call on_train_epoch_start."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            sums = checkpoint.get("loss_sums", [])
            if self.global_rank < len(sums):
                self._sums, self._weight = sums[self.global_rank]

    def on_train_epoch_start(self) -> None:
        """Reset the loss sums."""
        self._sums, self._weight = {}, 0.0

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses."""
        processes = gather([self._to_floats()])
        weight = sum(weight for _, weight in processes)
        for name in self._sums:
            self.log(f"train/{name}", sum(sums[name] for sums, _ in processes) / weight)

    def _to_floats(self) -> tuple[dict[str, float], float]:
        return {name: float(total) for name, total in self._sums.items()}, float(self._weight)


def describe(batch: Any) -> str:
    """Return a batch's size and examples, for messages."""
    if hasattr(batch, "describe"):
        return str(batch.describe())
    return f"a batch of type {type(batch).__name__}"
