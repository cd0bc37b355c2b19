"""Means over an epoch that survive an interruption in the middle of it."""

from collections.abc import Mapping

import torch
from torchmetrics import Metric

from datamodules.gathering import gather

Sums = dict[str, tuple[float, float]]
"""Metric → weighted sum, weight."""


def save_means(metrics: Mapping[str, Metric]) -> list[Sums]:
    """Return the sums of each process's `MeanMetric`s, for a checkpoint."""
    sums = {
        name: (float(metric.mean_value), float(metric.weight))  # type: ignore[arg-type]
        for name, metric in metrics.items()
    }
    return gather([sums])


def load_means(metrics: Mapping[str, Metric], saved: list[Sums], rank: int) -> None:
    """Take up this process's sums, unless there were other processes."""
    if rank < len(saved):
        for name, metric in metrics.items():
            total, weight = torch.tensor(saved[rank][name], device=metric.device)
            metric.mean_value, metric.weight = total, weight
            metric._update_count = 1  # noqa: SLF001 # else it would warn that it is empty
