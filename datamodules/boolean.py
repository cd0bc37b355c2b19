"""Inputs of a Boolean function (all or a sample), with perturbed copies for test."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import ShuffledBatchSampler
from datamodules.splits import SplitDataModule
from networks.boolean import check_interval, interval_labels
from networks.separability import signs

ENUMERABLE = 20
"""Maximum dimension for which all 2ᴰ inputs, about a million, are listed."""


class BooleanBatch(NamedTuple):
    """A batch of inputs of a Boolean function.

    Attributes:
        x: (batch, D) inputs.
        y: (batch,) labels, −1 or +1.
        is_perturbed: (batch,) whether x is a perturbed copy of an input; only in test.
    """

    x: Tensor
    y: Tensor
    is_perturbed: Tensor

    def describe(self) -> str:
        """Return the number of inputs and their values."""
        return f"a batch of {len(self.x)} inputs ({self.x.tolist()})"


class BooleanDataset(Dataset[BooleanBatch]):
    """Inputs in memory, indexed by a tuple of index tensors, one per optimizer step."""

    def __init__(self, x: Tensor, y: Tensor, is_perturbed: Tensor) -> None:
        self.tensors = (x, y, is_perturbed)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, steps: tuple[Tensor, ...]) -> BooleanBatch:
        indices = torch.cat(steps)
        return BooleanBatch(*(tensor[indices] for tensor in self.tensors))


class BooleanDataModule(SplitDataModule[BooleanDataset]):
    """f(x) = +1 iff A ≤ Σ xᵢ ≤ B on {−1, +1}ᴰ; every split has the same inputs.

    Args:
        dimension: D.
        low: A.
        high: B.
        sample: number of inputs to draw, with replacement, instead of listing all 2ᴰ.
        copies: number of perturbed copies x + t·v of each input, v a random direction of length 1.
        perturbation: t, distance of a copy from its input; None takes 1/(8D).
        batch_size: maximum number of inputs per batch and process.
        seed: seed for sampling and perturbation.

    Raises:
        ValueError: unless D ≥ 1 and −D ≤ A ≤ B ≤ D, or if there are too many inputs to list.
    """

    def __init__(
        self,
        dimension: int = 2,
        low: int = 0,
        high: int = 0,
        sample: int | None = None,
        copies: int = 4,
        perturbation: float | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_interval(dimension, low, high)
        if sample is None and dimension > ENUMERABLE:
            raise ValueError(
                f"dimension {dimension} has 2^{dimension} inputs, too many to list: set sample to "
                f"a number of inputs to draw, or take at most {ENUMERABLE} dimensions"
            )
        for name, value in (("batch_size", batch_size), ("sample", sample), ("copies", copies)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is less than 1")
        self.dimension = dimension
        self.low = low
        self.high = high
        self.sample = sample
        self.copies = copies
        self.perturbation = 1 / (8 * dimension) if perturbation is None else perturbation
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """List or draw the inputs of the splits that ``stage`` needs."""
        missing = self.missing_splits(stage)
        if missing:
            generator = torch.Generator().manual_seed(self.seed)
            inputs = self._inputs(generator)
            for split in missing:
                copies = self.copies if split == "test" else 0
                self.datasets[split] = self._label(inputs, copies, generator)

    def _inputs(self, generator: torch.Generator) -> Tensor:
        if self.sample is None:
            return torch.from_numpy(signs(self.dimension)).float()
        shape = (self.sample, self.dimension)
        return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1

    def _label(self, inputs: Tensor, copies: int, generator: torch.Generator) -> BooleanDataset:
        labels = interval_labels(inputs, self.low, self.high).repeat(1 + copies)
        directions = torch.randn(copies * len(inputs), self.dimension, generator=generator)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        perturbed = inputs.repeat(copies, 1) + self.perturbation * directions
        is_perturbed = torch.arange(len(labels)) >= len(inputs)
        return BooleanDataset(torch.cat((inputs, perturbed)), labels, is_perturbed)

    def make_sampler(self, split: str, *, shuffle: bool) -> ShuffledBatchSampler:
        return ShuffledBatchSampler(
            len(self.datasets[split]),
            self.batch_size if shuffle else max(self.batch_size, 4096),
            shuffle=shuffle,
            rank=self.rank,
            world_size=self.world_size,
        )
