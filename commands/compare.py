"""``compare``: runs side by side, as a table and curves, read from their run directories alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.folders import make_console
from commands.settings import apply_changes, describe_changes, describe_value, short_name
from commands.tables import (
    Curves,
    draw_curves,
    read_curves,
    read_validation,
    write_table,
)
from engine import RunDirectory, read_checkpoint
from errors import UserError


@dataclass(frozen=True)
class Run:
    """A trained and tested run, as read from its directory.

    Attributes:
        name: name of the experiment.
        curves: metric → epoch → last value of the epoch.
        parameters: number of trainable parameters.
        best_epoch: epoch of best.ckpt, counted from 0.
        validation: metric → value, of the validation that chose best.ckpt.
        test: test metric → value.
        changed: settings of the test that differ from those of the training.
        data: settings of the data that it was tested on.
    """

    name: str
    curves: Curves
    parameters: int
    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float]
    changed: dict[str, Any]
    data: dict[str, Any]

    def facts(self) -> dict[str, str]:
        """Return a row of the table: heading → cell."""
        epochs = 1 + max(epoch for curve in self.curves.values() for epoch in curve)
        facts = {
            "parameters": f"{self.parameters:,}",
            "best epoch": f"{self.best_epoch + 1} of {epochs}",
        }
        if self.best_epoch in self.curves.get("train/loss", {}):
            facts["train/loss"] = f"{self.curves['train/loss'][self.best_epoch]:.4f}"
        if "val/loss" in self.validation:
            facts["val/loss"] = f"{self.validation['val/loss']:.4f}"
        facts |= {name: f"{value:.4f}" for name, value in sorted(self.test.items())}
        seconds = list(self.curves.get("time/epoch", {}).values())
        if seconds:  # of epochs that were not interrupted
            facts["seconds/epoch"] = f"{sum(seconds) / len(seconds):.1f}"
        if self.changed:
            facts["tested with"] = describe_changes(self.changed)
        return facts


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: if it does not exist, was not trained and tested, or was trained after its test.
    """
    run = RunDirectory(path)
    if not path.is_dir():
        raise UserError(f"{path} is no run directory: it does not exist")
    for file, stage in ((run.config, "fit"), (run.metrics, "fit"), (run.test_metrics, "test")):
        if not file.is_file():
            is_silent = file == run.metrics and run.last.is_file()
            why = "it had other loggers" if is_silent else f"{stage} it first"
            raise UserError(f"{path} is not finished: it has no {file.name}; {why}")
    curves = read_curves(run.metrics)
    monitor = run.read_config()["checkpoint"]["monitor"]
    if monitor not in curves:
        raise UserError(f"{path} is not finished: its metrics.csv has no {monitor} yet")
    tested = run.read_scores()
    step = read_checkpoint(run.checkpoint("best"))["global_step"]
    if tested is None or tested.step != step:
        raise UserError(f"{run.test_metrics} is not of best.ckpt: test the run again")
    best = read_validation(run.metrics, step)
    if best is None:
        raise UserError(f"{run.metrics} has no validation of best.ckpt, after {step} steps")
    epoch, validation = best
    parameters = [*curves["parameters"].values()][-1]
    data = apply_changes(run.read_config(), tested.changed)["data"]
    return Run(
        path.name,
        curves,
        int(parameters),
        epoch,
        validation,
        tested.metrics,
        tested.changed,
        {"class": short_name(data), **(data.get("init_args") or {})},
    )


def compare(paths: list[Path], output: Path) -> None:
    """Compare runs on the terminal, in ``comparison.md`` and in ``curves.png``.

    Raises:
        UserError: if a run is missing or unfinished, or the runs are of different tasks.
    """
    runs = [read_run(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(path)) for run, path in zip(runs, paths, strict=True)]
    first = set(runs[0].test) - {"test/loss"}
    for path, run in zip(paths, runs, strict=True):
        metrics = set(run.test) - {"test/loss"}
        if metrics != first and not metrics & first:
            raise UserError(
                f"{path} and {paths[0]} are of different tasks: they share no test metric but the "
                "loss"
            )
    facts = [run.facts() for run in runs]
    headings = list(dict.fromkeys(heading for row in facts for heading in row))
    # Metrics are rows and runs are columns: as columns, the metrics would not fit a terminal.
    rows = [[heading, *(row.get(heading, "–") for row in facts)] for heading in headings]
    for setting in dict.fromkeys(setting for run in runs for setting in run.data):
        # A run of an earlier version may lack a setting.
        values = [describe_value(run.data.get(setting)) for run in runs]
        if len(set(values)) > 1:
            rows.append([f"data: {setting}", *values])
    names = [run.name for run in runs]
    output.mkdir(parents=True, exist_ok=True)
    write_table(["", *names], rows, output / "comparison.md")
    draw_curves({run.name: run.curves for run in runs}, output / "curves.png")
    make_console().print(f"written to {output}")
