"""Batches of clips of similar length, the same everywhere for the same seed and epoch."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class LengthBucketBatchSampler(Sampler[list[int]]):
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
        if len(lengths) < world_size:
            raise ValueError(f"{len(lengths)} clips are too few for {world_size} processes")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.jitter = jitter
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to shuffle for; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        fewest = math.ceil(len(self.lengths) / (self.batch_size * self.world_size))
        return min(fewest, len(self.lengths) // self.world_size)  # no process without a clip

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            # Strided, so that the processes of one step hold clips of like length.
            yield batch[self.rank :: self.world_size].tolist()

    def global_batches(self) -> list[np.ndarray]:
        """Return the epoch's batches, each over all processes."""
        if not self.shuffle:
            return np.array_split(np.argsort(-self.lengths, kind="stable"), len(self))
        random = np.random.default_rng((self.seed, self.epoch))
        factors = random.uniform(1 - self.jitter, 1 + self.jitter, len(self.lengths))
        batches = np.array_split(np.argsort(self.lengths * factors), len(self))
        return [batches[i] for i in random.permutation(len(batches))]

    def padding(self) -> float:
        """Return the fraction of the epoch's samples that is padding, one process assumed."""
        padded = sum(len(batch) * self.lengths[batch].max() for batch in self.global_batches())
        return float(1 - self.lengths.sum() / padded)
