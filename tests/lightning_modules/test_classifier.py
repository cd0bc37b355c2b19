from collections.abc import Callable
from pathlib import Path

import medmnist
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import CONFIGS


def arguments(name: str, retinas: Path) -> list[str]:
    config = str(CONFIGS / f"octmnist_{name}.yaml")
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return ["--config", config, f"--data.init_args.file={retinas}", *quiet]


def predicted(run: Path) -> np.ndarray:
    lines = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    return np.array([[float(value) for value in line.split(",")[1:]] for line in lines])


@pytest.mark.parametrize("name", ["perceptron", "logistic_regression_scratch", "mlp"])
def test_test_scores_equal_medmnists_evaluator(
    name: str,
    retinas: Path,
    run_cli: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [*arguments(name, retinas), "--trainer.max_epochs=2"]
    run_cli("fit", *args)
    run_cli("test", *args)
    run = run_cli("predict", *args)
    scores = yaml.safe_load((run / "test_metrics.json").read_text())["metrics"]
    monkeypatch.setattr(medmnist.Evaluator, "__init__", lambda self: None)  # wants the real file
    evaluator = medmnist.Evaluator()
    evaluator.flag, evaluator.split, evaluator.size = "octmnist", "test", 28
    evaluator.size_flag, evaluator.root = "", str(tmp_path)
    evaluator.info = medmnist.INFO["octmnist"]
    evaluator.labels = np.load(retinas)["test_labels"]
    official = evaluator.evaluate(predicted(run))
    assert scores["test/accuracy"] == pytest.approx(official.ACC, abs=1e-6)
    assert scores["test/auc"] == pytest.approx(official.AUC, abs=1e-4)


def test_the_scratch_network_is_in_its_checkpoint(
    retinas: Path, run_cli: Callable[..., Path]
) -> None:
    """Logistic regression over two runs, resumed, equals the same update for update in torch."""
    args = [*arguments("logistic_regression_scratch", retinas), "--data.init_args.max_images=50"]
    run_cli("fit", *args, "--trainer.max_epochs=1")
    run = run_cli("fit", *args, "--trainer.max_epochs=2", "--ckpt_path=last")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    arrays = np.load(retinas)
    images = torch.from_numpy(arrays["train_images"][:50].reshape(50, -1) / 256)
    images = torch.hstack((images, torch.ones(50, 1, dtype=torch.float64)))
    labels = torch.from_numpy(arrays["train_labels"][:50, 0].astype(np.int64))
    weight = torch.zeros(4, 785, dtype=torch.float64, requires_grad=True)
    for epoch in range(2):
        for i in np.random.default_rng((0, epoch)).permutation(50):
            loss = F.cross_entropy((images[i] @ weight.T)[None], labels[i][None])
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.001 * gradient
    torch.testing.assert_close(state["state_dict"]["parameters_.weight"], weight.detach())


def test_the_network_learns_the_generated_signs(
    retinas: Path, run_cli: Callable[..., Path]
) -> None:
    args = [*arguments("mlp", retinas), "--data.init_args.evaluate_on_train=true"]
    args += ["--optimizer=torch.optim.Adam", "--optimizer.init_args.lr=0.001"]
    run = run_cli("fit", *args, "--trainer.max_epochs=25")
    run_cli("test", *args)
    scores = yaml.safe_load((run / "test_metrics.json").read_text())["metrics"]
    assert scores["test/accuracy"] > 0.9  # of the training images; guessing gives 0.25
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    assert {"confusion", "misclassified", "first filters"} <= set(tags["images"])
    assert {"train/loss", "time/epoch", "val/auc"} <= set(tags["scalars"])
