"""Batch i of epoch e on rank r: always the same examples and the same random numbers."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from engine import EpochSampler, ReproducibleLoader
from engine.loader import Moment, seed_generators


class Halves(EpochSampler):
    """Four batches of two of eight examples, over all processes."""

    def __len__(self) -> int:
        return 4

    def batches(self, start: int) -> Iterator[list[int]]:
        for batch in self.order(self.epoch).reshape(4, 2)[start:]:
            yield batch[self.rank :: self.num_replicas].tolist()

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self.random(epoch).permutation(8)


class Noisy(Dataset[Any]):
    """The examples themselves, with a random number of each generator."""

    def __getitem__(self, indices: list[int]) -> tuple[list[int], list[float]]:
        return indices, draw()


def draw() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002


class At:
    def __init__(self, ready: int) -> None:
        self.ready = ready


def read(
    start: int, epoch: int, *, workers: int = 0, seed: int = 5, rank: int = 0
) -> list[tuple[Any, list[float]]]:
    """Return batches with the data set's random numbers, and the model's after each."""
    sampler = Halves(seed=1, rank=rank, world_size=2)
    loader = ReproducibleLoader(
        Noisy(), sampler, num_workers=workers, collate_fn=lambda batch: batch
    )
    loader.sampler.run_seed, loader.progress = seed, At(start)
    sampler.set_epoch(epoch)
    found = []
    for batch in loader:
        found.append((batch, draw()))
        torch.rand(3)  # what a validation in between may consume
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_anywhere_is_the_same(workers: int) -> None:
    whole = read(0, epoch=3)
    assert len(whole) == 4
    for start in range(5):
        assert read(start, epoch=3, workers=workers) == whole[start:]


def test_seed_epoch_batch_and_rank_all_count() -> None:
    first = read(0, epoch=0)
    numbers = [model for _, model in first] + [noise for (_, noise), _ in first]
    for other in (read(0, epoch=1), read(0, epoch=0, seed=6), read(0, epoch=0, rank=1)):
        numbers += [model for _, model in other]
    flat = [number for row in numbers for number in row]
    assert len(set(flat)) == len(flat)


def test_processes_share_an_epoch() -> None:
    seen = [i for rank in range(2) for (indices, _), _ in read(0, 0, rank=rank) for i in indices]
    assert sorted(seen) == list(range(8))


def test_seeding_sets_every_generator() -> None:
    moment = Moment(1, 2, 3, 4)
    draws = []
    for stream in ("model", "model", "data"):
        seed_generators(moment, stream)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])
