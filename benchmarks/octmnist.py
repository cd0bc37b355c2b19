"""Time the classifiers' epochs, each as a ratio to a named peer in the same run.

    python -m benchmarks.octmnist

Needs no data: networks from scratch train on random arrays of OCTMNIST's size, and PyTorch networks
on generated images.
"""

import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import Perceptron as PeerPerceptron
from sklearn.linear_model import SGDClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cli
from datamodules.demo_oct import write_file
from networks import ConvNet, FeedForwardNetwork
from networks.scratch import LogisticRegression, MultiLayerPerceptron, Perceptron

CONFIGS = Path(__file__).parent.parent / "configs"
IMAGES = 8_000  # per epoch through cli.py


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def numpy_epoch(network: MultiLayerPerceptron, images: NDArray, labels: NDArray) -> None:  # type: ignore[type-arg]
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


def scratch_rows() -> list[tuple[str, float, str, float]]:
    """Time one epoch of each classifier from scratch."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (97_477, 784)) / 256
    labels = random.integers(0, 4, 97_477)
    rows = []
    for name, network, peer in (
        ("perceptron", Perceptron(), PeerPerceptron(max_iter=1, tol=None)),
        (
            "logistic regression",
            LogisticRegression(),
            SGDClassifier(loss="log_loss", max_iter=1, tol=None),
        ),
    ):
        network.update(images[:2], labels[:2])  # compiles
        ours = seconds(lambda network=network: network.update(images, labels))  # type: ignore[misc]
        theirs = seconds(lambda peer=peer: peer.fit(images, labels))  # type: ignore[misc]
        rows.append((f"{name} from scratch, 97,477 images", ours, type(peer).__name__, theirs))
    mlp, few, their_labels = MultiLayerPerceptron(), images[:5_000], labels[:5_000]
    mlp.update(images[:2], labels[:2])
    ours = seconds(lambda: mlp.update(few, their_labels))
    theirs = seconds(lambda: numpy_epoch(MultiLayerPerceptron(), few, their_labels))
    return [*rows, ("MLP from scratch, 5,000 images", ours, "numpy loop", theirs)]


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Take one step and return the loss, as a student's loop does."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def network_rows(folder: Path) -> list[tuple[str, float, str, float]]:
    """Time one epoch through ``cli.py fit`` and through two bare loops."""
    file = folder / "retinas.npz"
    write_file(file, IMAGES, 28)
    arrays = np.load(file)
    x = torch.from_numpy(arrays["train_images"][:, None]).float() / 256
    y = torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    rows = []
    for name, config, network, batch_size in (
        ("MLP, batch 16", "octmnist_mlp", FeedForwardNetwork(), 16),
        ("CNN, batch 8", "octmnist_cnn", ConvNet(), 8),
    ):
        args = ["--config", str(CONFIGS / f"{config}.yaml"), f"--data.init_args.file={file}"]
        args += [f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=6"]
        cli.main(["fit", *args])
        with (folder / config / "metrics.csv").open(newline="") as lines:
            times = [row["time/epoch"] for row in csv.DictReader(lines)]
        ours = min(float(value) for value in times if value)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True)

        def bare(network: nn.Module = network, optimizer=optimizer, loader=loader) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            for images, labels in loader:
                step(network, optimizer, images, labels)

        def resident(network: nn.Module = network, optimizer=optimizer, size=batch_size) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            for indices in torch.randperm(len(y)).split(size):
                step(network, optimizer, x[indices], y[indices])

        rows.append((name, ours, "DataLoader(TensorDataset)", min(seconds(bare) for _ in range(6))))
        rows.append((name, ours, "resident tensors", min(seconds(resident) for _ in range(6))))
    return rows


def main() -> None:
    """Measure everything and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [*scratch_rows(), *network_rows(Path(folder))]
    title = f"one epoch, {torch.get_num_threads()} threads"
    table = Table("what", "ours", "peer", "peer's time / ours", title=title)
    for what, ours, peer, theirs in rows:
        table.add_row(what, f"{ours:.3f} s", f"{theirs:.3f} s ({peer})", f"{theirs / ours:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
