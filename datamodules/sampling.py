"""Batches that are the same everywhere for the same seed and epoch, and deal out to processes."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

Batch = TypeVar("Batch")


def count_batches(size: int, batch_size: int, world_size: int) -> int:
    """Return how many batches each process gets, so that none is larger and none is empty.

    Raises:
        ValueError: if there are fewer examples than processes.
    """
    if size < world_size:
        raise ValueError(f"{size} examples are too few for {world_size} processes")
    return min(math.ceil(size / (batch_size * world_size)), size // world_size)


class EpochSampler(Sampler[Batch], ABC):
    """A sampler of batches that depend on the epoch and not on what was drawn before.

    Attributes:
        epoch: the epoch to shuffle for.
        skip: batches to leave out at the next iteration.
    """

    epoch = 0
    skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to shuffle for; Lightning calls it."""
        self.epoch = epoch

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    @abstractmethod
    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's examples in their order, over all processes."""

    def fingerprint(self) -> int:
        """Return a checksum of the order, by which a resumed run knows that it is the same."""
        return zlib.crc32(self.order(0).astype(np.int64).tobytes())


class LengthBucketBatchSampler(EpochSampler[list[int]]):
    """Put clips of similar length into one batch, each clip once an epoch over all processes.

    Clips are sorted by length and cut into as few batches as ``batch_size`` allows, of equal size
    to within one clip. Every process gets the same number of batches.

    With ``shuffle``, lengths are first multiplied by a random factor so that a batch's company
    changes from epoch to epoch, and the batches come in random order; both are drawn from
    (seed, epoch). Without, the longest come first: what does not fit into memory fails at once.

    Args:
        lengths: of the clips, in any unit.
        batch_size: most clips in a batch of one process; 1 becomes 2 where clips and processes
            do not divide.
        shuffle: whether batches change from epoch to epoch.
        seed: of the shuffling.
        rank: this process.
        world_size: number of processes.
        jitter: half the width of the random factor's range around 1.

    Raises:
        ValueError: if there are fewer clips than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        jitter: float = 0.05,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batches = count_batches(len(lengths), batch_size, world_size)
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.jitter = jitter

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for batch in self.global_batches(self.epoch)[skip:]:
            # Strided, so that the processes of one step hold clips of like length.
            yield batch[self.rank :: self.world_size].tolist()

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.concatenate(self.global_batches(epoch))

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return an epoch's batches, each over all processes."""
        if not self.shuffle:
            return np.array_split(np.argsort(-self.lengths, kind="stable"), self.batches)
        random = np.random.default_rng((self.seed, epoch))
        factors = random.uniform(1 - self.jitter, 1 + self.jitter, len(self.lengths))
        batches = np.array_split(np.argsort(self.lengths * factors), self.batches)
        return [batches[i] for i in random.permutation(len(batches))]

    def padding(self) -> float:
        """Return the fraction of the epoch's samples that is padding, one process assumed."""
        batches = self.global_batches(self.epoch)
        padded = sum(len(batch) * self.lengths[batch].max() for batch in batches)
        return float(1 - self.lengths.sum() / padded)


class ShuffledBatchSampler(EpochSampler[tuple[Tensor, ...]]):
    """Cut a permutation, or a weighted draw, into batches of indices; each once over all processes.

    Batches are of equal size to within one, and every process gets the same number of them.

    Args:
        size: number of examples.
        batch_size: most examples in a batch of one process; 1 becomes 2 where examples and
            processes do not divide.
        shuffle: whether the order changes with (seed, epoch); otherwise it is 0, 1, 2, ….
        weights: probabilities (size,), up to a factor, to draw ``size`` examples with replacement
            instead of permuting them.
        steps_per_execution: most batches that are handed over together.
        seed: of the shuffling.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: if there are fewer examples than processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        weights: Tensor | None = None,
        steps_per_execution: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.shuffle = shuffle
        self.weights = weights
        self.steps_per_execution = steps_per_execution
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches = count_batches(size, batch_size, world_size)

    def __len__(self) -> int:
        return math.ceil(self.batches / self.steps_per_execution)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        skip, self.skip = self.skip * self.steps_per_execution, 0
        batches = iter(np.array_split(self.order(self.epoch), self.batches)[skip:])
        while together := tuple(islice(batches, self.steps_per_execution)):
            yield tuple(torch.from_numpy(part[self.rank :: self.world_size]) for part in together)

    def order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        random = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            return random.permutation(self.size)
        weights = self.weights.double().numpy()
        return random.choice(self.size, self.size, p=weights / weights.sum())
