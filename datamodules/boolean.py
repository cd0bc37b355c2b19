"""All inputs of a Boolean function, or a sample of them, and slightly perturbed copies."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from datamodules.sampling import ShuffledBatchSampler
from datamodules.splits import SplitDataModule
from networks.boolean import check_interval, interval_labels
from networks.separability import signs

ENUMERABLE = 20
"""Most inputs of a function whose 2ᴰ arguments are listed, a million."""


class BooleanDataModule(SplitDataModule[TensorDataset]):
    """f(x) = +1 iff A ≤ Σ xᵢ ≤ B on {−1, +1}ᴰ; all splits are all inputs.

    Batches are (x, y, is_perturbed): inputs (batch, D), labels ±1 (batch,) and, true only in test,
    whether x is a perturbed copy x + t·v of an input, v a random direction of length 1.

    Args:
        dimension: D.
        low: A.
        high: B.
        sample: number of inputs to draw, with replacement, instead of listing all 2ᴰ.
        copies: perturbed copies of each input.
        perturbation: t, their distance from the input; None takes 1/(8D).
        batch_size: inputs in a batch of one process.
        seed: of sampling, perturbation and shuffling.

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
                f"a number of inputs to draw, or take {ENUMERABLE} dimensions at most"
            )
        for name, value in (("batch_size", batch_size), ("sample", sample)):
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
        """List, or draw, the inputs of the splits that ``stage`` needs."""
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

    def _label(self, inputs: Tensor, copies: int, generator: torch.Generator) -> TensorDataset:
        labels = interval_labels(inputs, self.low, self.high).repeat(1 + copies)
        directions = torch.randn(copies * len(inputs), self.dimension, generator=generator)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        perturbed = inputs.repeat(copies, 1) + self.perturbation * directions
        is_perturbed = torch.arange(len(labels)) >= len(inputs)
        return TensorDataset(torch.cat((inputs, perturbed)), labels, is_perturbed)

    def make_sampler(self, split: str, *, shuffle: bool) -> ShuffledBatchSampler:
        """Return the batches of a split."""
        return ShuffledBatchSampler(
            len(self.datasets[split]),
            self.batch_size if shuffle else max(self.batch_size, 4096),
            shuffle=shuffle,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
