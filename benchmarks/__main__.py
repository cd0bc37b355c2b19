"""Run the benchmarks that need no trained model, and write docs/benchmarks.md.

    python -m benchmarks [NAME …] [--speech ../shared/data/LJSpeech-1.1] [--output docs]

Each is a process of its own; together they take about 20 minutes on two cores. Sections of
earlier calls are kept in ``benchmarks.json``, each with the machine that it was measured on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import OURS, Comparison, Section

NAMES = (
    "training recognizers layers classifiers compilation text_metrics startup engine matmul growth"
).split()
SPEECH = ("training", "startup")
"""Benchmarks that need clips."""
ROUNDS = {"training": 2, "recognizers": 11, "startup": 3, "growth": 1}
INTRODUCTION = """# Benchmarks

Each ratio is a peer's time divided by ours: above 1, the suite is faster. Contenders take turns,
A B C, A B C, … after a warm-up; each section says where their work differs. The tables have the
median over the rounds and the range; a median of ratios can differ from the ratio of the median
times. Targets are minimum ratios. `make bench SPEECH=DIR` measures everything anew on clips of LJ
Speech, and without `SPEECH` on noise; [attention](attention_benchmark.md) has a page of its own.

![ratios of all comparisons](benchmarks.png)
"""


def main() -> None:
    """Measure, and write the page and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"benchmarks to run: any of {', '.join(NAMES)}")
    parser.add_argument("--speech", type=Path, help="corpus in LJ Speech's layout")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder (docs)")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        sys.exit(
            f"error: there is no benchmark {', '.join(unknown)}: choose from {', '.join(NAMES)}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "benchmarks.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in options.names or NAMES:
        start = time.perf_counter()
        file = options.output / f".{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        command += [f"--rounds={ROUNDS.get(name, 5)}"]
        if options.speech and name in SPEECH:
            command += ["--speech", str(options.speech)]
        subprocess.run(command, check=True)
        found[name] = json.loads(file.read_text())
        file.unlink()
        print(f"{name}: {time.perf_counter() - start:,.0f} s")
        results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_page(found, options.output)


def write_page(found: dict[str, Any], folder: Path) -> None:
    """Write the page and its picture from all results."""
    sections = {name: read_section(found[name]) for name in NAMES if name in found}
    pages = [INTRODUCTION]
    for name, section in sections.items():
        pages.append(write_section(name, section, found[name]["machine"]))
    (folder / "benchmarks.md").write_text("\n".join(pages), encoding="utf-8")
    draw(list(sections.values()), folder / "benchmarks.png")


def read_section(record: dict[str, Any]) -> Section:
    """Return a section that was written as JSON."""
    comparisons = [Comparison(**comparison) for comparison in record["comparisons"]]
    rest = {key: record[key] for key in ("title", "text", "header", "rows")}
    return Section(comparisons=comparisons, **rest)


def write_section(name: str, section: Section, machine: dict[str, str]) -> str:
    """Return a section as Markdown."""
    lines = [f"## {section.title}", "", section.text, ""]
    for header, rows in section.tables():
        lines.append(f"| {' | '.join(header)} |")
        lines.append("|" + "---|" * len(header))
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines += [f"`python -m benchmarks.{name}`; {where}.", ""]
    return "\n".join(lines)


def draw(sections: list[Section], path: Path) -> None:
    """Plot the ratios of all comparisons, with their ranges and targets."""
    rows = [
        (f"{comparison.work}: {peer}", comparison.ratios(peer), comparison.targets.get(peer))
        for section in sections
        for comparison in section.comparisons
        for peer in comparison.seconds
        if peer != OURS
    ]
    figure = Figure(figsize=(11, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, ratios, target) in enumerate(rows):
        axes.plot([min(ratios), max(ratios)], [y, y], "C0-", linewidth=3, alpha=0.4)
        axes.plot(statistics.median(ratios), y, "C0o")
        if target is not None:
            axes.plot(target, y, "C3|", markersize=14)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set(xscale="log", xlabel="peer's time / ours (red: target)", yticks=range(len(rows)))
    axes.set_yticklabels([name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
