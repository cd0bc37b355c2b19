"""Training with CUDA graphs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from errors import UserError

WARM_UP = 3
"""Passes before a recording, in which libraries choose their algorithms; PyTorch advises 3."""


class CUDAGraphs(Callback):
    """Replay the network's forward and backward pass instead of starting each operation anew.

    A GPU finishes the operations of a small network faster than Python starts them. A CUDA graph
    starts all of a pass at once. One is recorded for each shape of batch, when the first batch of
    that shape arrives; the speech data modules round shapes up on a GPU, so that there are few.

    The loss, gradient clipping and the optimizer's step are not part of the graphs, nor are
    validation and test. A graph repeats its operations with new random numbers, drawn from the
    generator that `Reproducibility` seeds.

    The network must be the module's attribute ``network``, called once per step. Its forward pass
    must take tensors only, return a tensor or a named tuple of tensors, and not depend on their
    values in Python.

    Args:
        max_shapes: maximum number of recorded shapes; each keeps its inputs, outputs and gradients
            in the GPU's memory. Batches of further shapes are trained on without a graph.
    """

    def __init__(self, max_shapes: int = 200) -> None:
        self.max_shapes = max_shapes
        self._network: nn.Module | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that graphs can be used.

        Raises:
            UserError: if not; names the reason.
        """
        if stage != "fit":
            return
        device = trainer.strategy.root_device.type
        if device != "cuda":
            raise UserError(f"callbacks.CUDAGraphs needs a GPU, and this run is on {device}")
        if trainer.world_size > 1:
            raise UserError("callbacks.CUDAGraphs needs --trainer.devices=1")
        if not isinstance(getattr(pl_module, "network", None), nn.Module):
            kind = type(pl_module).__name__
            raise UserError(f"callbacks.CUDAGraphs needs a module in {kind}'s attribute network")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the network's forward pass."""
        network: Any = pl_module.network
        network.forward = GraphedForward(network, self.max_shapes)
        self._network = network

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the network's forward pass, and free the graphs' memory."""
        if self._network is not None:
            del self._network.forward
            self._network = None


class GraphedForward:
    """A module's forward pass, replayed in training.

    Attributes:
        replays: number of replays so far.
    """

    def __init__(self, network: nn.Module, max_shapes: int) -> None:
        self.network = network
        self.forward = network.forward
        self.max_shapes = max_shapes
        self.replays = 0
        self.recordings: dict[Any, Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        is_training = self.network.training and torch.is_grad_enabled()
        if not is_training or any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return self.forward(*inputs, **options)
        if options or not all(isinstance(x, Tensor) for x in inputs):
            kind = type(self.network).__name__
            raise UserError(f"callbacks.CUDAGraphs: {kind} is not called with tensors alone")
        is_trained = tuple(p.requires_grad for p in self.network.parameters())
        key = *((x.shape, x.dtype) for x in inputs), is_trained
        if key not in self.recordings:
            if len(self.recordings) >= self.max_shapes:
                return self.forward(*inputs)
            self.recordings[key] = self._record(inputs)
        self.replays += 1
        return self.recordings[key].replay(self, inputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> "Recording":
        """Record without changing random numbers or running statistics."""
        device = inputs[0].device
        generator = torch.cuda.get_rng_state(device)
        before = [buffer.clone() for buffer in self.network.buffers()]
        try:
            recording = Recording(self.forward, self.network.parameters(), inputs, self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            kind, (reason, *_) = type(self.network).__name__, str(error).splitlines()
            raise UserError(f"callbacks.CUDAGraphs cannot record {kind}: {reason}") from error
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        torch.cuda.set_rng_state(generator, device)
        return recording


class Recording:
    """CUDA graphs of the forward and the backward pass for inputs of one shape.

    PyTorch's ``make_graphed_callables`` does the same, but in PyTorch 2.11 a recording fails if
    another thread pins memory meanwhile, as a DataLoader does.

    Args:
        forward: forward pass.
        parameters: parameters to compute gradients for.
        inputs: inputs of the shape.
        pool: memory shared by recordings that are never replayed at the same time.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        parameters: Iterable[nn.Parameter],
        inputs: tuple[Tensor, ...],
        pool: Any,
    ) -> None:
        self.inputs = [x.clone() for x in inputs]
        self.parameters = [p for p in parameters if p.requires_grad]
        # cuBLAS warns if it is the first that the thread of backward passes calls.
        x = torch.ones((), device=inputs[0].device, requires_grad=True)
        (x * x).backward()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(WARM_UP):
                outputs = as_tuple(forward(*self.inputs))
                self._backward(outputs, [torch.zeros_like(x) for x in trained(outputs)])
        del outputs
        torch.cuda.synchronize()

        self.graphs: tuple[Any, Any] = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        capture: Any = {"pool": pool, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.graphs[0], **capture):
            result = forward(*self.inputs)
        self.pack = getattr(result, "_make", lambda outputs: outputs[0])
        outputs = as_tuple(result)
        self.output_gradients = [torch.zeros_like(x) if x.requires_grad else None for x in outputs]
        with torch.cuda.graph(self.graphs[1], **capture):
            given = [x for x in self.output_gradients if x is not None]
            self.gradients = self._backward(outputs, given)
        self.outputs = [x.detach() for x in outputs]

    def _backward(
        self, outputs: tuple[Tensor, ...], gradients: list[Tensor]
    ) -> list[Tensor | None]:
        # Training calls backward outside the autocast region of its forward pass.
        with torch.autocast(self.inputs[0].device.type, enabled=False):
            found = torch.autograd.grad(
                trained(outputs), self.parameters, gradients, allow_unused=True
            )
        return separate(found)

    def replay(self, graphed: GraphedForward, inputs: tuple[Tensor, ...]) -> Any:
        """Return the outputs for new inputs; valid until the next replay."""
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        return self.pack(_Replay.apply(graphed, self, *self.parameters))  # type: ignore[no-untyped-call]


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    """Return the outputs of a forward pass as a tuple.

    Raises:
        UserError: if they are neither a tensor nor a named tuple.
    """
    if isinstance(result, Tensor):
        return (result,)
    if not hasattr(result, "_make"):
        kind = type(result).__name__
        raise UserError(f"callbacks.CUDAGraphs: the network returns a {kind}, not a named tuple")
    return tuple(result)


