"""The recipes of CONTRIBUTING.md, followed literally in a copy of the project."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.conftest import ROOT, SAMPLE_RATE, speak_tones
from tests.test_docs import commands_in

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(DIFF,) = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
RUN_ALL = """
import json, os, sys
sys.path[0] = os.getcwd()  # as `python cli.py` has it
import cli
for args in json.loads(sys.argv[1]):
    cli.main(args)
"""


def apply(diff: str, root: Path) -> None:
    """Apply a diff whose hunks are found by their context, which must be there exactly once."""
    header, *hunks = re.split(r"^@@.*@@\n", diff, flags=re.MULTILINE)
    path = root / header.splitlines()[1].removeprefix("+++ b/")
    text = path.read_text(encoding="utf-8")
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project with everything that the recipes add, and their data."""
    ignored = shutil.ignore_patterns(".*", "data", "runs", "docs", "__pycache__", "*.egg-info")
    root = Path(shutil.copytree(ROOT, tmp_path / "project", ignore=ignored))
    for name, content in FILES:
        assert not (root / name).exists(), name
        (root / name).write_text(content, encoding="utf-8")
    apply(DIFF, root)
    pairs = root / "data" / "pairs"
    pairs.mkdir(parents=True)
    for i in range(40):
        text = "abcdefgh"[: 2 + i % 6]
        soundfile.write(pairs / f"{i:02d}.wav", speak_tones(text), SAMPLE_RATE)
        (pairs / f"{i:02d}.txt").write_text(f"{text}\n")
    overlay = root / "configs" / "demo" / "oct.yaml"
    overlay.write_text(overlay.read_text().replace("images: 4000", "images: 200"))
    return root


def test_the_recipes_work_as_written(copy: Path) -> None:
    calls = [words[2:] for words in commands_in(TEXT) if words[:2] == ["python", "cli.py"]]
    assert len(calls) >= 11
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUN_ALL, json.dumps(calls)],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs/tones: 5 epochs" in done.stdout
    runs = copy / "runs"
    scores = json.loads((runs / "tones" / "test_metrics.json").read_text())["metrics"]
    assert scores["test/accuracy"] > 0.9  # it learns
    assert 0.5 < scores["test/confidence"] <= 1
    assert (runs / "octmnist_tiny" / "predictions.csv").exists()
    transcripts = (runs / "pairs" / "test_transcripts.csv").read_text().splitlines()
    assert [line.split("|")[0] for line in transcripts] == [str(i) for i in range(32, 40)]
    linted = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--no-cache",
            *(name for name, _ in FILES if name.endswith(".py")),
        ],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout
