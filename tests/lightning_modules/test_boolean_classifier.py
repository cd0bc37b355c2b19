import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules import BooleanDataModule
from tests.conftest import CONFIGS


def scores(run: Path) -> dict[str, float]:
    record: dict[str, dict[str, float]] = json.loads((run / "test_metrics.json").read_text())
    return record["metrics"]


def arguments(name: str, dimension: int, low: int, high: int) -> list[str]:
    interval = {"dimension": dimension, "low": low, "high": high}
    data = [f"--data.init_args.{key}={value}" for key, value in interval.items()]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return ["--config", str(CONFIGS / f"boolean_{name}.yaml"), *data, *quiet]


@pytest.mark.parametrize("name", ["mlp_sign", "mlp_relu"])
@pytest.mark.parametrize("interval", [(2, 0, 0), (7, -3, 5), (12, 12, 12), (1, -1, 0)])
def test_constructed_networks_are_exact_and_robust(
    name: str, interval: tuple[int, int, int], run_cli: Callable[..., Path]
) -> None:
    found = scores(run_cli("test", *arguments(name, *interval)))
    assert found == {"test/accuracy": 1, "test/perturbed_accuracy": 1, "test/margin": 1}


def test_a_sample_of_many_inputs_is_scored(run_cli: Callable[..., Path]) -> None:
    args = [*arguments("mlp_relu", 200, -10, 10), "--data.init_args.sample=1000"]
    assert scores(run_cli("test", *args))["test/accuracy"] == 1


def test_a_perceptron_fails_on_xor_and_the_log_says_why(
    run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments("perceptron", 2, 0, 0)
    run_cli("fit", *args)
    log = caplog.text
    assert "No perceptron computes it" in log
    assert "have the common mean (0, 0): training will not reach accuracy 1." in log
    assert scores(run_cli("test", *args))["test/accuracy"] <= 0.75


def test_a_perceptron_learns_what_it_can(
    run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments("perceptron", 4, 0, 4)
    run_cli("fit", *args)
    assert "One perceptron computes it: sign(1·x1 + 1·x2 + 1·x3 + 1·x4 + 1)." in caplog.text
    assert scores(run_cli("test", *args))["test/accuracy"] == 1


@pytest.mark.parametrize(
    ("stage", "name", "extra", "message"),
    [
        (
            "fit",
            "mlp_sign",
            ["--trainer.max_epochs=1"],
            "IntervalMLP is constructed and has nothing to train",
        ),
        ("test", "mlp_sign", ["--data.init_args.low=9"], "low 9 is above high 4"),
        ("test", "mlp_sign", ["--data.init_args.high=9"], "high 9 is beyond ±8"),
        ("test", "mlp_sign", ["--data.init_args.dimension=0"], "dimension 0 is less than 1"),
        ("fit", "perceptron", ["--data.init_args.dimension=21"], "2^21 inputs, too many to list"),
        ("fit", "perceptron", ["--data.init_args.sample=0"], "sample 0 is less than 1"),
        (
            "fit",
            "perceptron",
            [
                "--data=datamodules.DemoOCTDataModule",
                "--model.init_args.network.init_args.dimension=784",
            ],
            "needs dimension, which DemoOCTDataModule does not have",
        ),
    ],
)
def test_invalid_settings_are_named(
    stage: str, name: str, extra: list[str], message: str, fail_cli: Callable[..., str]
) -> None:
    config = str(CONFIGS / f"boolean_{name}.yaml")
    assert message in fail_cli(stage, "--config", config, *extra)


def test_all_inputs_come_once_and_perturbed_copies_are_near() -> None:
    data = BooleanDataModule(5, -1, 1, copies=3)
    data.setup("fit")
    data.setup("test")
    x, y, is_perturbed = data.datasets["train"].tensors
    assert len({tuple(row) for row in x.tolist()}) == len(x) == 32
    assert not is_perturbed.any()
    assert y.tolist() == [1 if abs(row.sum()) <= 1 else -1 for row in x]
    x, y, is_perturbed = data.datasets["test"].tensors
    assert is_perturbed.sum() == 3 * 32
    distances = (x[is_perturbed] - x[is_perturbed].sign()).norm(dim=-1)
    assert distances.tolist() == pytest.approx([1 / 40] * 96, rel=1e-4)
    assert (y[is_perturbed].view(3, 32) == y[:32]).all()
