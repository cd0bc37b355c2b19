"""The benchmarks' arithmetic and page; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import draw, read_section, write_section
from benchmarks.harness import OURS, Comparison, Section, take_turns
from tests.conftest import ROOT


def test_contenders_take_turns_after_a_warm_up() -> None:
    called: list[str] = []
    contenders = {name: lambda name=name: called.append(name) for name in (OURS, "peer")}
    comparison = take_turns("nothing", contenders, rounds=2)
    assert called == [OURS, "peer"] * 3
    assert [len(times) for times in comparison.seconds.values()] == [2, 2]


def test_ratios_are_of_the_same_round_and_the_page_has_median_range_and_bar(tmp_path: Path) -> None:
    comparison = Comparison(
        "an epoch", {OURS: [1.0, 2.0, 1.0], "peer": [2.0, 8.0, 3.0]}, {"peer": 2.5}
    )
    assert comparison.ratios("peer") == [2.0, 4.0, 3.0]
    row = ["an epoch", "peer", "1 s", "3 s", "3.00", "2.00 … 4.00", "2.5"]
    assert comparison.rows() == [row]
    section = Section("Epochs", "Noise.", [comparison], ["grows", "time"], [["batch", "2 s"]])
    page = write_section("training", section, {"cores": "2"})
    assert f"| {' | '.join(row)} |" in page
    assert "| batch | 2 s |" in page
    assert "`python -m benchmarks.training`; cores 2." in page
    draw([section], tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 1_000


def test_a_script_writes_what_the_page_is_made_of(tmp_path: Path) -> None:
    pytest.importorskip("textdistance", reason="the extra dev is not installed")
    file = tmp_path / "found.json"
    command = [sys.executable, "-c", "import benchmarks.text_metrics as t; t.PAIRS = 2; "]
    command[-1] += "from benchmarks.harness import report; report(t.measure, t.__doc__)"
    subprocess.run([*command, "--rounds=2", "--json", str(file)], check=True, cwd=ROOT)
    record = json.loads(file.read_text())
    section = read_section(record)
    assert len(section.comparisons) == 5
    for comparison in section.comparisons:
        assert all(len(times) == 2 for times in comparison.seconds.values())
    assert record["machine"]["cores"].isdigit()


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no benchmark speed: choose of training, ")
