"""CUDA graphs change the time of training only; most tests need a GPU."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from callbacks import CUDAGraphs
from callbacks.cuda_graphs import GraphedForward, Recording, as_tuple, separate, trained
from engine import read_rows
from errors import UserError
from networks import (
    ConvNet,
    MaclaurinAttention,
    ResidualNetwork,
    TextDecoderRecurrent,
    TextDecoderTransformer,
)
from tests.networks.test_speech_to_text import ragged_clips, small_network

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def loss_and_gradients(
    network: nn.Module, forward: Callable[..., Any], inputs: tuple[Tensor, ...]
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
    network: nn.Module
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


class EmulatedRecording(Recording):
    """What a recording does, on a CPU: replays compute anew, in the same memory each time."""

    def __init__(self, forward: Callable[..., Any], network: nn.Module, inputs: Any) -> None:
        self.inputs = [x.clone() for x in inputs]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.forward = forward
        self.pack = getattr(forward(*inputs), "_make", lambda outputs: outputs[0])
        self.outputs: list[Tensor] = []
        self._replay_forward()
        self.output_gradients = [
            torch.zeros_like(x) if x.requires_grad else None for x in self.computed
        ]
        given = [x for x in self.output_gradients if x is not None]
        self.gradients = self._backward(self.computed, given)
        self.graphs = (
            SimpleNamespace(replay=self._replay_forward),
            SimpleNamespace(replay=self._replay_backward),
        )

    def _replay_forward(self) -> None:
        with torch.enable_grad():
            self.computed = as_tuple(self.forward(*self.inputs))
        latest = [x.detach().clone() for x in self.computed]
        self.outputs = self.outputs or latest
        for static, value in zip(self.outputs, latest, strict=True):
            static.copy_(value)

    def _replay_backward(self) -> None:
        given = [x for x in self.output_gradients if x is not None]
        for static, value in zip(self.gradients, self._backward(self.computed, given), strict=True):
            if static is not None and value is not None:
                static.copy_(value)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Emulate recordings; the list fills with the shapes of the first inputs."""
    made: list[tuple[int, ...]] = []

    def record(graphed: GraphedForward, inputs: tuple[Tensor, ...]) -> Recording:
        made.append(tuple(inputs[0].shape))
        return EmulatedRecording(graphed.forward, graphed.network, inputs)

    monkeypatch.setattr(GraphedForward, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_each_shape_is_recorded_once_and_evaluation_never(recorded: list[tuple[int, ...]]) -> None:
    network = linear()
    module, trainer = MagicMock(network=network), MagicMock()
    callback = CUDAGraphs(max_shapes=2)
    callback.on_train_start(trainer, module)
    for rows in (4, 5, 4, 6):
        x = torch.rand(rows, 3)
        torch.testing.assert_close(network(x), nn.Sequential.forward(network, x))  # type: ignore[arg-type,no-untyped-call]
    assert recorded == [(4, 3), (5, 3)]
    graphed: Any = network.forward
    assert graphed.replays == 3
    with torch.no_grad():
        network(x[:4])
    network.eval()(x[:4])
    assert graphed.replays == 3
    callback.teardown(trainer, module, "fit")
    assert "forward" not in vars(network)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("decoder", [TextDecoderTransformer, TextDecoderRecurrent])
def test_replayed_gradients_of_a_recognizer_are_its_own(decoder: Any) -> None:
    network = small_network(decoder).train()
    waveforms, lengths = ragged_clips()
    tokens = torch.randint(0, 9, (len(lengths), 6))
    graphed = GraphedForward(network, 1)
    for scale in (1.0, 0.5):
        found = []
        for forward in (graphed, graphed.forward):
            network.zero_grad()
            logits, memory, mask = forward(waveforms * scale, lengths, tokens)
            assert mask.dtype == torch.bool
            (logits.square().mean() + memory.square().mean()).backward()
            found.append(gradients(network))
        torch.testing.assert_close(*found)


@pytest.mark.usefixtures("recorded")
def test_gradients_add_up_over_batches() -> None:
    """Each replay writes where the gradients of earlier batches may be."""
    network, x = linear(), torch.rand(3, 5, 3)
    graphed = GraphedForward(network, 2)
    found = []
    for forward in (graphed, graphed.forward):
        network.zero_grad()
        for batch in (x[0], x[1], x[2, :2], x[2]):
            forward(batch).square().mean().backward()
        found.append(gradients(network))
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("recorded")
def test_parameters_unfrozen_later_are_trained() -> None:
    network, x = linear(), torch.rand(5, 3)
    graphed = GraphedForward(network, 2)
    network[0].requires_grad_(False)  # type: ignore[index]
    graphed(x).sum().backward()
    assert len(gradients(network)) == 2
    network.requires_grad_(True)
    graphed(x).sum().backward()
    assert len(gradients(network)) == 4
    given = x.clone().requires_grad_()
    graphed(given).sum().backward()
    assert given.grad is not None


def test_a_backward_pass_is_recorded_outside_autocast(recorded: list[tuple[int, ...]]) -> None:
    """Maclaurin attention computes in float32 within autocast; so must its backward pass."""
    kernel = MaclaurinAttention()
    network = small_network(TextDecoderTransformer, cross_attention=kernel).train()
    waveforms, lengths = ragged_clips()
    inputs = waveforms, lengths, torch.randint(0, 9, (len(lengths), 6))
    graphed = GraphedForward(network, 1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        graphed(*inputs)
        (recording,) = graphed.recordings.values()
        outputs = as_tuple(graphed.forward(*inputs))
        given = [torch.ones_like(x) for x in trained(outputs)]
        found = recording._backward(outputs, given)
        outputs = as_tuple(graphed.forward(*inputs))
    expected = torch.autograd.grad(trained(outputs), recording.parameters, given, allow_unused=True)
    assert recorded == [waveforms.shape]
    torch.testing.assert_close(found, list(expected), rtol=1e-6, atol=1e-6)


def test_gradients_in_one_memory_are_separated() -> None:
    """Both sides of a sum get one tensor."""
    left, right = (torch.ones(3, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad((left + right).sum(), (left, right))
    separated = separate((*found, None))
    assert separated[2] is None
    assert separated[0] is found[0]
    torch.testing.assert_close(separated[:2], list(found))
    assert len({g.data_ptr() for g in separated if g is not None}) == 2


@pytest.mark.usefixtures("recorded")
def test_networks_that_cannot_be_replayed_are_named() -> None:
    network, x = linear(), torch.rand(5, 3)
    graphed = GraphedForward(network, 2)
    with pytest.raises(UserError, match="Sequential is not called with tensors alone"):
        graphed(x, None)
    with pytest.raises(UserError, match="the network is called more than once per step"):
        (graphed(x) + graphed(x)).sum().backward()
    with pytest.raises(UserError, match="the network returns a tuple, not a named tuple"):
        as_tuple((x, x))


@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [("cpu", 1, "needs a GPU, and this run is on cpu"), ("cuda", 2, r"--trainer\.devices=1")],
)
def test_what_graphs_cannot_do_is_said_at_the_start(
    device: str, devices: int, message: str
) -> None:
    trainer = MagicMock(world_size=devices)
    trainer.strategy.root_device = torch.device(device)
    with pytest.raises(UserError, match=message):
        CUDAGraphs().setup(trainer, MagicMock(network=nn.Linear(1, 1)), "fit")
