"""metrics.csv, one file for a run and its resumptions."""

import csv
from pathlib import Path
from typing import cast

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter


class MetricsCSV(CSVLogger):
    """Lightning's CSV logger, but a resumed run goes on in the file instead of deleting it.

    Args:
        folder: of ``metrics.csv``.
        resume_step: rows of this and later optimizer steps are dropped, because the resumed run
            takes these steps again; 0 starts anew.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self.resume_step = resume_step

    @property
    @rank_zero_experiment
    def experiment(self) -> "_ResumedWriter":
        """Return the writer, made at the first call."""
        if self._experiment is None:
            self._experiment = _ResumedWriter(self.log_dir, self.resume_step)
        return cast("_ResumedWriter", self._experiment)


class _ResumedWriter(ExperimentWriter):
    def __init__(self, log_dir: str, resume_step: int) -> None:
        self._resume_step = resume_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Keep the earlier steps' rows, where Lightning's method warns and deletes the file."""
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) < self._resume_step]
            self.metrics_keys = list(reader.fieldnames or ())
        kept = path.with_suffix(".csv.part")
        with kept.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        kept.replace(path)
