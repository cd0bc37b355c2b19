"""The cost of exactness in each batch.

    python -m benchmarks.engine

Seeding the generators, against what it replaced: reading their states, as a checkpoint in the
middle of an epoch would have to.
"""

import argparse
import random

import numpy as np
import torch

from benchmarks.harness import OURS, Section, report, take_turns
from engine.loader import Moment, seed_generators

BATCHES = 5_000


def seed() -> None:
    """Seed the generators for each batch."""
    for i in range(BATCHES):
        seed_generators(Moment(42, 3, i, 0), "model")


def read_states() -> None:
    """Read the states of the same generators for each batch."""
    for _ in range(BATCHES):
        torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def measure(options: argparse.Namespace) -> Section:
    """Compare the two."""
    times = {OURS: seed, "reading their states": read_states}
    comparison = take_turns(f"seeding all generators, {BATCHES:,} batches", times, options.rounds)
    return Section("Exactness", "A batch's generators are seeded twice.", [comparison])


if __name__ == "__main__":
    report(measure, __doc__)