def trained(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs that gradients flow through."""
    return [x for x in outputs if x.requires_grad]


def separate(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copy gradients that share memory, because clipping would scale it twice.

    A sum hands one tensor to both its sides.
    """
    places = [None if g is None else g.data_ptr() for g in gradients]
    return [
        g if g is None or places.index(places[i]) == i else g.clone()
        for i, g in enumerate(gradients)
    ]


class _Replay(torch.autograd.Function):
    """A recorded pass as a function of the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        graphed: GraphedForward,
        recording: Recording,
        *parameters: nn.Parameter,  # noqa: ARG004
    ) -> Any:
        ctx.graphed, ctx.number, ctx.recording = graphed, graphed.replays, recording
        recording.graphs[0].replay()
        outputs = tuple(x.detach() for x in recording.outputs)
        ctx.mark_non_differentiable(*(x for x in outputs if not x.is_floating_point()))
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        recording: Recording = ctx.recording
        if ctx.number != ctx.graphed.replays:
            raise UserError("callbacks.CUDAGraphs: the network is called more than once per step")
        for static, gradient in zip(recording.output_gradients, gradients, strict=True):
            if static is not None:
                static.copy_(gradient)
        for parameter, new in zip(recording.parameters, recording.gradients, strict=True):
            total = parameter.grad  # of earlier batches, perhaps where the new one will be written
            if total is not None and new is not None and total.data_ptr() == new.data_ptr():
                parameter.grad = total.clone()
        recording.graphs[1].replay()
        return None, None, *(None if g is None else g.detach() for g in recording.gradients)
