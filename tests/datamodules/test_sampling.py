import csv
from collections.abc import Sequence

import numpy as np
import pytest

from datamodules.sampling import LengthBucketBatchSampler, ShuffledBatchSampler, cut_by_length
from errors import UserError
from tests.conftest import REAL_DATA


def epochs_of(
    lengths: Sequence[int], batch_size: int, epoch: int, world_size: int = 1, shuffle: bool = True
) -> list[list[list[int]]]:
    """The batches of each process in one epoch."""
    samplers = [
        LengthBucketBatchSampler(
            lengths, batch_size, shuffle=shuffle, seed=3, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    for sampler, own in zip(samplers, batches, strict=True):
        assert len(sampler) == len(own)
    return batches


@pytest.mark.parametrize("shuffle", [False, True], ids=["ordered", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(("clips", "batch_size"), [(7, 1), (100, 16), (101, 100), (64, 64)])
def test_each_clip_comes_once_an_epoch_over_all_processes(
    clips: int, batch_size: int, world_size: int, shuffle: bool
) -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, clips).tolist()
    for epoch in range(3):
        processes = epochs_of(lengths, batch_size, epoch, world_size, shuffle)
        assert len({len(batches) for batches in processes}) == 1  # nobody waits for ever
        most = 2 if batch_size == 1 else batch_size
        assert all(1 <= len(b) <= most for batches in processes for b in batches)
        seen = [i for batches in processes for b in batches for i in b]
        assert sorted(seen) == list(range(clips))


def test_batches_change_with_the_epoch_and_are_the_same_for_the_same_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    first, again, second = (epochs_of(lengths, 8, epoch)[0] for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}  # not only the order


def test_without_shuffling_the_longest_come_first() -> None:
    batches = epochs_of([5, 9, 1, 7], 2, 0, shuffle=False)[0]
    assert batches == [[1, 3], [0, 2]]


def test_padding_is_measured_on_the_batches() -> None:
    sampler = LengthBucketBatchSampler([10, 10, 5, 10], 2)
    assert sampler.padding() == pytest.approx(5 / 40)


def test_too_few_clips_for_the_processes_are_refused() -> None:
    with pytest.raises(UserError, match="2 examples are too few for 3 processes"):
        LengthBucketBatchSampler([1, 1], 1, world_size=3)


def test_the_order_is_the_runs_unless_it_has_a_seed_of_its_own() -> None:
    def order(run_seed: int, seed: int | None = None) -> list[int]:
        sampler = ShuffledBatchSampler(50, 10, shuffle=True, seed=seed)
        sampler.run_seed = run_seed
        return sampler.order(0).tolist()

    assert order(1) == order(1) != order(2)
    assert order(1, seed=1) == order(2, seed=1) == order(1)


def test_padding_is_small_at_the_corpus_size_of_lj_speech() -> None:
    """Transcript lengths stand for clip lengths: about 14 characters are spoken a second."""
    path = REAL_DATA / "ljspeech_transcripts.csv"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))
    sampler = LengthBucketBatchSampler([len(row[-1]) for row in rows[:9825]], 64, shuffle=True)
    assert len(sampler) == 154
    assert sampler.padding() < 0.06


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_every_process_keeps_both_limits(world_size: int) -> None:
    random = np.random.default_rng(0)
    for clips in range(world_size, 100):
        longest_first = -np.sort(-random.integers(20, 200, clips))
        sizes = cut_by_length(longest_first, 3, 500, world_size)
        assert sum(sizes) == clips
        assert min(sizes) >= world_size
        for first, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
            most = -(-size // world_size)
            assert most <= 3
            assert most * longest_first[first] <= 500


@pytest.mark.parametrize("shuffle", [False, True], ids=["ordered", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("multiple", [1, 50])
def test_batches_of_equal_length_keep_their_limit_in_every_epoch(
    multiple: int, world_size: int, shuffle: bool
) -> None:
    lengths = np.random.default_rng(0).integers(20, 200, 301)
    lengths[7] = 2000  # longer than a batch
    lengths[8] = 0  # cannot be read
    counts = set()
    for epoch in range(3):
        padded = []
        for rank in range(world_size):
            sampler = LengthBucketBatchSampler(
                lengths.tolist(),
                12,
                1000,
                multiple=multiple,
                shuffle=shuffle,
                rank=rank,
                world_size=world_size,
            )
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            counts.add(len(batches))
            padded += [(len(b) * multiple * -(-lengths[b].max() // multiple), b) for b in batches]
        assert sorted(i for _, batch in padded for i in batch) == list(range(301))
        over = [batch for length, batch in padded if length > 1000]
        assert all(lengths[batch].max() == 2000 or len(batch) == 2 for batch in over)
        assert len(over) <= 2
        largest = max(len(batch) for _, batch in padded)  # of short clips: as many as allowed
        assert largest == 12 if multiple == 1 else largest >= 9
    assert len(counts) == 1  # the schedule relies on it
