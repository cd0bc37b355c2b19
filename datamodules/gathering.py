"""Bringing together what the processes of a distributed run have found."""

from itertools import chain
from typing import TypeVar

import torch.distributed

Item = TypeVar("Item")


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes, on each of them."""
    if not torch.distributed.is_initialized():
        return items
    gathered: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return list(chain.from_iterable(gathered))
