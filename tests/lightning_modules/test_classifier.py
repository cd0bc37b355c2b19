import math
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import medmnist
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from sklearn.metrics import recall_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from datamodules.image_dataset import ImageBatch
from errors import UserError
from lightning_modules import ImageClassifier, ScratchClassifier
from networks.scratch import LogisticRegression
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
    probabilities, labels = predicted(run), evaluator.labels[:, 0]
    official = evaluator.evaluate(probabilities)
    assert scores["test/accuracy"] == pytest.approx(official.ACC, abs=1e-6)
    assert scores["test/auc"] == pytest.approx(official.AUC, abs=1e-4)
    choice, confidence = probabilities.argmax(1), probabilities.max(1)
    recalls = recall_score(labels, choice, average=None)
    assert scores["test/recall"] == pytest.approx(recalls.mean(), abs=1e-6)
    for title, recall in zip(evaluator.info["label"].values(), recalls, strict=True):
        assert scores[f"test/recall/{title}"] == pytest.approx(recall, abs=1e-6)
    bins = np.ceil(confidence * 15)
    gaps = [
        abs((choice == labels)[bins == b].mean() - confidence[bins == b].mean())
        * (bins == b).mean()
        for b in np.unique(bins)
    ]
    # The file's probabilities have six digits: one may fall into the next bin.
    assert scores["test/ece"] == pytest.approx(sum(gaps), abs=2e-3)


def test_images_count_alike_in_the_loss_and_one_that_is_no_number_is_not_left_out() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model = ImageClassifier(network, ["a", "b"])
    model.log = MagicMock()  # type: ignore[method-assign]
    images, labels = torch.randn(16, 1, 2, 2), torch.arange(16) % 2

    def validate() -> float:
        model.val_loss.reset()
        with torch.no_grad():
            for part in torch.arange(16).split((9, 7)):
                model.validation_step(ImageBatch(part, images[part], labels[part], (len(part),)))
        return float(model.val_loss.compute())

    expected = F.cross_entropy(network(images), labels).item()
    assert validate() == pytest.approx(expected, rel=1e-6)
    images[3] = torch.nan
    assert math.isnan(validate())


def test_the_auc_of_two_classes_is_medmnists_for_any_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    gaps = 20 + 4 * torch.randn(400, generator=generator) + labels
    images = torch.stack((-gaps, gaps), dim=1)[:, :, None, None] / 2
    model = ImageClassifier(nn.Flatten(), ["a", "b"])
    model.log = MagicMock()  # type: ignore[method-assign]
    model.validation_step(ImageBatch(torch.arange(400), images, labels, (400,)))
    found = float(model.val_scores["auc"].compute())
    assert found == pytest.approx(roc_auc_score(labels, gaps), abs=1e-6)


def test_classes_without_an_image_are_left_out_of_the_means(
    retinas: Path, run_cli: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = dict(np.load(retinas))
    keep = arrays["test_labels"][:, 0] != 3
    for name in ("test_images", "test_labels"):
        arrays[name] = arrays[name][keep]
    np.savez(tmp_path / "three.npz", **arrays)
    run_cli("fit", *arguments("mlp", retinas), "--trainer.max_epochs=1")
    args = arguments("mlp", tmp_path / "three.npz")
    run_cli("test", *args)
    assert "No test image is of class normal: the means leave it out" in caplog.text
    run = run_cli("predict", *args)
    scores = yaml.safe_load((run / "test_metrics.json").read_text())["metrics"]
    probabilities, labels = predicted(run), arrays["test_labels"][:, 0]
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in range(3)]
    assert scores["test/auc"] == pytest.approx(np.mean(areas), abs=1e-4)
    recalls = recall_score(labels, probabilities.argmax(1), average=None, labels=[0, 1, 2])
    assert scores["test/recall"] == pytest.approx(recalls.mean(), abs=1e-6)
    assert "test/recall/normal" not in scores


