"""The precision of sums."""

import torch
from torch import Tensor


def accumulator(like: Tensor) -> torch.dtype:
    """Return the precision for sums of many numbers: float64 where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64
