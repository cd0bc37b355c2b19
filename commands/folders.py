"""What commands that write for other people share: new folders, no paths of this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlparse

from rich.console import Console

from engine import RunDirectory, Scores
from errors import UserError


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: paths are neither wrapped nor read as markup."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


def refuse_existing(output: Path) -> None:
    """Raise a `UserError` if an output exists."""
    if output.exists():
        raise UserError(f"{output} already exists: delete it, or give another --output")


def refuse_missing_data(data: Any, path: Path) -> None:
    """Raise a `UserError` if a run's corpus is not there: a download would be another corpus.

    Args:
        data: the run's data module.
        path: run directory.
    """
    if not data.is_present():
        roots = [corpus.root for corpus in getattr(data, "corpora", [data])]
        missing = ", ".join(str(root) for root in roots if not root.exists())
        raise UserError(
            f"{missing}, the data of {path}, does not exist: put the corpus there, or change root "
            f"in {RunDirectory(path).config}"
        )


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Provide a temporary folder that becomes the output when everything is in it.

    Raises:
        UserError: if the output exists.
    """
    refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def shorten_paths(value: Any) -> Any:
    """Replace absolute paths in a configuration by their last part: the rest is the machine's."""
    if isinstance(value, dict):
        return {key: shorten_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shorten_paths(inner) for inner in value]
    if isinstance(value, str) and value.startswith("file:"):
        value = urlparse(value).path
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def find_scores(run: RunDirectory, step: int) -> Scores | None:
    """Return the scores of a run's test; none if it was not of the checkpoint of ``step``."""
    tested = run.read_scores()
    if tested is not None and tested.step != step:
        make_console(stderr=True).print(
            f"{run.test_metrics} is not of best.ckpt: its scores are left out; test the run again"
        )
        return None
    return tested
