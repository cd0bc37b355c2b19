"""Networks as ONNX files: written, compared with PyTorch, stored in eight bits."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError, extra
from networks.exportable import ExportableStep, LanguageModelStep

with extra("export", "export"):
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 # the exporter needs it
    from onnxruntime.quantization import quantize_dynamic

TOLERANCE = 1e-4
"""Maximum difference between the outputs of PyTorch and of the exported network, both absolute and
relative to the value."""
DYNAMIC = torch.export.Dim.DYNAMIC
Axes = Mapping[str, Sequence[int]]


def convert(
    module: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, outputs: Sequence[str], path: Path
) -> None:
    """Write ``<path>.onnx`` and, for `torch.export.load`, ``<path>.pt2``.

    Args:
        module: module in evaluation mode.
        inputs: example of its inputs.
        axes: dimensions of each input that may change, by the input's name.
        outputs: names of its outputs.
        path: file without its suffix.

    Raises:
        UserError: if the module cannot be exported.
    """
    shapes = [dict.fromkeys(dimensions, DYNAMIC) for dimensions in axes.values()]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        try:
            exported = torch.export.export(module, inputs, dynamic_shapes=nest(module, shapes))
            program = torch.onnx.export(
                exported, input_names=list(axes), output_names=list(outputs), dynamo=True
            )
        except Exception as error:  # the exporter raises many types
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"export: the {path.name} cannot be exported ({reason})") from error
        assert program is not None
        program.save(path.with_suffix(".onnx"))
        forget_sources(path.with_suffix(".onnx"))
        for part in exported.graph_module.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        torch.export.save(exported, path.with_suffix(".pt2"))


def nest(module: nn.Module, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Return the shapes as the module's arguments are: those of a state in a tuple."""
    if not isinstance(module, ExportableStep | LanguageModelStep):
        return tuple(shapes)
    named = len(shapes) - len(module.states)
    return (*shapes[:named], tuple(shapes[named:]))


def forget_sources(path: Path) -> None:
    """Remove what the exporter writes about source files: it holds paths of this machine."""
    model = onnx.load(path)
    for function in (*model.functions, model.graph):
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in function.value_info:
            del value.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.save(model, path)


def open_network(path: Path) -> onnxruntime.InferenceSession:
    """Load an exported network."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def compare(found: Sequence[Any], expected: Sequence[Tensor], path: Path) -> None:
    """Raise a `UserError` if the exported network's outputs differ from PyTorch's."""
    for output, tensor in zip(found, expected, strict=True):
        value = tensor.numpy()
        if value.shape != output.shape or not np.allclose(output, value, TOLERANCE, TOLERANCE):
            raise UserError(f"export: {path.name} differs from PyTorch, so it cannot be used")


@torch.no_grad()
def check(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> tuple[Tensor, ...]:
    """Compare an exported network with PyTorch; return PyTorch's outputs.

    Raises:
        UserError: if they differ.
    """
    expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = open_network(path)
    names = [value.name for value in session.get_inputs()]
    feed = dict(zip(names, (value.numpy() for value in inputs), strict=True))
    compare(session.run(None, feed), expected, path)
    return expected


def quantize_weights(path: Path) -> None:
    """Replace the weights of matrix products by eight-bit integers, in place."""
    exact = path.with_name("exact.onnx")
    path.rename(exact)
    path.with_suffix(".pt2").unlink()
    logging.disable(logging.WARNING)  # quantize_dynamic advises on preprocessing
    try:
        quantize_dynamic(
            exact,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # processors without VNNI saturate with all eight bits
        )
    finally:
        logging.disable(logging.NOTSET)
    exact.unlink()
