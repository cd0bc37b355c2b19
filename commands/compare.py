"""``compare``: runs side by side, as a table and curves, read from their run directories alone."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from commands.folders import make_console
from commands.tables import Curves, draw_curves, read_curves, write_table
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
        test: test metric → value.
    """

    name: str
    curves: Curves
    parameters: int
    best_epoch: int
    test: dict[str, float]

    def facts(self) -> dict[str, str]:
        """Return a row of the table: heading → cell."""
        epochs = 1 + max(epoch for curve in self.curves.values() for epoch in curve)
        facts = {
            "parameters": f"{self.parameters:,}",
            "best epoch": f"{self.best_epoch + 1} of {epochs}",
        }
        for name in ("train/loss", "val/loss"):
            if self.best_epoch in self.curves.get(name, {}):
                facts[name] = f"{self.curves[name][self.best_epoch]:.4f}"
        facts |= {name: f"{value:.4f}" for name, value in sorted(self.test.items())}
        seconds = list(self.curves.get("time/epoch", {}).values())
        if seconds:  # of epochs that were not interrupted
            facts["seconds/epoch"] = f"{sum(seconds) / len(seconds):.1f}"
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
            raise UserError(f"{path} is not finished: it has no {file.name}; {stage} it first")
    curves = read_curves(run.metrics)
    checkpoint = yaml.safe_load(run.config.read_text(encoding="utf-8"))["checkpoint"]
    monitor, mode = checkpoint["monitor"], checkpoint["mode"]
    if monitor not in curves:
        raise UserError(f"{path} is not finished: its metrics.csv has no {monitor} yet")
    tested = run.read_scores()
    step = read_checkpoint(run.checkpoint("best"))["global_step"]
    if tested is None or tested.step != step:
        raise UserError(f"{run.test_metrics} is not of best.ckpt: test the run again")
    choose = min if mode == "min" else max
    # Of equal values the first, as in best.ckpt.
    best_epoch = choose(curves[monitor], key=lambda epoch: curves[monitor][epoch])
    parameters = [*curves["parameters"].values()][-1]
    return Run(path.name, curves, int(parameters), best_epoch, tested.metrics)


def compare(paths: list[Path], output: Path) -> None:
    """Compare runs on the terminal, in ``comparison.md`` and in ``curves.png``.

    Raises:
        UserError: if a run is missing or unfinished, or the runs are of different tasks.
    """
    runs = [read_run(path) for path in paths]
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
    names = [run.name for run in runs]
    output.mkdir(parents=True, exist_ok=True)
    write_table(["", *names], rows, output / "comparison.md")
    draw_curves({run.name: run.curves for run in runs}, output / "curves.png")
    make_console().print(f"written to {output}")
