"""``export``: a folder that runs a trained model without PyTorch."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from commands.conversion import Axes, check, compare, convert, open_network, quantize_weights
from commands.folders import find_scores, make_console, new_folder, shorten_paths
from commands.stages import load_run
from datamodules.medmnist import MedMNISTDataModule
from engine import RunDirectory
from errors import UserError
from lightning_modules import ImageClassifier, SpeechRecognizer
from networks import (
    BeamSearch,
    CharacterLanguageModel,
    CTCGreedySearch,
    GreedySearch,
    SpeechToText,
)
from networks.exportable import ExportableEncoder, ExportableStep, LanguageModelStep, make_step

PROGRAMS = Path(__file__).parent / "exported"
REQUIREMENTS = {
    "transcribe": "numpy>=2\nonnxruntime>=1.20\nsoundfile>=0.13\n",
    "classify": "numpy>=2\nonnxruntime>=1.20\npillow>=11\n",
}


def export(path: Path, output: Path | None, quantize: str | None) -> None:
    """Export a run's best checkpoint.

    Args:
        path: run directory of a recognizer or of a classifier trained by autograd.
        output: folder to create; by default ``exported`` in the run directory.
        quantize: ``int8`` stores the weights of linear layers in eight bits.

    Raises:
        UserError: if the run cannot be exported, the folder exists, or the exported network's
            outputs differ from PyTorch's.
    """
    output = output or path / "exported"
    model, data, _, checkpoint = load_run(path)
    with new_folder(output) as folder:
        if isinstance(model, SpeechRecognizer):
            described, program = export_recognizer(model, folder), "transcribe"
        elif isinstance(model, ImageClassifier) and isinstance(data, MedMNISTDataModule):
            described, program = export_classifier(model, data, folder), "classify"
        else:
            raise UserError(
                f"{path} is a run of {type(model).__name__}: export takes recognizers of speech "
                "and classifiers of images that were trained by autograd"
            )
        if quantize:  # the scores are of the exact weights
            for network in folder.glob("*.onnx"):
                quantize_weights(network)
        elif tested := find_scores(RunDirectory(path), checkpoint["global_step"]):
            described["scores"] = tested.metrics
            if tested.changed:
                described["tested with"] = shorten_paths(tested.changed)
        described["licence of the data"] = getattr(data, "licence", None)
        text = json.dumps(described, indent=1, ensure_ascii=False)
        (folder / "model.json").write_text(f"{text}\n", encoding="utf-8")
        (folder / "requirements.txt").write_text(REQUIREMENTS[program], encoding="utf-8")
        shutil.copyfile(PROGRAMS / f"{program}.py", folder / "run.py")
    size = sum(file.stat().st_size for file in output.glob("*.onnx")) / 1e6
    make_console().print(f"{output}: {size:.1f} MB of networks; python {output}/run.py FILE…")


def export_recognizer(model: SpeechRecognizer, folder: Path) -> dict[str, Any]:
    """Write encoder and decoder of a recognizer; return the settings for its program.

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
    exact = ExportableEncoder(network, convolutional=False)
    encoder = ExportableEncoder(network, convolutional=True)
    axes: Axes = {"waveforms": (0, 1), "lengths": (0,)}
    convert(encoder, make_clips(2, rate), axes, encoder.outputs, folder / "encoder")
    for seconds, count in ((0.3, 1), (2.0, 3)):
        clips = make_clips(count, int(seconds * rate))
        mask, keys, values, *_ = check(exact, clips, folder / "encoder.onnx")
    state = [torch.randn(len(mask), *value.shape[1:]) for value in step.start()]
    if state[0].ndim == 4:  # keys and values of previous tokens
        state = [torch.randn(len(mask), x.shape[1], 3, x.shape[3]) for x in state]
    tokens = torch.arange(len(mask)) % network.decoder.vocabulary_size
    axes = {"tokens": (0,), "position": (), "keys": (0, 2), "values": (0, 2), "mask": (0, 1)}
    for name, tensor in zip(step.states, state, strict=True):
        axes[name] = (0, 2) if tensor.ndim == 4 else (0,)
    inputs = (tokens, torch.tensor([3]), keys, values, mask, *state)
    outputs = ("logits", *(f"new_{name}" for name in step.states))
    convert(step, inputs, axes, outputs, folder / "decoder")
    check_decoder(network, step, folder / "decoder.onnx")
    vocabulary = model.vocabulary
    start = zip(step.states, step.start(), strict=True)
    strategy = model.test_decoding
    if (
        isinstance(strategy, BeamSearch)
        and strategy.language_model
        and strategy.language_model_weight
    ):
        search["language_model_weight"] = strategy.language_model_weight
        search["language_model_state"] = export_language_model(strategy.language_model, folder)
    return {
        "task": "speech recognition",
        "sample_rate": rate,
        "longest_clip": math.ceil(model.longest_clip * rate),
        "symbols": list(vocabulary.symbols),
        "start": vocabulary.start,
        "stop": vocabulary.stop,
        "pad": vocabulary.pad,
        "state": {name: list(tensor.shape[1:]) for name, tensor in start},
        "search": search,
    }


