"""Tables and curves of runs."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine import read_rows

Curves = dict[str, dict[int, float]]
"""Metric → epoch → last value of the epoch."""


def read_curves(path: Path) -> Curves:
    """Read ``metrics.csv``: metric → epoch → last value of the epoch."""
    curves: Curves = {}
    for row in read_rows(path):
        for name in row.keys() - {"epoch", "step"}:
            curves.setdefault(name, {})[int(row.get("epoch", 0))] = float(row[name])
    return curves


def read_validation(path: Path, step: int) -> tuple[int, dict[str, float]] | None:
    """Return the epoch and the metrics of the validation after ``step`` optimizer steps."""
    rows = [row for row in read_rows(path) if int(row.get("step", -1)) == step - 1]
    found = {
        name: float(value)
        for row in rows
        for name, value in row.items()
        if name.startswith(("val/", "val_"))
    }
    return (int(rows[-1].get("epoch", 0)), found) if found else None


def write_table(headings: list[str], rows: list[list[str]], path: Path, note: str = "") -> None:
    """Print a table with a note below it, and write both as Markdown."""
    table = Table(*headings)
    for cells in rows:
        table.add_row(*cells)
    Console(markup=False, emoji=False).print(table, note)
    lines = [headings, ["---"] + ["---:"] * len(headings[1:]), *rows]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    path.write_text(f"{text}\n{note}\n" if note else text, encoding="utf-8")


def draw_curves(runs: dict[str, Curves], path: Path) -> None:
    """Draw one panel per validation metric that all runs have, with the training curve if any.

    Names are ``val/loss`` or, as in other people's modules, ``val_loss``. Without any, there is
    nothing to draw, and no file.
    """
    from matplotlib.figure import Figure

    shared = [
        name
        for name in next(iter(runs.values()))
        if name.startswith(("val/", "val_")) and all(name in curves for curves in runs.values())
    ]
    if not shared:
        return
    columns = min(len(shared), 3)
    rows = math.ceil(len(shared) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.5 * rows), layout="constrained")
    figure.subplots(rows, columns, squeeze=False)
    for axes in figure.axes[len(shared) :]:
        axes.remove()
    for axes, name in zip(figure.axes, shared, strict=True):
        for i, (run, curves) in enumerate(runs.items()):
            for split, style in (("val", "-"), ("train", ":")):
                curve = curves.get(split + name.removeprefix("val"))
                if curve:
                    epochs = [epoch + 1 for epoch in curve]
                    label = f"{run}, {split}"
                    axes.plot(epochs, list(curve.values()), style, color=f"C{i}", label=label)
        axes.set(title=name[len("val/") :], xlabel="epoch")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
