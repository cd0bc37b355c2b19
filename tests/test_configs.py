"""Every YAML in configs/ goes through fit, test and predict."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import CONFIGS

SMALL = [CONFIGS / "debug" / "fast.yaml"]
TRANSFORMER = CONFIGS / "asr_transformer.yaml"
LAYERS = {
    "asr_transformer.yaml": [TRANSFORMER, *SMALL],
    "asr_lstm.yaml": [CONFIGS / "asr_lstm.yaml", *SMALL],
    "demo/speech.yaml": [TRANSFORMER, CONFIGS / "demo" / "speech.yaml", *SMALL],
    "debug/fast.yaml": [TRANSFORMER, *SMALL],
    "debug/overfit.yaml": [TRANSFORMER, CONFIGS / "debug" / "overfit.yaml", *SMALL],
    "debug/profile.yaml": [TRANSFORMER, CONFIGS / "debug" / "profile.yaml"],
}
SCORES = ["cer", "wer", "jaccard", "cosine", "damerau_levenshtein", "loss", "nll"]


def test_every_config_is_tried() -> None:
    assert set(LAYERS) == {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}


@pytest.mark.parametrize("name", LAYERS)
def test_fit_test_and_predict(name: str, tones: Path, run_cli: Callable[..., Path]) -> None:
    args = [arg for path in LAYERS[name] for arg in ("--config", path)]
    args += ["--data.init_args.root", tones, "--data.init_args.batch_size=8"]
    args += ["--data.init_args.splits=[0.6,0.2]", "--trainer.check_val_every_n_epoch=1"]
    if name.startswith("demo"):
        args += ["--data.init_args.clips=40"]
    run = run_cli("fit", *args)
    ctc = ["ctc"] if name.startswith("demo") else []

    # Every file that DESIGN promises, with every metric.
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    with (run / "metrics.csv").open(newline="") as file:
        logged = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    last = {key: value for row in logged for key, value in row.items()}
    assert {f"val/{score}" for score in SCORES + ctc} <= set(last)
    assert {f"train/{loss}" for loss in ["loss", "nll", *ctc]} <= set(last)
    config = (run / "config.yaml").read_text()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert state["global_step"] == last["step"] + 1 > 0

    assert run_cli("test", *args) == run
    record = json.loads((run / "test_metrics.json").read_text())
    assert record["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert set(record["metrics"]) == {f"test/{score}" for score in SCORES + ctc}
    transcripts = (run / "test_transcripts.csv").read_text(encoding="utf-8").splitlines()
    assert all(len(line.split("|")) == 3 for line in transcripts)
    assert (run / "config.yaml").read_text() == config  # fit's, whatever test ran with

    run_cli("predict", *args, "--ckpt_path=last")
    predictions = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[0] for line in predictions] == [
        line.split("|")[0] for line in transcripts
    ]
    if name == "debug/profile.yaml":
        assert "run_training_batch" in (run / "fit-profile.txt").read_text()
