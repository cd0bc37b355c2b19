"""``card``: what a model card says of a run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import cli
from lightning_modules.words import measure_confidence
from tests.conftest import CONFIGS

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


def test_a_recognizer_s_card(
    small: list[str], tones: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_cli("fit", *small)
    run_cli("test", *small)
    notes = tmp_path / "notes.md"
    notes.write_text("## Voices\n\nTones only.\n")
    cli.main(["card", str(run), "--licence", "cc0-1.0", "--notes", str(notes)])
    text = (run / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    described = yaml.safe_load(front)
    assert described["license"] == "cc0-1.0"
    assert described["pipeline_tag"] == "automatic-speech-recognition"
    scores = json.loads((run / "test_metrics.json").read_text())["metrics"]
    (result,) = described["model-index"][0]["results"]
    for metric in result["metrics"]:
        assert metric["value"] == pytest.approx(scores[f"test/{metric['type']}"], abs=1e-4)
    assert re.search(r"\| wer \| [0-9.]+ \| [0-9.]+ – [0-9.]+ \|", body)
    assert "| training clips | 24, " in body
    assert result["dataset"]["name"] == f"LJSpeechDataModule {tones.name}"
    assert "| encoder | AudioEncoder: bands 80, hidden_size 48" in body
    assert "Word confidence on the same clips: expected calibration error 0." in body
    assert body.rstrip().endswith("Tones only.")
    assert str(tmp_path) not in text  # nothing about the machine
    with pytest.raises(SystemExit, match="already exists"):
        cli.main(["card", str(run)])
    record = json.loads((run / "test_metrics.json").read_text())
    (run / "test_metrics.json").write_text(json.dumps(record | {"step": 1}))
    cli.main(["card", str(run), "--output", str(run / "other.md")])
    assert "Not tested." in (run / "other.md").read_text()  # the scores are of another checkpoint


def test_a_classifier_of_another_class_has_its_task(
    run_cli: Callable[..., Path], retinas: Path
) -> None:
    config = CONFIGS / "octmnist_logistic_regression_scratch.yaml"
    run = run_cli("fit", *["--config", config, f"--data.init_args.file={retinas}", *SHORT])
    cli.main(["card", str(run)])
    text = (run / "README.md").read_text()
    assert "pipeline_tag: image-classification" in text
    assert f"python cli.py predict {run.name} image.png" in text
    assert "| parameters | 3,140 |" in text


def test_a_classifier_s_card_before_its_test(run_cli: Callable[..., Path], retinas: Path) -> None:
    config = CONFIGS / "octmnist_cnn.yaml"
    run = run_cli("fit", "--config", config, f"--data.init_args.file={retinas}", *SHORT)
    cli.main(["card", str(run)])
    text = (run / "README.md").read_text()
    assert "Not tested." in text
    assert "not a medical device" in text
    assert "license" not in text.split("---\n")[1]
    assert "retinas.npz" in text
    assert "| parameters | 224,892 |" in text  # the course's number
    (run / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"no validation has chosen it yet; there is .*last\.ckpt"):
        cli.main(["card", str(run), "--output", str(run / "other.md")])


def test_calibration_is_measured_by_bins() -> None:
    """Two bins by hand: .9 is right in 3 of 4 words, .3 in 1 of 6."""
    confidence = [0.9] * 4 + [0.3] * 6
    correct = [True] * 3 + [False] + [True] + [False] * 5
    error, share = measure_confidence(confidence, correct)
    assert error == pytest.approx(0.4 * (0.9 - 0.75) + 0.6 * (0.3 - 1 / 6), abs=1e-6)
    assert share == pytest.approx(1 / 6)  # the first two of .3: one right, one wrong
    assert measure_confidence([0.8, 0.7], [True, True])[1] == 0
