"""The cost of exactness in each batch: ``python -m benchmarks.engine``.

Seeding the generators, against what it replaced: reading their states, as a checkpoint in the
middle of an epoch would have to.
"""

import random
import time
from collections.abc import Callable

import numpy as np
import torch

from engine.loader import Moment, seed_generators

REPEATS = 5_000


def microseconds(function: Callable[[int], object]) -> float:
    """Return the median time of one call, of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for i in range(REPEATS):
            function(i)
        rounds.append((time.perf_counter() - start) / REPEATS * 1e6)
    return sorted(rounds)[2]


def read_states(_: int) -> object:
    """Return the states of the same generators."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def main() -> None:
    """Measure and print."""
    seeding = microseconds(lambda i: seed_generators(Moment(42, 3, i, 0), "model"))
    reading = microseconds(read_states)
    print(f"seeding all generators: {seeding:.1f} µs a batch")
    print(f"reading all their states: {reading:.1f} µs, {reading / seeding:.1f} times as long")


if __name__ == "__main__":
    main()