def make_clips(count: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return noise (count, samples) of different lengths, and the lengths."""
    lengths = samples - samples // 9 * torch.arange(count)
    waveforms = torch.randn(count, samples) / 10
    waveforms[torch.arange(samples) >= lengths[:, None]] = 0.0
    return waveforms, lengths


def describe_search(model: SpeechRecognizer) -> dict[str, Any]:
    """Return the settings of the search that test and predict use.

    Raises:
        UserError: if the exported program has no such search.
    """
    strategy = model.test_decoding
    found = {"width": 1, "ctc_weight": 0.0, "length_exponent": 0.0, "end_margin": 10.0}
    if type(strategy) is CTCGreedySearch:
        found["width"] = 0
    elif type(strategy) is BeamSearch:
        found |= {name: getattr(strategy, name) for name in found}
    elif type(strategy) is not GreedySearch:
        raise UserError(f"export: the search {type(strategy).__name__} cannot be exported")
    return found | {"max_tokens": strategy.maximum(model.network)}


def export_language_model(model: CharacterLanguageModel, folder: Path) -> dict[str, list[int]]:
    """Write a step of a language model; return the shapes of its state by name."""
    step, path = LanguageModelStep(model.eval()), folder / "language_model"
    start = step.start()
    state = [torch.randn(2, *tensor.shape[1:]) for tensor in start]
    axes: Axes = {"tokens": (0,), **dict.fromkeys(step.states, (0,))}
    outputs = ("logits", *(f"new_{name}" for name in step.states))
    convert(step, (torch.arange(2), *state), axes, outputs, path)
    check_language_model(model, step, path.with_suffix(".onnx"))
    return {name: list(x.shape[1:]) for name, x in zip(step.states, start, strict=True)}


class ExportableClassifier(nn.Module):
    """Classifier of stored images.

    Args:
        model: trained classifier.
        pixel_divisor: number that pixels are divided by.
    """

    def __init__(self, model: ImageClassifier, pixel_divisor: float) -> None:
        super().__init__()
        self.model = model
        self.pixel_divisor = pixel_divisor

    def forward(self, images: Tensor) -> Tensor:
        """Uint8 images (batch, size, size) or (batch, size, size, 3) → (batch, classes)."""
        x = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return self.model.logits(x.float() / self.pixel_divisor).softmax(-1)


def export_classifier(
    model: ImageClassifier, data: MedMNISTDataModule, folder: Path
) -> dict[str, Any]:
    """Write a classifier; return the settings for its program."""
    classifier = ExportableClassifier(model, data.pixel_divisor).eval()
    shape = (data.size, data.size) + ((3,) if data.channels == 3 else ())
    images = [torch.randint(0, 256, (count, *shape), dtype=torch.uint8) for count in (2, 1, 5)]
    path = folder / "classifier"
    convert(classifier, (images[0],), {"images": (0,)}, ("probabilities",), path)
    for batch in images:
        check(classifier, (batch,), path.with_suffix(".onnx"))
    return {
        "task": "image classification",
        "classes": list(model.class_names),
        "size": data.size,
        "channels": data.channels,
    }


@torch.no_grad()
def check_decoder(network: SpeechToText, step: ExportableStep, path: Path) -> None:
    """Compare an exported decoder with `TextDecoder.step`, token by token from the first.

    Raises:
        UserError: if they differ.
    """
    session = open_network(path)
    known = {value.name for value in session.get_inputs()}
    for count in (1, 3):
        memory, mask = network.encode(*make_clips(count, network.features.sample_rate))
        cache = network.decoder.start(memory, mask)
        keys, values = network.decoder.cross_attention.attention.project(memory)
        feed = {"keys": keys.numpy(), "values": values.numpy(), "mask": mask.numpy()}
        state = [np.repeat(tensor.numpy(), count, axis=0) for tensor in step.start()]
        for position in range(3):
            tokens = (torch.arange(count) + position) % network.decoder.vocabulary_size
            expected = network.decoder.step(tokens, cache).log_softmax(-1)
            feed |= {"tokens": tokens.numpy(), "position": np.array([position])}
            feed |= dict(zip(step.states, state, strict=True))
            logits, *state = session.run(None, {k: v for k, v in feed.items() if k in known})
            compare([logits], [expected], path)


@torch.no_grad()
def check_language_model(
    model: CharacterLanguageModel, step: LanguageModelStep, path: Path
) -> None:
    """Compare an exported language model with `CharacterLanguageModel.step`, token by token.

    Raises:
        UserError: if they differ.
    """
    session = open_network(path)
    for count in (1, 3):
        known, state = model.start(), [np.repeat(x.numpy(), count, axis=0) for x in step.start()]
        for position in range(3):
            tokens = (torch.arange(count) + position) % model.embedding.num_embeddings
            expected = model.step(tokens, known).log_softmax(-1)
            feed = {"tokens": tokens.numpy(), **dict(zip(step.states, state, strict=True))}
            logits, *state = session.run(None, feed)
            compare([logits], [expected], path)
