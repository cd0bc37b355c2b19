"""Samplers of batches: the same for the same seed and epoch, divided among the processes."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import EpochSampler
from errors import UserError

JITTER = 0.05
"""Half the width of the range around 1 of the factors that lengths are multiplied by."""


def count_batches(size: int, batch_size: int, world_size: int) -> int:
    """Return the number of batches per process: as few as ``batch_size`` allows, none empty.

    Raises:
        UserError: if there are fewer examples than processes.
    """
    if size < world_size:
        raise UserError(
            f"{size} examples are too few for {world_size} processes: use fewer devices"
        )
    return min(math.ceil(size / (batch_size * world_size)), size // world_size)


class LengthBucketBatchSampler(EpochSampler):
    """Batch clips of similar length; each clip comes once per epoch over all processes.

    Clips are sorted by length and cut into as few batches as the limits allow. Every process gets
    the same number of batches. Without ``max_batch_length``, batch sizes differ by at most one
    clip; with it, batches of short clips hold more.

    With ``shuffle``, lengths are first multiplied by a random factor, so that clips are grouped
    differently in each epoch, and the batches come in random order. Both are drawn from
    (seed, epoch). Without ``shuffle``, the longest clips come first, so that a batch too large for
    memory fails at once.

    Args:
        lengths: lengths of the clips, in any unit.
        batch_size: maximum number of clips per batch and process; 1 becomes 2 if the number of
            clips is not a multiple of the number of processes.
        max_batch_length: maximum number of clips times longest clip, per batch and process; None
            for no limit. A longer clip is a batch of its own.
        multiple: length that batches are padded to a multiple of.
        shuffle: whether batches change from epoch to epoch.
        seed: seed for shuffling; None takes the run's.
        rank: number of this process.
        world_size: number of processes.

    Attributes:
        sizes: number of clips in each batch over all processes, before the batches are shuffled.

    Raises:
        UserError: if there are fewer clips than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        max_batch_length: int | None = None,
        *,
        multiple: int = 1,
        shuffle: bool = False,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.lengths = np.asarray(lengths)
        self.multiple = multiple
        self.shuffle = shuffle
        if max_batch_length is None:
            count = count_batches(len(lengths), batch_size, world_size)
            self.sizes = [len(part) for part in np.array_split(np.arange(len(lengths)), count)]
        else:
            # Sizes are the same in every epoch. The random factors reorder the clips, so a batch's
            # longest clip can exceed that of the same batch in sorted order by this ratio.
            worst = (1 + JITTER) / (1 - JITTER) if shuffle else 1.0
            longest_first = -np.sort(-self.lengths) + multiple - 1
            limit = max_batch_length / worst
            self.sizes = cut_by_length(longest_first, batch_size, limit, world_size)
            if shuffle:
                self.sizes.reverse()  # shuffled batches are cut from the shortest clip on

    def __len__(self) -> int:
        return len(self.sizes)

    def batches(self, start: int) -> Iterator[list[int]]:
        for batch in self.global_batches(self.epoch)[start:]:
            # Strided, so that in each step all processes have clips of similar length.
            yield batch[self.rank :: self.num_replicas].tolist()

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.concatenate(self.global_batches(epoch))

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch; each spans all processes."""
        if not self.shuffle:
            return self._cut(np.argsort(-self.lengths, kind="stable"))
        random = self.random(epoch)
        factors = random.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        batches = self._cut(np.argsort(self.lengths * factors))
        return [batches[i] for i in random.permutation(len(batches))]

    def _cut(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return np.split(order, np.cumsum(self.sizes)[:-1])

    def padding(self) -> float:
        """Return the fraction of the epoch's samples that is padding, assuming one process."""
        batches = self.global_batches(self.epoch)
        padded = sum(
            len(batch) * self.multiple * -(-self.lengths[batch].max() // self.multiple)
            for batch in batches
        )
        return float(1 - self.lengths.sum() / padded)


def cut_by_length(
    lengths: NDArray[np.int64], batch_size: int, max_batch_length: float, world_size: int
) -> list[int]:
    """Return the sizes of batches that each process can pad to at most ``max_batch_length``.

    Where a batch has one clip per process, some get one more if too few are left for another batch.

    Args:
        lengths: lengths of the clips, the longest first.
        batch_size: maximum number of clips per batch and process.
        max_batch_length: maximum padded length per batch and process.
        world_size: number of processes; each gets at least one clip of each batch.

    Raises:
        UserError: if there are fewer clips than processes.
    """
    count_batches(len(lengths), batch_size, world_size)  # raises if there are too few clips
    sizes = []
    left = len(lengths)
    while left:
        longest = max(lengths[len(lengths) - left], 1)  # 0 if the clip cannot be read
        each = max(1, min(batch_size, int(max_batch_length // longest)))
        size = min(each * world_size, left)
        if 0 < left - size < world_size:  # too few for another batch: leave more
            size = left - world_size if each > 1 else left
        sizes.append(size)
        left -= size
    return sizes


class ShuffledBatchSampler(EpochSampler):
    """Cut a permutation or a weighted sample into batches, divided among the processes.

    Sizes of optimizer steps differ by at most one, and every process gets the same number of them.
    A batch is a tuple of index tensors, one per optimizer step.

    Args:
        size: number of examples.
        batch_size: maximum number of examples per optimizer step and process; 1 becomes 2 if the
            number of examples is not a multiple of the number of processes.
        shuffle: whether the order changes with (seed, epoch); otherwise it is 0, 1, 2, ….
        weights: unnormalized probabilities (size,) to draw ``size`` examples with replacement
            instead of permuting them.
        steps_per_execution: maximum number of optimizer steps per batch.
        seed: seed for shuffling; None takes the run's.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: if there are fewer examples than processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        weights: Tensor | None = None,
        steps_per_execution: int = 1,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.size = size
        self.shuffle = shuffle
        self.weights = weights
        self.steps_per_execution = steps_per_execution
        self.steps = count_batches(size, batch_size, world_size)

    def __len__(self) -> int:
        return math.ceil(self.steps / self.steps_per_execution)

    def count_steps(self, batches: int) -> int:
        return min(self.steps, batches * self.steps_per_execution)

    def batches(self, start: int) -> Iterator[tuple[Tensor, ...]]:
        first = start * self.steps_per_execution
        steps = iter(np.array_split(self.order(self.epoch), self.steps)[first:])
        while together := tuple(islice(steps, self.steps_per_execution)):
            yield tuple(torch.from_numpy(part[self.rank :: self.num_replicas]) for part in together)

    def order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        random = self.random(epoch)
        if self.weights is None:
            return random.permutation(self.size)
        weights = self.weights.double().numpy()
        return random.choice(self.size, self.size, p=weights / weights.sum())
