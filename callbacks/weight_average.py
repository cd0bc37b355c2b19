"""Averaging of weights over the training."""

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class ExponentialWeightAverage(WeightAveraging):
    """Evaluate, and end with, an exponential moving average of the weights and buffers.

    Its decay after n steps is min(``decay``, n / (n + 10)): the average of a short training. With a
    constant decay, as in Lightning's `EMAWeightAveraging`, the untrained weights still weigh
    0.999¹⁰⁰⁰ = 37 % after 1,000 steps, and batch norm's statistics fit neither them nor the others.

    Args:
        decay: of the average, at most.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():  # batch norm's count of batches
                return current
            steps = float(count)
            return averaged.lerp(current, 1 - min(decay, steps / (steps + 10)))

        super().__init__(avg_fn=average)
