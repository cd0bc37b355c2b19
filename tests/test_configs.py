"""Every YAML in configs/ but the sweeps goes through fit, test and predict."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import read_rows
from tests.conftest import CONFIGS

FAST = "debug/fast.yaml"
SPEECH = {
    "asr_transformer.yaml": ["asr_transformer.yaml", FAST],
    "asr_transformer_maclaurin.yaml": ["asr_transformer_maclaurin.yaml", FAST],
    "asr_lstm.yaml": ["asr_lstm.yaml", FAST],
    "asr_conformer.yaml": ["asr_conformer.yaml", FAST],
    "asr_conformer_small.yaml": ["asr_conformer_small.yaml", FAST],
    "demo/speech.yaml": ["asr_transformer.yaml", "demo/speech.yaml", FAST],
    "debug/fast.yaml": ["asr_transformer.yaml", FAST],
    "debug/overfit.yaml": ["asr_transformer.yaml", "debug/overfit.yaml", FAST],
    "debug/profile.yaml": ["asr_transformer.yaml", "debug/profile.yaml"],
}
IMAGES = {
    **{path.name: [path.name, FAST] for path in CONFIGS.glob("octmnist_*.yaml")},
    "demo/oct.yaml": ["octmnist_mlp.yaml", "demo/oct.yaml", FAST],
}
BOOLEAN = {path.name for path in CONFIGS.glob("boolean_*.yaml")}
LANGUAGE_MODEL = "lm_character.yaml"
SPEECH_TEST_SCORES = ["cer_normalized", "wer_normalized"]
SPEECH_SCORES = ["cer", "wer", "jaccard", "cosine", "damerau_levenshtein", "loss", "nll"]
IMAGE_SCORES = ["accuracy", "auc", "recall", "loss"]
CLASSES = ["choroidal neovascularization", "diabetic macular edema", "drusen", "normal"]
IMAGE_TEST_SCORES = ["ece", *(f"recall/{name}" for name in CLASSES)]


def layered(names: list[str]) -> list[str]:
    return [arg for name in names for arg in ("--config", str(CONFIGS / name))]


def test_every_config_is_tried() -> None:
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    experiments = {name for name in found if not name.startswith("sweeps/")}  # test_sweep.py's
    assert set(SPEECH) | set(IMAGES) | BOOLEAN | {LANGUAGE_MODEL} == experiments


def check_fit_and_test(
    args: list[str],
    losses: list[str],
    scores: list[str],
    test_scores: list[str],
    run_cli: Callable[..., Path],
) -> Path:
    """Check that fit and test leave every file that the README names, with every metric."""
    run = run_cli("fit", *args)
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    rows = read_rows(run / "metrics.csv")
    last = {name: float(value) for row in rows for name, value in row.items()}
    assert {f"val/{score}" for score in scores} <= set(last)
    assert {f"train/{loss}" for loss in losses} <= set(last)
    config = (run / "config.yaml").read_text()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1  # are finished
    assert state["global_step"] == last["step"] + 1 > 0
    assert run_cli("test", *args) == run
    record = json.loads((run / "test_metrics.json").read_text())
    assert record["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert set(record["metrics"]) == {f"test/{score}" for score in scores + test_scores}
    assert (run / "config.yaml").read_text() == config  # fit's, whatever test ran with
    return run


@pytest.mark.parametrize("name", SPEECH)
def test_speech(name: str, tones: Path, run_cli: Callable[..., Path]) -> None:
    args = [*layered(SPEECH[name]), f"--data.init_args.root={tones}"]
    args += ["--data.init_args.batch_size=8", "--data.init_args.splits=[0.6,0.2]"]
    args += ["--trainer.check_val_every_n_epoch=1"]
    demo = name == "demo/speech.yaml"
    if demo:
        args += ["--data.init_args.clips=40"]
    ctc = ["ctc"] if demo or "conformer" in name else []
    run = check_fit_and_test(
        args, ["loss", "nll", *ctc], SPEECH_SCORES + ctc, SPEECH_TEST_SCORES, run_cli
    )
    transcripts = (run / "test_transcripts.csv").read_text(encoding="utf-8").splitlines()
    assert all(len(line.split("|")) == 3 for line in transcripts)
    run_cli("predict", *args, "--ckpt_path=last")
    predictions = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[0] for line in predictions] == [
        line.split("|")[0] for line in transcripts
    ]
    if name == "debug/profile.yaml":
        assert "run_training_batch" in (run / "fit-profile.txt").read_text()


def test_language_model(
    tones: Path, run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    args = [*layered([LANGUAGE_MODEL, FAST]), f"--data.init_args.corpus.init_args.root={tones}"]
    args += ["--data.init_args.batch_size=8"]
    args += ["--data.init_args.corpus.init_args.splits=[0.6,0.2]"]
    check_fit_and_test(args, ["loss"], ["loss", "bits_per_character"], [], run_cli)
    caplog.clear()
    run_cli("predict", *args)
    assert "Nothing in trainer.callbacks writes the predictions" in caplog.text


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, retinas: Path, run_cli: Callable[..., Path]) -> None:
    args = [*layered(IMAGES[name]), f"--data.init_args.file={retinas}"]
    args += ["--data.init_args.images=200"] if name == "demo/oct.yaml" else []
    run = check_fit_and_test(args, ["loss"], IMAGE_SCORES, IMAGE_TEST_SCORES, run_cli)
    run_cli("predict", *args)
    lines = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 201
    assert lines[0] == ",".join(["index", *CLASSES])
    probabilities = [[float(value) for value in line.split(",")[1:]] for line in lines[1:]]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in probabilities)


@pytest.mark.parametrize("name", sorted(BOOLEAN))
def test_boolean_functions(name: str, run_cli: Callable[..., Path]) -> None:
    args = layered([name])
    scores = ["accuracy", "perturbed_accuracy", "margin"]
    if name == "boolean_perceptron.yaml":
        fast = [*args, "--config", str(CONFIGS / FAST)]
        run = check_fit_and_test(fast, ["loss"], ["accuracy"], scores[1:], run_cli)
    else:
        run = run_cli("test", *args)
        record = json.loads((run / "test_metrics.json").read_text())
        assert record["checkpoint"] is None
        assert record["metrics"] == {f"test/{score}": 1 for score in scores}
    run_cli("predict", *args)
