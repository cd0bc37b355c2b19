"""The benchmarks' arithmetic and page; what they measure is not tested."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import draw, read_section, write_section
from benchmarks.growth import FITS
from benchmarks.harness import OURS, Comparison, Section, Turns, take_turns
from benchmarks.training import FRAMES, CourseNetwork
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
    row = ["an epoch", "peer", "1 s", "3 s", "3.00", "2.00 … 4.00", "2.50"]
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
    assert done.stderr.startswith("error: there is no benchmark speed: choose from training, ")


def test_a_fit_takes_turns_with_its_peers(
    small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """The first epoch warms up, and the sanity check before it is not timed."""
    called: list[str] = []
    turns = Turns.prepare(
        {"trainer": lambda: called.append("train")}, {"validator": lambda: called.append("val")}
    )
    run_cli("fit", *small, "--trainer.max_epochs=3", *turns)
    assert called == ["train", "val"] * 3
    assert {name: len(times) for name, times in Turns.training.items()} == {OURS: 2, "trainer": 2}
    assert {name: len(found) for name, found in Turns.validation.items()} == {
        OURS: 2,
        "validator": 2,
    }
    assert all(times > 0 for times in Turns.training[OURS] + Turns.validation[OURS])


def test_the_coursework_peer_is_the_course_network() -> None:
    network = CourseNetwork(35)
    assert sum(p.numel() for p in network.parameters()) == 1_329_835
    logits = network.decode(
        torch.zeros(2, 5, dtype=torch.long), network.encode(torch.randn(2, 80, FRAMES))
    )
    assert logits.shape == (2, 5, 35)


def test_every_growing_fit_has_a_name_of_its_own() -> None:
    assert len({fit.name for fit in FITS}) == len(FITS)
