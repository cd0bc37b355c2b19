"""Configurations of runs: compared, changed and described."""

import copy
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
    return {
        key: (old, new)
        for key, old, new in differences(before, now)
        if key.partition(".")[0] in ("model", "data") or key.removeprefix("trainer.") in TRAINING
    }


def apply_changes(config: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with changed settings: dotted key → value.

    Settings of a part that the configuration does not have are left out.
    """
    result = copy.deepcopy(dict(config))
    for key, value in changed.items():
        *parents, last = key.split(".")
        part: Any = result
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[last] = value
    return result


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of what differs in nested mappings.

    Where the class differs, or only one of both is a class, the whole value is yielded.
    """
    for key in before:
        if key not in now:
            continue
        old, new = before[key], now[key]
        both = isinstance(old, Mapping) and isinstance(new, Mapping) and old and new
        if both and old.get("class_path") == new.get("class_path"):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def describe_changes(changed: Mapping[str, Any]) -> str:
    """Return the settings of a test that differ from those of the training."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {describe_value(value)}" for key, value in changed.items()
    )


def describe_value(value: Any) -> str:
    """Return a value of a configuration; of a class, its name and the arguments it has."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return str(value)
    name = short_name(value)
    arguments = {k: v for k, v in (value.get("init_args") or {}).items() if v is not None}
    return f"{name} ({describe_changes(arguments)})" if arguments else name


def short_name(part: Mapping[str, Any]) -> str:
    """Return the name of the class of a part of a configuration."""
    return str(part["class_path"]).rpartition(".")[2]
