"""``report``: its figures are the test's, and the page holds what it needs."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import cli
from commands import scores

pytest.importorskip("kaldialign")


@pytest.fixture
def tested(small: list[str], run_cli: Callable[..., Path]) -> Path:
    run_cli("fit", *small, "--trainer.max_epochs=3")
    return run_cli("test", *small)


def test_the_page_has_the_tests_figures_texts_and_sounds(tested: Path) -> None:
    cli.main(["report", str(tested), "--worst", "3"])
    page = (tested / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((tested / "test_metrics.json").read_text())["metrics"]
    for name in ("wer", "cer", "wer_normalized", "cer_normalized"):
        row = re.search(rf"<td>{name}<td[^>]*>([\d.]+)\s*<td[^>]*>([\d.]+) – ([\d.]+)", page)
        assert row, name
        value, low, high = map(float, row.groups())
        assert value == pytest.approx(metrics[f"test/{name}"], abs=5e-5)
        assert low <= value <= high
    assert page.count("<audio controls") == 3
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # self-contained
    # Substitutions, deletions and insertions of words add up to the errors.
    totals = [
        int(n.replace(",", ""))
        for n in re.findall(
            r"<th colspan=\"2\">(?:sub|del|ins)\w+<th class=\"number\">([\d,]+)", page
        )
    ]
    lines = [line.split("|") for line in (tested / "test_transcripts.csv").read_text().splitlines()]
    words = sum(len(reference.split()) for _, reference, _ in lines)
    characters = sum(len(reference) for _, reference, _ in lines)
    assert sum(totals[:3]) / words == pytest.approx(metrics["test/wer"], rel=1e-6)
    assert sum(totals[3:]) / characters == pytest.approx(metrics["test/cer"], rel=1e-6)


def test_sounds_are_of_the_data_that_was_tested(
    tested: Path, small: list[str], run_cli: Callable[..., Path], tones: Path, tmp_path: Path
) -> None:
    quiet = tmp_path / "quiet"
    shutil.copytree(tones, quiet)
    for path in (quiet / "wavs").glob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples / 8, rate)
    run_cli("test", *small, f"--data.init_args.root={quiet}")
    cli.main(["report", str(tested), "--worst", "1"])
    page = (tested / "report.html").read_text(encoding="utf-8")
    (sound,) = re.findall(r'<audio controls src="data:audio/ogg;base64,([^"]*)"', page)
    heard, _ = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    loud, _ = soundfile.read(tones / "wavs" / "T-032.wav")
    assert 0 < abs(heard).max() < abs(loud).max() / 4
    cli.main(["card", str(tested)])
    assert "name: LJSpeechDataModule quiet" in (tested / "README.md").read_text()


def test_missing_data_is_not_downloaded(
    tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus of a packed run is another one than LJ Speech; its folder is elsewhere."""
    packed = tmp_path / "packed"
    cli.main(["pack", str(tested), "--output", str(packed)])
    shutil.copy(tested / "test_transcripts.csv", packed)
    monkeypatch.setattr("datamodules.ljspeech.LJSpeechDataModule.make_root", None)
    for command in ("report", "calibrate"):
        with pytest.raises(SystemExit, match=f"^error: tones, the data of {packed}, does not"):
            cli.main([command, str(packed)])
    cli.main(["report", str(packed), "--worst", "0"])


def test_two_runs_are_compared_by_paired_samples(tested: Path, tmp_path: Path) -> None:
    """The second run is the first with one of its errors corrected: never worse."""
    other = tmp_path / "runs" / "better"
    other.mkdir()
    for name in ("config.yaml", "test_metrics.json"):
        (other / name).write_bytes((tested / name).read_bytes())
    lines = [line.split("|") for line in (tested / "test_transcripts.csv").read_text().splitlines()]
    for line in lines[: len(lines) // 2]:
        line[2] = line[1]
    (other / "test_transcripts.csv").write_text("".join("|".join(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=r"test_transcripts\.csv does not have the wer of"):
        cli.main(["report", str(tested), str(other)])
    record = json.loads((other / "test_metrics.json").read_text())
    record["metrics"] = {}
    (other / "test_metrics.json").write_text(json.dumps(record))
    page = tmp_path / "page.html"
    cli.main(["report", str(tested), str(other), "--worst", "0", "--output", str(page)])
    found = re.findall(r"<td>(?:cer|wer)<td class=\"number\">([\d.]+)</tr>", page.read_text())
    assert len(found) == 2
    # A sample improves unless it consists of unchanged clips only: 2⁻⁸ of the samples.
    assert np.array(found, dtype=float) == pytest.approx(1 - 0.5 ** len(lines), abs=0.01)


def test_what_cannot_be_reported_is_named(tested: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: report compares at most two runs, not 3"):
        cli.main(["report", *[str(tested)] * 3])
    with pytest.raises(SystemExit, match="error: --worst -1 is negative"):
        cli.main(["report", str(tested), "--worst", "-1"])
    with pytest.raises(SystemExit, match=r"error: .*nowhere has no test_metrics\.json: test a"):
        cli.main(["report", str(tmp_path / "nowhere")])
    other = tmp_path / "other"
    other.mkdir()
    (other / "test_metrics.json").write_text('{"checkpoint": null, "step": 0, "metrics": {}}')
    (other / "test_transcripts.csv").write_text("a|b|c\n")
    with pytest.raises(SystemExit, match=r"error: .* were tested on different clips or references"):
        cli.main(["report", str(tested), str(other)])


def test_an_interval_that_some_samples_leave_open_is_left_out() -> None:
    """Two clips, one of them without words: a sample of that one alone has no error rate."""
    clips = [scores.TestedClip("a", "", ""), scores.TestedClip("b", "a b", "a b")]
    assert {name: interval for name, _, interval in scores.estimate_rates(clips)}["wer"] is None
    spoken = [scores.TestedClip("c", "a b", "a c")] * 5
    interval = scores.estimate_rates(spoken)[0][2]
    assert interval is not None
    assert 0 < interval[0] <= interval[1]
