"""``export``: a folder that runs a trained model without PyTorch."""

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from commands.predict import only_warnings
from commands.train import load
from datamodules.medmnist import MedMNISTDataModule
from engine import RunDirectory
from errors import UserError
from lightning_modules import ImageClassifier, SpeechRecognizer
from networks import BeamSearch, CTCGreedySearch, GreedySearch
from networks.exportable import ExportableEncoder, make_step

try:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
except ImportError as error:
    raise UserError(f"export needs the package {error.name}: pip install '.[export]'") from error

PROGRAMS = Path(__file__).parent / "exported"
TOLERANCE = 1e-4
"""Maximum difference between the outputs of PyTorch and of the exported network."""
DYNAMIC = torch.export.Dim.DYNAMIC
Axes = Mapping[str, Sequence[int]]


def export(path: Path, output: Path | None, *, quantize: bool) -> None:
    """Export a run's best checkpoint.

    Args:
        path: run directory of a recognizer or of a classifier trained by autograd.
        output: folder to create; by default ``exported`` in the run directory.
        quantize: whether to store the weights of linear layers in eight bits.

    Raises:
        UserError: if the run cannot be exported, the folder exists, or the exported network's
            outputs differ from PyTorch's.
    """
    run = RunDirectory(path)
    output = output or path / "exported"
    if output.exists():
        raise UserError(f"{output} already exists: delete it, or give another --output")
    with only_warnings():
        model, data = load(run)
    is_image = isinstance(model, ImageClassifier) and isinstance(data, MedMNISTDataModule)
    if not (is_image or isinstance(model, SpeechRecognizer)):
        raise UserError(
            f"{path} is a run of {type(model).__name__}: export takes recognizers of speech and "
            "classifiers of images that were trained by autograd"
        )
    temporary = output.with_name(f"{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_folder(model, data, run, temporary, quantize=quantize)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    temporary.rename(output)
    size = sum(file.stat().st_size for file in output.glob("*.onnx")) / 1e6
    Console().print(f"{output}: {size:.1f} MB of networks; python {output}/run.py FILE…")


def write_folder(model: Any, data: Any, run: RunDirectory, folder: Path, *, quantize: bool) -> None:
    """Write the networks, the program and what it must know."""
    if isinstance(model, SpeechRecognizer):
        described, program, needs = export_recognizer(model, folder), "transcribe", "soundfile"
    else:
        described, program, needs = export_classifier(model, data, folder), "classify", "pillow"
    if quantize:
        for network in folder.glob("*.onnx"):
            quantize_weights(network)
    described["licence of the data"] = getattr(data, "licence", None)
    if run.test_metrics.is_file():
        described["scores"] = json.loads(run.test_metrics.read_text(encoding="utf-8"))["metrics"]
    text = json.dumps(described, indent=1, ensure_ascii=False)
    (folder / "model.json").write_text(f"{text}\n", encoding="utf-8")
    shutil.copyfile(PROGRAMS / f"{program}.py", folder / "run.py")
    (folder / "requirements.txt").write_text(f"numpy\nonnxruntime\n{needs}\n", encoding="utf-8")


def export_recognizer(model: SpeechRecognizer, folder: Path) -> dict[str, Any]:
    """Write encoder and decoder of a recognizer; return what its program must know.

    Raises:
        UserError: if a part of it cannot be exported.
    """
    network = model.network
    search = describe_search(model)
    try:
        step = make_step(network.decoder)
    except ValueError as error:
        raise UserError(f"export: {error}") from error
    rate = network.features.sample_rate
    encoder = ExportableEncoder(network)
    inputs = (torch.randn(2, rate) / 10, torch.tensor([rate, rate // 2]))
    inputs[0][1, rate // 2 :] = 0.0
    axes: Axes = {"waveforms": (0, 1), "lengths": (0,)}
    convert(encoder, inputs, axes, encoder.outputs, folder / "encoder")
    for seconds, count in ((0.3, 1), (2.0, 3)):
        samples = int(seconds * rate)
        lengths = samples - 100 * torch.arange(count)
        waveforms = torch.randn(count, samples) / 10
        waveforms[torch.arange(samples) >= lengths[:, None]] = 0.0
        outputs = check(encoder, (waveforms, lengths), axes, folder / "encoder.onnx")
    mask, keys, values, *_ = outputs
    start = step.start()
    rows = len(mask)
    state = [torch.randn(rows, *value.shape[1:]) for value in start]
    if state[0].ndim == 4:  # keys and values of tokens before
        state = [torch.randn(rows, x.shape[1], 3, x.shape[3]) for x in state]
    tokens, position = torch.arange(rows) % len(model.vocabulary), torch.tensor([3])
    axes = {"tokens": (0,), "position": (), "keys": (0, 2), "values": (0, 2), "mask": (0, 1)}
    axes |= {
        name: (0, 2) if x.ndim == 4 else (0,) for name, x in zip(step.states, state, strict=True)
    }
    step_inputs = (tokens, position, keys, values, mask, *state)
    results = ("logits", *(f"new_{name}" for name in step.states))
    convert(step, step_inputs, axes, results, folder / "decoder")
    check(step, step_inputs, axes, folder / "decoder.onnx")
    vocabulary = model.vocabulary
    return {
        "task": "speech recognition",
        "sample_rate": rate,
        "longest_clip": round(model.longest_clip, 3),
        "symbols": list(vocabulary.symbols),
        "start": vocabulary.start,
        "stop": vocabulary.stop,
        "pad": vocabulary.pad,
        "state": {name: list(x.shape[1:]) for name, x in zip(step.states, start, strict=True)},
        "search": search,
    }


def describe_search(model: SpeechRecognizer) -> dict[str, Any]:
    """Return the settings of the search that test and predict use.

    Raises:
        UserError: if the exported program has no such search.
    """
    strategy = model.test_decoding
    maximum = getattr(strategy, "max_tokens", None) or model.network.decoder.max_tokens
    found = {"width": 1, "ctc_weight": 0.0, "length_exponent": 0.0, "end_margin": 10.0}
    if isinstance(strategy, CTCGreedySearch):
        found["width"] = 0
    elif isinstance(strategy, BeamSearch):
        if strategy.language_model is not None and strategy.language_model_weight:
            raise UserError(
                "export: the language model of test_decoding cannot be exported: remove it from "
                "the run's config.yaml"
            )
        found |= {name: getattr(strategy, name) for name in found}
    elif not isinstance(strategy, GreedySearch):
        raise UserError(f"export: the search {type(strategy).__name__} cannot be exported")
    return found | {"max_tokens": maximum}


class ExportableClassifier(nn.Module):
    """From stored images to probabilities.

    Args:
        model: trained classifier.
        pixel_divisor: number that pixels are divided by.
    """

    def __init__(self, model: ImageClassifier, pixel_divisor: float) -> None:
        super().__init__()
        self.network = model.network
        self.mirror = model.mirror
        self.pixel_divisor = pixel_divisor

    def forward(self, images: Tensor) -> Tensor:
        """Uint8 images (batch, size, size) or (batch, size, size, 3) → (batch, classes)."""
        x = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        x = x.float() / self.pixel_divisor
        logits: Tensor = self.network(x)
        if self.mirror:
            logits = (logits + self.network(x.flip(-1))) / 2
        return logits.softmax(-1)


def export_classifier(
    model: ImageClassifier, data: MedMNISTDataModule, folder: Path
) -> dict[str, Any]:
    """Write a classifier; return what its program must know."""
    classifier = ExportableClassifier(model, data.pixel_divisor).eval()
    axes: Axes = {"images": (0,)}
    shape = (data.size, data.size) + ((3,) if data.channels == 3 else ())
    for count in (2, 1, 5):
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        if not (folder / "classifier.onnx").exists():
            convert(classifier, (images,), axes, ("probabilities",), folder / "classifier")
        check(classifier, (images,), axes, folder / "classifier.onnx")
    return {
        "task": "image classification",
        "classes": list(model.class_names),
        "size": data.size,
        "channels": data.channels,
    }


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
    """
    shapes = [dict.fromkeys(dimensions, DYNAMIC) for dimensions in axes.values()]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter about itself
        exported = torch.export.export(module, inputs, dynamic_shapes=nest(module, shapes))
        program = torch.onnx.export(
            exported, input_names=list(axes), output_names=list(outputs), dynamo=True
        )
        assert program is not None
        program.save(path.with_suffix(".onnx"))
        torch.export.save(exported, path.with_suffix(".pt2"))


def nest(module: nn.Module, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Return the shapes as the module's arguments are: the rest of them in a tuple."""
    code = type(module).forward.__code__
    named = code.co_argcount - 1
    takes_rest = bool(code.co_flags & 0x04)  # inspect.CO_VARARGS
    return (*shapes[:named], tuple(shapes[named:])) if takes_rest else tuple(shapes)


@torch.no_grad()
def check(
    module: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, path: Path
) -> tuple[Tensor, ...]:
    """Compare the exported network with PyTorch; return PyTorch's outputs.

    Raises:
        UserError: if they differ.
    """
    expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(axes, inputs, strict=True)}
    known = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: value for name, value in feed.items() if name in known})
    for value, output in zip(expected, found, strict=True):
        error = np.abs(value.numpy().astype(np.float64) - output.astype(np.float64)).max()
        if value.shape != output.shape or not error <= TOLERANCE:
            raise UserError(
                f"{path.name} differs from PyTorch by {error:.1e}: this network cannot be exported"
            )
    return expected


def quantize_weights(path: Path) -> None:
    """Replace the weights of matrix products by eight-bit integers, in place."""
    exact = path.with_name("exact.onnx")
    path.rename(exact)
    logging.disable(logging.WARNING)  # quantize_dynamic advises on preprocessing
    try:
        quantize_dynamic(exact, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
    exact.unlink()
