from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from callbacks import speech_examples
from callbacks.speech_examples import (
    BAND_HEIGHT,
    CAPTION,
    MARGIN,
    ROW_HEIGHT,
    WIDTH,
    View,
    inspect_batch,
)
from datamodules.speech_dataset import SpeechBatch
from tests.conftest import SAMPLE_RATE


def test_tensorboard_has_figures_and_texts_of_each_epoch_and_the_audio_once(
    small: list[str], run_cli: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(module: Any, batch: SpeechBatch, texts: list[str], encoded: Any) -> list[View]:
        with torch.no_grad():
            memory, mask = module.network.encode(batch.waveforms, batch.lengths)
        torch.testing.assert_close(encoded[0][:, : mask.shape[1]][mask], memory[mask])
        return inspect_batch(module, batch, texts, encoded)

    monkeypatch.setattr(speech_examples, "inspect_batch", check)
    show = "{class_path: callbacks.SpeechExamples, init_args: {clips: 2}}"
    settings = ["--trainer.max_epochs=3", "--trainer.precision=32-true"]
    settings += ["--trainer.callbacks+=callbacks.ExponentialWeightAverage"]
    run = run_cli("fit", *small, *settings, "--trainer.callbacks+", show)
    events = EventAccumulator(str(run), size_guidance={"images": 0, "audio": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    shown = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    for plugin, kind in (
        ("images", "alignment"),
        ("audio", "audio"),
        ("text", "text/text_summary"),
    ):
        (found,) = shown.PluginRunToTagToContent(plugin).values()
        assert found.keys() == {f"example_{i}/{kind}" for i in range(2)}
    pictures = events.Images("example_0/alignment")
    assert [event.step for event in pictures] == [3, 6, 9]
    with Image.open(BytesIO(pictures[0].encoded_image_string)) as picture:
        assert picture.size == (pictures[0].width, pictures[0].height)
        assert picture.width == MARGIN + WIDTH
    assert len(events.Audio("example_1/audio")) == 1
    assert events.Audio("example_1/audio")[0].sample_rate == pytest.approx(SAMPLE_RATE)
    texts = events.Tensors("example_0/text/text_summary")
    assert len(texts) == 3
    words = texts[0].tensor_proto.string_val[0].decode()
    assert words.startswith("reference: `")
    assert "predicted: `" in words
    assert {"train/loss", "train/loss_step", "val/cer", "val/loss", "lr-AdamW"} <= set(
        tags["scalars"]
    )
    assert "hp_metric" not in tags["scalars"]


def test_a_view_draws_the_text_beside_its_alignment() -> None:
    """Each character stands left of its row, and the row is brightest where it attends."""
    alignment = torch.zeros(6, 10)
    alignment[torch.arange(6), torch.tensor([0, 2, 4, 6, 8, 9])] = 1
    view = View(torch.rand(80, 30), alignment, "abcde")
    pixels = np.asarray(view.image()).astype(int)
    top = BAND_HEIGHT * 80 + CAPTION
    for row, position in enumerate([0, 2, 4, 6, 8, 9]):
        line = pixels[top + row * ROW_HEIGHT + ROW_HEIGHT // 2, MARGIN:]
        assert line.sum(-1).argmax() // (WIDTH // 10) == position
    names = pixels[top : top + 6 * ROW_HEIGHT, :MARGIN].reshape(6, ROW_HEIGHT, MARGIN, 3)
    inked = (names < 255).any((1, 2, 3))
    assert inked.tolist() == [True] * 5 + [False]  # the last row predicts the stop token
