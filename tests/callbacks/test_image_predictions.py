from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks.image_predictions import ClassificationPictures, Mistake, ProbabilityWriter
from datamodules.image_dataset import ImageBatch

NAMES = ["round", "square", "long, thin"]


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Return a stub with the parts of a trainer that the callbacks use."""
    board = MagicMock(spec=TensorBoardLogger)
    return SimpleNamespace(
        default_root_dir=str(tmp_path),
        loggers=[board],
        sanity_checking=False,
        is_global_zero=True,
        current_epoch=4,
        max_epochs=10,
        global_step=7,
    )


def classifier() -> LightningModule:
    """A module with class names and no layers."""
    module = LightningModule()
    module.class_names = NAMES  # type: ignore[assignment]
    return module


def batch_of(indices: list[int], labels: list[int]) -> ImageBatch:
    """Images of 2×2 pixels; the first pixel is the image's index."""
    images = torch.zeros(len(indices), 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor(indices)
    return ImageBatch(torch.tensor(indices), images, torch.tensor(labels), (len(indices),))


def test_confusions_are_counted_and_the_most_confident_errors_come_first(trainer: Any) -> None:
    #             predicted:     0    1    2          label
    probabilities = torch.tensor(
        [
            [0.9, 0.1, 0.0],  #  0                    0
            [0.4, 0.6, 0.0],  #       1 (0.6)         0
            [0.0, 1.0, 0.0],  #       1               1
            [0.1, 0.0, 0.9],  #            2 (0.9)    1
            [0.8, 0.1, 0.1],  #  0 (0.8)              2
            [0.3, 0.5, 0.2],  #       1 (0.5)         0
        ]
    )
    labels = [0, 0, 1, 1, 2, 0]
    show = ClassificationPictures(images=3)
    for part in (slice(0, 4), slice(4, 6)):
        batch = batch_of(list(range(6))[part], labels[part])
        outputs = {"logits": probabilities[part].log()}
        show.on_validation_batch_end(trainer, classifier(), outputs, batch, 0)
    show.on_validation_epoch_end(trainer, classifier())
    writer = trainer.loggers[0].experiment
    figures = {call.args[0]: call.args[1] for call in writer.add_figure.call_args_list}
    assert all(call.args[2] == 7 for call in writer.add_figure.call_args_list)
    counts = [int(text.get_text()) for text in figures["confusion"].axes[0].texts]
    assert np.array_equal(np.reshape(counts, (3, 3)), [[1, 2, 0], [0, 1, 1], [1, 0, 0]])
    fractions = figures["confusion"].axes[0].images[0].get_array()
    expected = np.array([[1 / 3, 2 / 3, 0], [0, 0.5, 0.5], [1, 0, 0]])
    np.testing.assert_allclose(fractions, expected)
    (axes,) = figures["misclassified"].axes
    assert len(axes.images) == 3
    assert [text.get_text() for text in axes.texts] == [
        "square as\nlong, thin",
        "long, thin as\nround",
        "round as\nsquare",
    ]


def test_confusions_and_errors_of_all_processes_are_drawn(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (torch.tensor([5, 0, 0, 0, 0, 0, 0, 1, 0]), [Mistake(0.7, 2, 1, torch.zeros(1, 2, 2))])
    monkeypatch.setattr("callbacks.image_predictions.gather", lambda items: [*items, other])
    show = ClassificationPictures()
    logits = torch.tensor([[0.6, 0.4, 0.0], [0.8, 0.1, 0.1]]).log()
    show.on_validation_batch_end(
        trainer, classifier(), {"logits": logits}, batch_of([0, 1], [1, 0]), 0
    )
    show.on_validation_epoch_end(trainer, classifier())
    writer = trainer.loggers[0].experiment
    figures = {call.args[0]: call.args[1] for call in writer.add_figure.call_args_list}
    counts = [int(text.get_text()) for text in figures["confusion"].axes[0].texts]
    assert counts == [6, 0, 0, 1, 0, 0, 0, 1, 0]
    titles = [text.get_text() for text in figures["misclassified"].axes[0].texts]
    assert titles == ["long, thin as\nsquare", "square as\nround"]


def test_epochs_between_pictures_have_none_but_the_last_epoch_has_some(trainer: Any) -> None:
    show = ClassificationPictures(every_n_epochs=5)
    drawn = []
    for epoch in range(7):
        trainer.current_epoch, trainer.max_epochs = epoch, 7
        writer = trainer.loggers[0].experiment
        writer.reset_mock()
        outputs = {"logits": torch.eye(3)[[1]]}
        show.on_validation_batch_end(trainer, MagicMock(), outputs, batch_of([0], [0]), 0)
        show.on_validation_epoch_end(trainer, classifier())
        drawn.append(writer.add_figure.called)
    assert drawn == [False] * 4 + [True, False, True]


def test_probabilities_are_written_in_the_order_of_the_data_set(
    trainer: Any, tmp_path: Path
) -> None:
    write = ProbabilityWriter()
    for indices in ([2, 0], [1]):
        outputs = torch.eye(3)[indices]
        write.on_predict_batch_end(trainer, MagicMock(), outputs, batch_of(indices, indices), 0)
    write.on_predict_end(trainer, classifier())
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines() == [
        'index,round,square,"long, thin"',
        "0,1.000000,0.000000,0.000000",
        "1,0.000000,1.000000,0.000000",
        "2,0.000000,0.000000,1.000000",
    ]
