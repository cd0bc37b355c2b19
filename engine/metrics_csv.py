"""metrics.csv: one file for a run and all its resumptions."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

FLUSH_EVERY = 100
"""Rows that are kept in memory at most."""


class MetricsCSV(Logger):
    """Logger that writes one row per call, with the columns epoch, step and the metrics so far.

    Lightning's CSVLogger deletes the file of the run that is resumed; this one continues it.

    Args:
        folder: folder of ``metrics.csv``.
        resume_step: number of optimizer steps that the resumed checkpoint has taken. Rows of this
            step and later ones are dropped, because the run takes these steps again. 0 starts a new
            file.
    """

    name = ""
    version = ""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.resume_step = resume_step
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._is_open = False

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
        """Add a row."""
        values = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        self._rows.append({"step": step, **values})
        if len(self._rows) >= FLUSH_EVERY:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are still in memory."""
        if not self._is_open:
            self._open()
        new = [key for row in self._rows for key in row if key not in self._columns]
        if new:
            earlier = read_rows(self.path)
            self._columns = sorted({*self._columns, *new})
            self._rewrite(earlier)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerows(self._rows)
        self._rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are still in memory."""
        if self._rows:
            self.save()

    def _open(self) -> None:
        """Keep the rows of the steps before the resumed one."""
        self._is_open = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_rows(self.path) if int(row["step"]) < self.resume_step]
        self._columns = sorted({"epoch", "step"} | {key for row in rows for key in row})
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``, each without its empty cells; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
