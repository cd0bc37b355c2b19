"""The training loader of exact runs: batch i of epoch e on rank r is always the same batch.

Its random numbers are the same too: the generators of the process (and of the worker that reads
the batch) are seeded from (seed, epoch, batch, rank). A run therefore resumes by starting the
loader at a batch; no generator state has to be saved.
"""

import hashlib
import multiprocessing
import random
import signal
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Moment(NamedTuple):
    """Everything that a random choice may depend on."""

    seed: int
    epoch: int
    batch: int
    rank: int


def seed_generators(moment: Moment, stream: str) -> None:
    """Seed the global generators of PyTorch, numpy and Python.

    Args:
        moment: batch that the random numbers are for.
        stream: name of the consumer; different consumers get independent numbers.
    """
    key = struct.pack("<4q", *moment)
    digest = hashlib.blake2b(key, digest_size=20, key=stream.encode()).digest()
    torch_seed, python_seed, numpy_seed = struct.unpack("<qqI", digest)
    # torch.manual_seed does the same and takes 250 µs: it looks for every kind of accelerator.
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(torch_seed)
    random.seed(python_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002 # libraries draw from the global generator


class EpochSampler(DistributedSampler[Any], ABC):
    """Sampler of whole batches: a function of the epoch, divided among the processes.

    Deriving from `DistributedSampler` tells Lightning that the batches are already divided.

    Args:
        seed: seed for shuffling; None takes the run's.
        rank: number of this process.
        world_size: number of processes.

    Attributes:
        epoch: epoch to yield the batches of; Lightning sets it through ``set_epoch``.
        start: number of batches that the next iteration skips.
        run_seed: seed of the training run, set by `Reproducibility`; the sampler then yields pairs
            of `Moment` and indices. If None, it yields the indices alone.
        steps_per_execution: maximum number of optimizer steps per batch.
    """

    steps_per_execution = 1

    def __init__(self, *, seed: int | None, rank: int, world_size: int) -> None:
        # DistributedSampler's own __init__ is skipped: it divides single examples, not batches.
        self.own_seed = seed
        self.rank = rank
        self.num_replicas = world_size
        self.epoch = 0
        self.start = 0
        self.run_seed: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches per epoch and process."""

    @abstractmethod
    def batches(self, start: int) -> Iterable[Any]:
        """Return the indices of this process's batches in the epoch, from batch ``start`` on."""

    @abstractmethod
    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the indices of an epoch's examples in order, over all processes."""

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        for number, indices in enumerate(self.batches(start), start):
            yield indices if self.run_seed is None else (self.moment(number), indices)

    def moment(self, batch: int) -> Moment:
        """Return the moment of a batch of the current epoch."""
        assert self.run_seed is not None, "only a training run has moments"
        return Moment(self.run_seed, self.epoch, batch, self.rank)

    def count_steps(self, batches: int) -> int:
        """Return the number of optimizer steps in an epoch of ``batches`` batches."""
        return batches

    def random(self, epoch: int) -> np.random.Generator:
        """Return the generator that an epoch's order is drawn from."""
        seed = self.run_seed if self.own_seed is None else self.own_seed
        return np.random.default_rng((seed or 0, epoch))

    def fingerprint(self) -> int:
        """Return a checksum of the first epoch's order, equal for runs with the same batches."""
        return zlib.crc32(self.order(0).astype(np.int64).tobytes())


class Progress(Protocol):
    """Lightning's count of the batches of an epoch."""

    ready: int


class ReproducibleLoader(DataLoader[Any]):
    """Training DataLoader that can start at any batch of an epoch, with its random numbers.

    Args:
        dataset: data set indexed by what ``sampler`` yields, one whole batch at a time.
        sampler: batches of each epoch.
        kwargs: further arguments of `DataLoader`.

    Attributes:
        progress: trainer's progress in the epoch, set by `Reproducibility`; None starts at the
            first batch.
    """

    sampler: EpochSampler

    def __init__(self, dataset: Dataset[Any], sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(
            _SeededDataset(dataset),
            batch_size=None,
            sampler=sampler,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # only the model may use the global generator
            **kwargs,
        )
        self.progress: Progress | None = None
        sampler.run_seed = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator runs at the first batch, after Lightning has set the sampler's epoch.
        sampler = self.sampler
        first = self.progress.ready if self.progress else 0
        sampler.start = first
        for number, batch in enumerate(super().__iter__(), first):
            seed_generators(sampler.moment(number), "model")
            yield batch


class _SeededDataset(Dataset[Any]):
    """Data set that seeds the generators from its moment before it reads each batch."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: tuple[Moment, Any]) -> Any:
        moment, indices = request
        seed_generators(moment, "data")
        return self.dataset[indices]


def outlive_signals(worker: int) -> None:  # noqa: ARG001 # a DataLoader passes it
    """Let a worker survive the signals that stop training, until the current batch is done.

    A terminal or a scheduler sends these signals to all processes of a job, and training fails if
    a worker dies. A worker ends when its loader does, when its run's process has ended, or by
    `end_workers`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """End the workers of loaders that were not shut down; to be called when the process ends.

    Python itself sends them SIGTERM, which they ignore, and would wait for them forever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
