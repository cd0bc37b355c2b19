"""Locks between processes, on one machine or on several that share a disk."""

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pytorch_lightning.utilities import rank_zero_info

from errors import UserError

POLL = 0.2  # seconds
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks."""


def lock(path: Path, *, wait: bool, required: bool = True) -> IO[str]:
    """Return a locked file; this process and children that inherit it hold the lock until closing.

    Unless the lock is ``required``, the log says so if the file system has no locks.

    Raises:
        BlockingIOError: if another process has locked it, unless ``wait``.
        OSError: if the file cannot be written, or locked.
    """
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if required or error.errno not in WITHOUT_LOCKS:
            file.close()
            raise
        rank_zero_info(f"{path} cannot be locked: start nothing else that writes beside it")
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def hold(path: Path, target: Path, doing: str, seconds: float = math.inf) -> Iterator[None]:
    """Hold a lock; if another process has it, say so and wait.

    Args:
        path: file to lock; it is created, and removed in the end.
        target: what the lock is for.
        doing: what is done to it meanwhile, such as ``trained``.
        seconds: how long to wait.

    Raises:
        UserError: if another process has it all that time, or its folder cannot be written to.
    """
    busy = f"{target} is being {doing} by another process"
    end = time.monotonic() + seconds
    is_told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = lock(path, wait=False, required=False)
            if is_at(file, path):
                break
            file.close()
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise UserError(f"{busy}: wait until it ends, or end it") from error
            if not is_told:
                rank_zero_info(f"{busy}: waiting")
                is_told = True
            time.sleep(POLL)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror})") from error
    with file:
        try:
            yield
        finally:
            if is_at(file, path):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_UN)  # forked workers have the file open, too


def is_at(file: IO[str], path: Path) -> bool:
    """Return whether a path is that of an open file: who held its lock may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def creation(target: Path) -> Iterator[bool]:
    """Let one process make a file or folder while others wait; provide whether it is missing.

    Raises:
        UserError: if the folder around it cannot be written.
    """
    if target.exists():
        yield False
        return
    with hold(target.with_name(f".{target.name}.lock"), target, "made"):
        yield not target.exists()
