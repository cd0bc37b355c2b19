"""Communication between the processes of a run: exchange results, end together."""

import gc
from itertools import chain
from typing import TypeVar

import torch.distributed

Item = TypeVar("Item")


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes to each process. All processes must call it."""
    if not torch.distributed.is_initialized():
        return items
    gathered: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return list(chain.from_iterable(gathered))


def leave_process_group() -> None:
    """Shut down the communication between processes, if there is any.

    If this is left to the interpreter, its threads can abort the process after all work is done.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # DistributedDataParallel's reducer holds the group
        torch.distributed.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exception means that another process of the run has ended."""
    texts = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    known = isinstance(error, torch.distributed.DistError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
