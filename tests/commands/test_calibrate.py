"""``calibrate``: the confidence of words fits the search that test uses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cli
from tests.conftest import CONFIGS

JOINT = "networks.BeamSearch"


def test_it_equals_the_validations_if_both_search_alike(
    small: list[str], run_cli: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*small, "--trainer.max_epochs=15", "--trainer.precision=32-true"]
    for search in ("decoding", "test_decoding"):
        args += [f"--model.init_args.{search}={JOINT}", f"--model.init_args.{search}.width=1"]
    run = run_cli("fit", *args)
    best = run / "checkpoints" / "best.ckpt"
    before = torch.load(best, weights_only=True)
    torch.save(before | {"calibration": [1.0, 0.0]}, best)
    cli.main(["calibrate", str(run)])
    after = torch.load(best, weights_only=True)
    assert after["calibration"] == pytest.approx(before["calibration"], rel=1e-3)
    assert after["calibration"] != [1.0, 0.0]
    assert after.keys() == before.keys()
    assert "words of validation" in capsys.readouterr().out

    config = run / "config.yaml"
    parts = config.read_text().rpartition("test_decoding:")
    config.write_text("".join(parts[:2]) + parts[2].replace("width: 1", "width: 8", 1))
    cli.main(["calibrate", str(run)])
    assert torch.load(best, weights_only=True)["calibration"] != after["calibration"]


def test_a_run_without_words_is_refused(retinas: Path, run_cli: Callable[..., Path]) -> None:
    args = [f"--config={CONFIGS / 'octmnist_mlp.yaml'}", "--trainer.max_epochs=1"]
    run = run_cli("fit", *args, f"--data.init_args.file={retinas}")
    with pytest.raises(SystemExit, match="has no confidence of words"):
        cli.main(["calibrate", str(run)])
