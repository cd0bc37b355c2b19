"""Files and folders that are either complete or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Provide the name of a file to write that becomes ``path`` on success.

    The name is always the same, so that the next attempt overwrites a killed one's remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Provide a folder to fill that becomes ``path`` on success, and is removed otherwise.

    One process at a time may do so: see `creation`.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
