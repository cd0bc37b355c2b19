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

    The learning rate is a function of the step and of this configuration alone. With a checkpoint's
    step but another number of steps it would jump: that is refused unless ``total_steps`` is given.

    Args:
        optimizer: whose learning rates are the peak.
        warmup: fraction of all steps that the rate rises for.
        floor: lowest fraction of the peak, at the first and the last step.
        total_steps: optimizer steps of the whole training; None takes the trainer's number.

    Attributes:
        follows_trainer: whether the number is the trainer's.
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
        self.follows_trainer = False
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

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the rates and the number of steps; the rest is the command line's."""
        configuration = {"warmup", "floor", "follows_trainer"}
        return {
            key: value for key, value in super().state_dict().items() if key not in configuration
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step.

        Raises:
            UserError: if the trainer now gives the schedule another number of steps.
        """
        total = state_dict.pop("total_steps")
        if self.follows_trainer and total != self.total_steps:
            raise UserError(
                f"the checkpoint's learning-rate schedule is over {total} steps, this "
                f"configuration's over {self.total_steps}: resume with the trainer.max_epochs and "
                "max_steps it was trained with, or say which of them to follow with "
                "--lr_scheduler.init_args.total_steps"
            )
        super().load_state_dict(state_dict)
