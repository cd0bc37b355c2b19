"""A classifier's predictions: a file of probabilities, and pictures in TensorBoard."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn

from datamodules.image_dataset import ImageBatch
from engine import gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
"""Number of images in a row of a picture."""
FILTERS = 32
"""Maximum number of filters that are drawn."""


class ProbabilityWriter(Callback):
    """Write ``predictions.csv``: index and class probabilities of each image."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, list[float]]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._rows += zip(batch.indices.tolist(), outputs.tolist(), strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, in the order of the data set."""
        rows = sorted(gather(self._rows))
        self._rows = []
        if trainer.is_global_zero:
            names = class_names(pl_module)
            path = Path(trainer.default_root_dir) / "predictions.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["index", *names])
                writer.writerows([i, *(f"{p:.6f}" for p in row)] for i, row in rows)
            Console(markup=False, emoji=False).print(f"{len(rows):,} predictions in {path}")


class Mistake(NamedTuple):
    """An image that was misclassified: the prediction's probability, both classes, the pixels."""

    confidence: float
    label: int
    prediction: int
    image: Tensor


def most_confident(mistakes: list[Mistake], number: int) -> list[Mistake]:
    """Return the mistakes with the highest confidence, the highest first."""
    return sorted(mistakes, key=lambda mistake: -mistake.confidence)[:number]


class ClassificationPictures(Callback):
    """Show the confusion matrix, misclassified images and first filters while training.

    Args:
        images: maximum number of misclassified images to show, the most confident first.
        every_n_epochs: number of epochs between drawings; the last epoch is also drawn.
    """

    def __init__(self, images: int = 16, every_n_epochs: int = 5) -> None:
        self.images = images
        self.every_n_epochs = every_n_epochs
        self._forget()

    def _forget(self) -> None:
        self._confusion = torch.zeros(0, dtype=torch.long)  # (labels · predictions,)
        self._mistakes: list[Mistake] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch's predictions and keep the most confident mistakes."""
        if self._board(trainer) is None:
            return
        probabilities, labels = outputs["logits"].softmax(-1).cpu(), batch.labels.cpu()
        confidence, predicted = probabilities.max(-1)
        classes = probabilities.shape[-1]
        counts = torch.bincount(labels * classes + predicted, minlength=classes**2)
        self._confusion = counts + (self._confusion if len(self._confusion) else 0)
        wrong = (predicted != labels).nonzero().flatten()
        wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][: self.images]
        self._mistakes = most_confident(
            [
                *self._mistakes,
                *(
                    Mistake(confidence[i].item(), int(labels[i]), int(predicted[i]), image)
                    for i, image in zip(wrong, batch.images[wrong].cpu(), strict=True)
                ),
            ],
            self.images,
        )
        self._shape = batch.images.shape[1:]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what all processes have seen."""
        board = self._board(trainer)
        if board is None:
            return
        found = gather([(self._confusion, self._mistakes)])
        self._forget()
        if not trainer.is_global_zero:
            return
        writer, step = board.experiment, trainer.global_step
        classes = class_names(pl_module)
        confusion = torch.stack([counts for counts, _ in found]).sum(0)
        confusion = confusion.unflatten(0, (len(classes), len(classes)))
        writer.add_figure("confusion", draw_confusion(confusion, classes), step)
        mistakes = most_confident([m for _, some in found for m in some], self.images)
        if mistakes:
            titles = [f"{classes[m.label][:12]} as\n{classes[m.prediction][:12]}" for m in mistakes]
            images = torch.stack([mistake.image for mistake in mistakes])
            writer.add_figure("misclassified", draw_images(images, titles), step)
        filters = first_filters(pl_module, self._shape)
        if filters is not None:
            titles = [str(i) for i in range(len(filters))]
            writer.add_figure("first filters", draw_images(filters, titles), step)

    def _board(self, trainer: Trainer) -> TensorBoardLogger | None:
        if trainer.sanity_checking:
            return None
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return None
        return next((lg for lg in trainer.loggers if isinstance(lg, TensorBoardLogger)), None)


def class_names(module: LightningModule) -> list[str]:
    """Return the names of the classes that a classifier distinguishes."""
    names: Any = module.class_names
    return list(names)


def first_filters(module: nn.Module, shape: torch.Size) -> Tensor | None:
    """Return weights of the first layer as images (filters, channels, height, width).

    Rows of a linear layer are reshaped to ``shape``. Returns None if no layer fits.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.weight.detach().cpu()[:FILTERS]
        if isinstance(layer, nn.Linear) and layer.in_features == shape.numel():
            return layer.weight.detach().cpu()[:FILTERS].unflatten(1, shape)
    return None


def draw_confusion(confusion: Tensor, classes: list[str]) -> "Figure":
    """Draw counts (labels, predictions), coloured by their fraction of the label."""
    from matplotlib.figure import Figure  # late: importing it takes long

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    fractions = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(fractions.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, j in torch.cartesian_prod(*(torch.arange(n) for n in confusion.shape)).tolist():
        colour = "white" if fractions[i, j] > 0.5 else "black"
        axes.text(j, i, str(confusion[i, j].item()), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="label")
    return figure


def draw_images(images: Tensor, titles: list[str]) -> "Figure":
    """Draw images (N, channels, height, width) in rows, each scaled to its own range of values."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // COLUMNS)
    height = 1.25  # of a row, with its titles, in widths of a column
    figure = Figure(figsize=(1.4 * COLUMNS, 1.4 * height * rows))
    axes = figure.add_axes((0, 0, 1, 1))  # a single one: axes are slow to draw
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        scaled = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        pixels = scaled[0] if scaled.shape[0] != 3 else scaled.permute(1, 2, 0)
        left, bottom = i % COLUMNS, height * (i // COLUMNS + 1)
        place = (left + 0.03, left + 0.97, bottom - 0.03, bottom - 0.97)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, extent=place)
        axes.text(left + 0.5, bottom - 1, title, ha="center", va="bottom", fontsize=7)
    axes.set(xlim=(0, COLUMNS), ylim=(height * rows, 0))
    axes.axis("off")
    return figure
