import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.ljspeech import read_metadata


def read(path: Path) -> list[list[str]]:
    return [line.split("|") for line in path.read_text(encoding="utf-8").splitlines()]


def test_transcripts_are_written_in_the_order_of_the_data_set_and_the_first_are_printed(
    small: list[str],
    tones: Path,
    tmp_path: Path,
    run_cli: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Evaluation starts with the longest clips, so the batches come in another order."""
    small = [*small, "--data.init_args.batch_size=3", "--trainer.max_epochs=1"]
    run = run_cli("fit", *small)
    capsys.readouterr()
    run_cli("test", *small, "--trainer.callbacks.init_args.examples=2")
    expected = [[id, text] for id, text, _ in read_metadata(tones / "metadata.csv")][32:]
    assert [row[:2] for row in read(run / "test_transcripts.csv")] == expected
    printed = capsys.readouterr().out
    assert "2 of 8 in" in printed
    assert "T-033" in printed
    assert "T-034" not in printed
    run_cli("predict", *small)
    assert [row[0] for row in read(run / "predictions.csv")] == [id for id, _ in expected]
    files = tmp_path / "files"
    files.mkdir()
    shutil.copy(tones / "wavs" / "T-007.wav", files / "[b]7.wav")
    run_cli("predict", *small, f"--data.init_args.predict_paths=[{files}]")
    assert [row[0] for row in read(run / "predictions.csv")] == ["[b]7"]
    assert "[b]7" in capsys.readouterr().out
