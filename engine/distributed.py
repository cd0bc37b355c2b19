"""Communication between the processes of a run: exchange results, end together."""

import gc
import os
import signal
import time
from itertools import chain
from typing import TypeVar

import torch.distributed
from lightning_fabric.strategies.launchers import subprocess_script

Item = TypeVar("Item")

GRACE_SECONDS = 20
"""How long after a process has failed the others are killed."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a process that Ctrl-C has ended."""


class PatientObserver(subprocess_script._ChildProcessObserver):  # noqa: SLF001
    """Lightning's thread in the first process that kills a run's processes after one has failed.

    Here they have time to end by themselves: the first process mostly notices the lost connection,
    and says what happened. Only processes that hang, as they may with NCCL, are killed. After a
    Ctrl-C, which all of them receive, there is nothing to say.
    """

    def _terminate_all(self) -> None:
        if INTERRUPTED in [process.returncode for process in self._child_processes]:
            time.sleep(1)
            for process in self._child_processes:
                process.kill()
            os._exit(INTERRUPTED)
        time.sleep(GRACE_SECONDS)
        super()._terminate_all()


def observe_patiently() -> None:
    """Let Lightning start a `PatientObserver` with the next run of several processes."""
    subprocess_script._ChildProcessObserver = PatientObserver  # type: ignore[misc] # noqa: SLF001


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
