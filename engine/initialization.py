"""Starting a new run from the weights of another one."""

from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from engine.reproducibility import running_statistics
from engine.run_directory import read_checkpoint
from engine.training import TrainingModule
from errors import UserError

SHOWN = 8
"""Maximum number of names in a message."""


def initialize_from(module: LightningModule, path: Path) -> None:
    """Copy the weights that fit from a checkpoint, and log how many.

    A weight fits if it has the same name and shape. A `TrainingModule` converts the weights first,
    with its ``adapt_weights``.

    Raises:
        UserError: if the file is not a checkpoint, or no weight fits.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint["state_dict"]
    if isinstance(module, TrainingModule):
        weights = module.adapt_weights(weights, checkpoint)
    own = dict(module.named_parameters()) | dict(running_statistics(module))
    taken = [name for name, value in own.items() if _copy(value, weights.get(name))]
    if not taken:
        raise UserError(
            f"no weight of {path} fits this model, so it is of another task: give --init_from a "
            "run of the same one"
        )
    counts = sum(own[name].numel() for name in taken), sum(v.numel() for v in own.values())
    rank_zero_info(f"Started from {path}: {counts[0]:,} of {counts[1]:,} weights taken")
    _log_names("Randomly initialized", [name for name in own if name not in taken])
    known = set(own) | {name for name, _ in module.named_buffers()}
    _log_names("Not used", [name for name in weights if name not in known])


def _copy(value: Tensor, source: Tensor | None) -> bool:
    """Copy a weight of the same shape; return whether it is one."""
    fits = source is not None and value.shape == source.shape
    if fits:
        with torch.no_grad():
            value.copy_(source)  # type: ignore[arg-type] # not None
    return fits


def _log_names(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        rank_zero_info(f"{what}: {', '.join(names[:SHOWN])}{more}")
