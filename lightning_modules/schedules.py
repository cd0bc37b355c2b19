"""Learning-rate schedules, stepped once an optimizer step."""

import math
from typing import Any

from pytorch_lightning import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from errors import UserError


def count_steps(trainer: Trainer) -> int:
    """Return the optimizer steps of the whole training.

    Lightning's `estimated_stepping_batches` would set up the loader, which then misses the state
    that a checkpoint has for it.

    Raises:
        UserError: if the training has no end.
    """
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    limit = trainer.limit_train_batches
    batches = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
    together = getattr(loader.sampler, "steps_per_execution", 1)
    if together > 1:
        steps = min(loader.sampler.batches, batches * together)
    else:
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
    ends = [steps * trainer.max_epochs] if trainer.max_epochs and trainer.max_epochs > 0 else []
    ends += [trainer.max_steps] if trainer.max_steps > 0 else []
    if not ends:
        raise UserError("a schedule over the whole training needs trainer.max_epochs or max_steps")
    return min(ends)


class WarmupLinearDecay(LRScheduler):
    """Rise linearly from ``floor`` to 1 over the warm-up, then fall linearly to ``floor``.

    The learning rate is a function of the step and of this configuration alone.

    Args:
        optimizer: whose learning rates are the peak.
        warmup: fraction of all steps that the rate rises for.
        floor: lowest fraction of the peak, at the first and the last step.
        total_steps: optimizer steps of the whole training; None takes the trainer's number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.15,
        floor: float = 0.01,
        total_steps: int | None = None,
    ) -> None:
        self.warmup = warmup
        self.floor = floor
        self.total_steps = total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return the fraction of the peak at a step; the floor behind the last one."""
        if self.total_steps is None:  # before training: no step is taken yet
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
        """Take up the step; the configuration is the command line's."""
        configuration = {"warmup", "floor", "total_steps"}
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in configuration})
