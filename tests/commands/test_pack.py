"""``pack``: a packed run predicts and fine-tunes as the run itself does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

import cli
from commands.folders import shorten_paths
from commands.stages import load_run
from tests.conftest import SAMPLE_RATE, hear_tones, speak_tones


def test_a_packed_run_is_small_and_does_the_same(
    small: list[str],
    run_cli: Callable[..., Path],
    tmp_path: Path,
    tones: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_cli("fit", *small, "--trainer.max_epochs=15")
    run_cli("test", *small)
    (run / "README.md").write_text("card\n")
    packed = tmp_path / "packed"
    cli.main(["pack", str(run), "--output", str(packed)])
    names = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "README.md", "test_metrics.json", "checkpoints/best.ckpt"}
    sizes = [(folder / "checkpoints" / "best.ckpt").stat().st_size for folder in (run, packed)]
    assert sizes[1] < sizes[0] / 4
    texts = [path.read_text() for path in packed.glob("*.*")]
    assert not any(str(tmp_path) in text or str(tones) in text for text in texts)
    scores = [json.loads((folder / "test_metrics.json").read_text()) for folder in (run, packed)]
    assert scores[0]["metrics"] == scores[1]["metrics"]

    models = [load_run(folder).model for folder in (run, packed)]
    assert models[0].calibration == models[1].calibration
    assert models[0].longest_clip == models[1].longest_clip
    for weight, rounded in zip(*(model.parameters() for model in models), strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, weight, rtol=1e-3, atol=1e-6)
    hear_tones(monkeypatch)
    files = []
    for i, text in enumerate(("abc def", "hgfe")):
        files.append(str(tmp_path / f"{i}.wav"))
        soundfile.write(files[-1], speak_tones(text), SAMPLE_RATE)
    printed = []
    for folder in (run, packed):
        capsys.readouterr()
        cli.main(["predict", str(folder), *files])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]

    record = json.loads((packed / "test_metrics.json").read_text())
    assert record["checkpoint"] == "checkpoints/best.ckpt"
    with pytest.raises(SystemExit, match="already exists"):
        cli.main(["pack", str(run), "--output", str(packed)])
    longer = [*small, "--trainer.max_epochs=1"]
    again = ["--experiment", "tuned", "--trainer.default_root_dir", str(tmp_path / "runs")]
    cli.main(["fit", *longer, *again, "--init_from", str(packed)])
    assert (tmp_path / "runs" / "tuned" / "checkpoints" / "best.ckpt").is_file()
    weights = ["--ckpt_path", str(packed / "checkpoints" / "best.ckpt")]
    with pytest.raises(SystemExit, match="weights only and cannot be resumed"):
        cli.main(["fit", *small, "--experiment", "resumed", *weights])


def test_paths_of_this_machine_are_shortened() -> None:
    config = {
        "data": {"init_args": {"root": "/home/me/clips", "url": "file:///home/me/clips.tar"}},
        "noise": ["/home/me/noise", "relative/noise"],
        "lr": 0.1,
    }
    assert shorten_paths(config) == {
        "data": {"init_args": {"root": "clips", "url": "clips.tar"}},
        "noise": ["noise", "relative/noise"],
        "lr": 0.1,
    }
