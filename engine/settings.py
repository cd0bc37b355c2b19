"""Configurations of runs, compared."""

from collections.abc import Iterator, Mapping
from typing import Any

TRAINING = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "deterministic",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "precision",
    "val_check_interval",
)
"""Settings of the trainer that change what is trained or measured."""


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of model, data and training that differ: key → both values.

    Args:
        before: configuration of a run, as in its ``config.yaml``.
        now: another configuration of it. Keys that only one of them has are left out.
    """
    old, new = dict(flatten(before)), dict(flatten(now))
    keys = [key for key in old if key in new and old[key] != new[key]]
    return {
        key: (old[key], new[key])
        for key in keys
        if key.startswith(("model.", "data.")) or key.removeprefix("trainer.") in TRAINING
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
