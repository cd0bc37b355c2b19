"""Memory that a training keeps."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, where the C library is glibc.

    glibc returns blocks of more than 32 MiB to the operating system at once, which clears every
    page again for the next tensor. A training step frees and takes gigabytes of them.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
