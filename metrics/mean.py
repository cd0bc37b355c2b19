"""Means of losses."""

from torch import Tensor
from torchmetrics import MeanMetric


class WeightedMean(MeanMetric):
    """Weighted mean of values; NaN if one of them is.

    ``MeanMetric`` leaves NaN out or, with ``nan_strategy="disable"``, takes all weights as 1.
    """

    def update(self, value: Tensor, weight: Tensor | float) -> None:  # type: ignore[override]
        """Add a value.

        Args:
            value: scalar.
            weight: its weight, such as the number of examples that it is the mean of.
        """
        self.mean_value += value * weight
        self.weight += weight
