"""An epoch of the classifiers: from scratch against other libraries, `fit` against bare loops.

    python -m benchmarks.classifiers

Classifiers from scratch train on random arrays of OCTMNIST's size, networks on generated images.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import Perceptron as PeerPerceptron
from sklearn.linear_model import SGDClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cli
from benchmarks.harness import OURS, Comparison, Contender, Section, Turns, report, take_turns
from datamodules.demo_oct import write_file
from networks import ConvNet, FeedForwardNetwork
from networks.scratch import LogisticRegression, MultiLayerPerceptron, Perceptron

CONFIGS = Path(__file__).parent.parent / "configs"
LOADER, RESIDENT = "DataLoader(TensorDataset)", "resident tensors"
# config, network, batch size, images, targets
FITS: tuple[tuple[str, Callable[[], nn.Module], int, int, dict[str, float]], ...] = (
    ("octmnist_mlp", FeedForwardNetwork, 16, 8_000, {LOADER: 1.3, RESIDENT: 1.0}),
    ("octmnist_mlp", FeedForwardNetwork, 256, 97_477, {RESIDENT: 1 / 1.05}),
    ("octmnist_cnn", ConvNet, 8, 8_000, {LOADER: 1.0, RESIDENT: 1.0}),
    ("octmnist_cnn", ConvNet, 256, 8_000, {RESIDENT: 1 / 1.05}),
)


def train_by_hand(network: MultiLayerPerceptron, images: NDArray, labels: NDArray) -> None:  # type: ignore[type-arg]
    """Train one epoch with a plain numpy loop over the examples, as a student writes it."""
    weight_1, bias_1, weight_2, bias_2 = network.parameters.values()
    for x, label in zip(images, labels, strict=True):
        before = weight_1 @ x + bias_1
        hidden = np.maximum(before, 0)
        scores = weight_2 @ hidden + bias_2
        error = np.exp(scores - scores.max())
        error /= error.sum()
        error[label] -= 1
        back = (weight_2.T @ error) * (before > 0)
        weight_2 -= 0.001 * np.outer(error, hidden)
        bias_2 -= 0.001 * error
        weight_1 -= 0.001 * np.outer(back, x)
        bias_1 -= 0.001 * back


def compare_scratch(rounds: int) -> list[Comparison]:
    """Time an epoch of each classifier from scratch."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (97_477, 784)) / 256
    labels = random.integers(0, 4, 97_477)
    few, their_labels = images[:2_000], labels[:2_000]
    perceptron = PeerPerceptron(max_iter=1, tol=None, shuffle=False)
    sgd = SGDClassifier(
        loss="log_loss",
        penalty=None,
        learning_rate="constant",
        eta0=0.001,
        max_iter=1,
        tol=None,
        shuffle=False,
    )
    peers: list[tuple[str, Contender, str, Contender]] = [
        (
            "perceptron from scratch, 97,477 images",
            lambda: Perceptron().update(images, labels),
            "scikit-learn Perceptron, one-vs-rest",
            lambda: perceptron.fit(images, labels),
        ),
        (
            "logistic regression from scratch, 97,477 images",
            lambda: LogisticRegression().update(images, labels),
            "scikit-learn SGDClassifier, one-vs-rest",
            lambda: sgd.fit(images, labels),
        ),
        (
            "MLP from scratch, 2,000 images",
            lambda: MultiLayerPerceptron().update(few, their_labels),
            "numpy loop",
            lambda: train_by_hand(MultiLayerPerceptron(), few, their_labels),
        ),
    ]
    return [
        take_turns(work, {OURS: ours, peer: function}, rounds)
        for work, ours, peer, function in peers
    ]


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Take one step and read the loss, as a student's loop does."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    loss.item()


def compare_fit(
    config: str,
    network: nn.Module,
    size: int,
    images: int,
    targets: dict[str, float],
    rounds: int,
    folder: Path,
) -> Comparison:
    """Time an epoch through ``cli.py fit`` and through two bare loops."""
    file = folder / f"retinas_{images}.npz"
    if not file.exists():
        write_file(file, min(images, 8_000), 28)
    arrays = np.load(file)
    repeats = -(-images // len(arrays["train_images"]))
    if repeats > 1:  # drawing all would take minutes
        larger = {name: arrays[name] for name in arrays.files}
        for name in ("train_images", "train_labels"):
            larger[name] = np.concatenate([arrays[name]] * repeats)[:images]
        np.savez(file, **larger)
        arrays = np.load(file)
    x = torch.from_numpy(arrays["train_images"][:, None]).float() / 256
    y = torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    loader = DataLoader(TensorDataset(x, y), size, shuffle=True)

    def load() -> None:
        for batch, labels in loader:
            step(network, optimizer, batch, labels)

    def index() -> None:
        for indices in torch.randperm(len(y)).split(size):
            step(network, optimizer, x[indices], y[indices])

    args = ["--config", str(CONFIGS / f"{config}.yaml"), f"--data.init_args.file={file}"]
    args += [f"--data.init_args.batch_size={size}", f"--experiment={config}_{size}"]
    args += [f"--trainer.default_root_dir={folder}", f"--trainer.max_epochs={rounds + 1}"]
    if size > 16:
        args.append("--threads=null")  # as the configuration advises
    args += ["--trainer.accelerator=cpu", *Turns.prepare({LOADER: load, RESIDENT: index})]
    cli.main(["fit", *args])
    return Comparison(f"{config}, batch {size}, {len(y):,} images", Turns.training, targets)


def measure(options: argparse.Namespace) -> Section:
    """Compare everything."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        comparisons = [
            compare_fit(config, network(), size, images, targets, options.rounds, Path(folder))
            for config, network, size, images, targets in FITS
        ]
    comparisons += compare_scratch(options.rounds)
    text = (
        "Each row is an epoch of training; validation is not timed. Networks compute in float32, "
        "classifiers from scratch in float64. scikit-learn trains one classifier for each of the "
        "four classes, where ours trains one for all."
    )
    return Section("Classifiers", text, comparisons)


if __name__ == "__main__":
    report(measure, __doc__)