def test_scores_too_large_for_float32s_softmax_are_ranked() -> None:
    """Every probability of the second class is 1 in float32, and the AUC would be .5."""
    model = ScratchClassifier(LogisticRegression(1, 2), ["a", "b"])
    scores = torch.zeros(40, 2, dtype=torch.float64)
    scores[:, 1] = 17 + torch.arange(40) / 10
    model.logits = lambda images: scores  # type: ignore[method-assign]
    model.log = MagicMock()  # type: ignore[method-assign]
    indices = torch.arange(40)
    batch = ImageBatch(indices, torch.zeros(40, 1, 1, 1), (indices >= 20).long(), (40,))
    model.validation_step(batch)
    assert model.val_scores.compute()["val/auc"] == 1


def test_the_scratch_network_is_in_its_checkpoint(
    retinas: Path, run_cli: Callable[..., Path]
) -> None:
    """Logistic regression, trained and resumed, equals a torch version update for update."""
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
        for i in np.random.default_rng((42, epoch)).permutation(50):
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


@pytest.mark.parametrize("ending", [["--trainer.max_epochs=2"], ["--trainer.max_steps=20"]])
def test_several_steps_of_one_execution_are_the_steps_one_by_one(
    ending: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    args = [*arguments("cnn", retinas), *ending, "--data.init_args.batch_size=16"]
    args += ["--lr_scheduler=lightning_modules.WarmupLinearDecay"]
    args += [
        "--model.init_args.network.init_args.dropout=0"
    ]  # seeded once for all steps of a batch
    states = []
    # 13 steps an epoch: with 5 the last execution is a smaller one.
    for steps in (1, 5):
        run = run_cli("fit", *args, f"--data.init_args.steps_per_execution={steps}")
        states.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True))
        run.rename(tmp_path / f"run {len(states)}")
    one, several = states
    assert several["global_step"] == one["global_step"] == (26 if "epochs" in ending[0] else 20)
    schedules = [state["lr_schedulers"][0]["_last_lr"] for state in states]
    assert schedules[0] == pytest.approx(schedules[1])
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(several["state_dict"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The lr scheduler dict contains")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val"),
        (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches"),
        (
            ["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"],
            "ReduceLROnPlateau needs --data.init_args.steps_per_execution=1",
        ),
        (["--optimizer=LBFGS"], "LBFGS needs --data.init_args.steps_per_execution=1"),
    ],
)
def test_settings_incompatible_with_several_steps_per_execution_are_named(
    args: list[str], message: str, retinas: Path, fail_cli: Callable[..., str]
) -> None:
    assert message in fail_cli("fit", *arguments("mlp", retinas), *args)


def test_mirrored_images_have_the_same_probabilities(
    retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    args = [*arguments("cnn", retinas), "--trainer.max_epochs=1"]
    run = run_cli("fit", *args)
    arrays = dict(np.load(retinas))
    arrays["test_images"] = arrays["test_images"][:, :, ::-1]
    np.savez(tmp_path / "mirrored.npz", **arrays)
    found = {}
    for mirror in ("false", "true"):
        for file in (retinas, tmp_path / "mirrored.npz"):
            data = f"--data.init_args.file={file}"
            run_cli("predict", *args, data, f"--model.init_args.mirror={mirror}")
            found[mirror, file.stem] = predicted(run)
    np.testing.assert_allclose(found["true", "retinas"], found["true", "mirrored"], atol=2e-6)
    assert abs(found["false", "retinas"] - found["false", "mirrored"]).max() > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        ["--optimizer=SGD", "--optimizer.lr=0.1"],
        ["--trainer.gradient_clip_val=1"],
        ["--trainer.accumulate_grad_batches=2"],
    ],
)
def test_a_classifier_from_scratch_refuses_the_steps_of_others(
    settings: list[str], retinas: Path, fail_cli: Callable[..., str]
) -> None:
    args = arguments("logistic_regression_scratch", retinas)
    assert "ScratchClassifier takes its own steps, without" in fail_cli("fit", *args, *settings)


def test_a_classifier_from_scratch_is_not_trained_on_a_gpu() -> None:
    """Its weights there would be copies, and the checkpoint would hold the initial ones."""
    model = ScratchClassifier(LogisticRegression(), list("abcd"))
    model.trainer = MagicMock()
    model.trainer.strategy.root_device = torch.device("cuda")
    with pytest.raises(UserError, match=r"is trained on the CPU: give --trainer\.accelerator cpu"):
        model.setup("fit")
