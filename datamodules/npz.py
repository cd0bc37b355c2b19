"""Reading .npz files that somebody else made."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import UserError

MOST_COMPRESSED = 100
"""Maximum ratio of unpacked to packed size of an array above `SMALL`; scans reach 1.4."""
SMALL = 2**26
"""Unpacked size in bytes (64 MiB) up to which an array is always read."""
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""Function that reads an array's header, by header version."""


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file for `read_array`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    # RuntimeError: it is encrypted, or compressed by a method that Python does not know.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no .npz file ({error})") from error


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array of an .npz file, after checking its size against its header.

    Raises:
        UserError: if it does not exist.
        ValueError: if it holds Python objects, is damaged, or unpacks to far more than any images.
    """
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        raise UserError(f"{archive.filename} has no array {name}") from error
    if member.file_size > max(SMALL, MOST_COMPRESSED * member.compress_size):
        raise ValueError(
            f"{name} unpacks {member.compress_size:,} bytes to {member.file_size:,}: not an array "
            "of images"
        )
    with archive.open(member) as file:
        # Check the header before allocating memory.
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} has a header of version {version}")
        shape, _, dtype = HEADERS[version](file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{name} says it is {dtype} {shape}, but has {member.file_size} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
