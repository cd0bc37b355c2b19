"""metrics.csv: one file for a run, however often it is resumed."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from engine.whole import whole_file


class MetricsCSV(Logger):
    """Logger that writes one row per call, with the columns epoch, step and the metrics so far.

    Lightning's CSVLogger deletes the file when a run is resumed; this one appends to it.

    Args:
        folder: folder of ``metrics.csv``.
        resume_step: number of optimizer steps taken before the resumed checkpoint. Rows from this
            step on are dropped, because the run takes these steps again. 0 starts a new file. A
            validation after the last of these steps may also run again; its row is not repeated.
    """

    name = ""
    version = ""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.resume_step = resume_step
        self._columns = ["epoch", "step"]
        self._file: IO[str] | None = None
        self._is_started = False
        self._kept: set[frozenset[str]] = set()  # names in each row of the last step before

    @property
    def log_dir(self) -> str:
        """Folder of the file."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Leave hyper-parameters to ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write a row."""
        row = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        new = sorted(set(row) - set(self._columns))
        if self._file is None or new:
            self._reopen(new)
        if step == self.resume_step - 1 and {"step", *row} in self._kept:
            return
        csv.DictWriter(self._file, self._columns).writerow({"step": step, **row})  # type: ignore[arg-type]

    @rank_zero_only
    def save(self) -> None:
        """Flush the file."""
        if self._file is not None:
            self._file.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reopen(self, new: list[str]) -> None:
        """Reopen the file with additional columns; the first time, drop rows of repeated steps."""
        self.finalize("reopen")
        rows = read_rows(self.path)
        if not self._is_started:
            rows = [row for row in rows if int(row.get("step", -1)) < self.resume_step]
            last = str(self.resume_step - 1)
            self._kept = {frozenset(row) for row in rows if row.get("step") == last}
        self._is_started = True
        self._columns += sorted({*new, *(key for row in rows for key in row)} - {*self._columns})
        with whole_file(self.path) as part:
            self._file = part.open("w", newline="", encoding="utf-8")
            writer = csv.DictWriter(self._file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
            self._file.flush()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``, each without its empty cells.

    The file may not exist yet, or its last line may be incomplete. Damaged rows are left out.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
    whole = [{k: v for k, v in row.items() if v} for row in rows if is_whole(row)]
    if len(whole) < len(rows):
        rank_zero_info(f"{path}: {len(rows) - len(whole)} damaged row(s) are left out")
    return whole


def is_whole(row: dict[Any, Any]) -> bool:
    """Return whether a row has no cell too many, and only numbers."""
    try:
        _ = int(row.get("step") or 0), [float(cell) for cell in row.values() if cell]
    except (TypeError, ValueError):
        return False
    return True
