"""Learning-rate schedules, stepped after every optimizer step."""

import math
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine import EpochSampler, find_callbacks
from errors import UserError


def count_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps in the whole training.

    Raises:
        UserError: if the training has no end.
    """
    steps = trainer.estimated_stepping_batches  # sets up the loader that training uses
    if math.isinf(steps):
        raise UserError("a schedule over the whole training needs trainer.max_epochs or max_steps")
    schedulers = find_callbacks(trainer, GradientAccumulationScheduler)
    for scheduler in schedulers if not math.isinf(trainer.num_training_batches) else ():
        # It has not set the factor of the first epoch yet.
        factors = map(scheduler.get_accumulate_grad_batches, range(trainer.max_epochs or 0))
        each_epoch = [math.ceil(trainer.num_training_batches / factor) for factor in factors]
        steps = sum(each_epoch) if each_epoch else steps
        steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    if isinstance(sampler, EpochSampler) and sampler.steps_per_execution > 1:
        steps = sampler.count_steps(int(trainer.num_training_batches)) * (trainer.max_epochs or 1)
        steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    return int(steps)


class WarmupLinearDecay(LRScheduler):
    """Rise linearly from ``floor`` to 1 over the warm-up, then fall linearly to ``floor``.

    The learning rate depends on the step and this configuration alone.

    Args:
        optimizer: optimizer whose learning rates are scaled.
        warmup: fraction of all steps during which the rate rises.
        floor: lowest fraction of the peak, at the first and the last step.
        total_steps: number of optimizer steps in the whole training; None takes the trainer's.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.15,
        floor: float = 0.01,
        total_steps: int | None = None,
    ) -> None:
        for name, value in (("warmup", warmup), ("floor", floor)):
            if not 0 <= value <= 1:
                raise UserError(f"lr_scheduler: {name} {value} is not in [0, 1]")
        if total_steps is not None and total_steps < 1:
            raise UserError(f"lr_scheduler: total_steps {total_steps} is less than 1")
        self.warmup = warmup
        self.floor = floor
        self.total_steps = total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return the fraction of the peak at a step; the floor after the last one."""
        if self.total_steps is None:  # before training, when no step has been taken
            return self.floor
        last = max(self.total_steps - 1, 1)
        progress = min(step / last, 1.0)
        if progress < self.warmup:
            height = progress / self.warmup
        else:
            height = (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return self.floor + (1 - self.floor) * height

    def get_lr(self) -> list[float | Tensor]:
        """Return the current learning rate of each parameter group."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; keep the command line's configuration."""
        configuration = {"warmup", "floor", "total_steps"}
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in configuration})
