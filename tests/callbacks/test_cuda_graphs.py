"""CUDA graphs change the time of training only; most tests need a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from callbacks import CUDAGraphs
from callbacks.cuda_graphs import GraphedForward, Recording
from engine import read_rows
from errors import UserError
from networks import ConvNet, ResidualNetwork, TextDecoderRecurrent
from tests.networks.test_speech_to_text import ragged_clips, small_network

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def loss_and_gradients(
    network: torch.nn.Module, forward: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    network.zero_grad()
    torch.cuda.manual_seed(1)
    outputs = forward(*inputs)
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    loss = first.square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


@needs_gpu
@pytest.mark.parametrize("kind", ["recognizer", "cnn", "residual"])
def test_a_replay_equals_the_network_on_new_inputs_and_changed_weights(kind: str) -> None:
    """Also in its random numbers: dropout draws the same masks."""
    torch.manual_seed(0)
    network: torch.nn.Module
    batches: list[tuple[Tensor, ...]]
    if kind == "recognizer":
        network = small_network(TextDecoderRecurrent, dropout=0.1)
        waveforms, lengths = ragged_clips()
        tokens = torch.randint(0, 9, (len(lengths), 6))
        batches = [
            (waveforms, lengths, tokens),
            (waveforms * 0.5, lengths // 2 + 1, tokens.flip(0)),
        ]
    else:
        network = ConvNet() if kind == "cnn" else ResidualNetwork(dropout=0.2, widths=(4, 8))
        batches = [(torch.rand(5, 1, 28, 28),), (torch.rand(5, 1, 28, 28),)]
    network = network.cuda().train()
    graphed = GraphedForward(network, max_shapes=1)
    for batch in [*batches, *batches]:
        inputs = tuple(x.cuda() for x in batch)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        expected = loss_and_gradients(network, network.forward, inputs)
        network.load_state_dict(state)
        found = loss_and_gradients(network, graphed, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.9)
    assert len(graphed.recordings) == 1


@needs_gpu
def test_training_with_graphs_has_the_losses_of_training_without(
    small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    losses: list[list[float]] = []
    for name, extra in (("plain", []), ("graphs", ["--trainer.callbacks+=callbacks.CUDAGraphs"])):
        options = ["--trainer.max_epochs=3", "--trainer.precision=32-true", *extra]
        run = run_cli("fit", *small, *options)
        rows = read_rows(run / "metrics.csv")
        losses.append([float(row["train/loss"]) for row in rows if row.get("train/loss")])
        run.rename(tmp_path / name)
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0)


def test_each_shape_is_recorded_once_and_evaluation_never(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def record(graphed: GraphedForward, inputs: tuple[Tensor, ...]) -> Recording:
        made.append(tuple(inputs[0].shape))
        recording = MagicMock()
        recording.replay = lambda inputs: graphed.forward(*inputs) + 1
        return recording

    monkeypatch.setattr(GraphedForward, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    module, trainer = MagicMock(network=network), MagicMock()
    callback = CUDAGraphs(max_shapes=2)
    callback.on_train_start(trainer, module)

    def plain(x: Tensor) -> Tensor:
        return network[1](network[0](x))

    for rows, is_replayed in ((4, True), (5, True), (4, True), (6, False)):
        x = torch.rand(rows, 3)
        torch.testing.assert_close(network(x), plain(x) + is_replayed)
    assert made == [(4, 3), (5, 3)]
    with torch.no_grad():
        torch.testing.assert_close(network(x[:4]), plain(x[:4]))
    network.eval()
    torch.testing.assert_close(network(x[:4]), plain(x[:4]))
    callback.teardown(trainer, module, "fit")
    assert "forward" not in vars(network)


@pytest.mark.parametrize(
    ("device", "devices", "batches", "message"),
    [
        ("cpu", 1, 1, "needs a GPU, and this run is on cpu"),
        ("cuda", 2, 1, r"--trainer\.devices=1"),
        ("cuda", 1, 2, r"--trainer\.accumulate_grad_batches=1"),
    ],
)
def test_what_graphs_cannot_do_is_said_at_the_start(
    device: str, devices: int, batches: int, message: str
) -> None:
    trainer = MagicMock(world_size=devices, accumulate_grad_batches=batches)
    trainer.strategy.root_device = torch.device(device)
    with pytest.raises(UserError, match=message):
        CUDAGraphs().setup(trainer, MagicMock(network=torch.nn.Linear(1, 1)), "fit")
