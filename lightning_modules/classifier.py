"""Image classification: what every classifier measures, and the one that autograd trains."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from datamodules.medmnist import ImageBatch, MedMNISTDataModule
from errors import UserError


class Classifier(LightningModule, ABC):
    """Measure a classifier as MedMNIST does: accuracy, and the AUC of one class against the rest.

    Logged for validation and test: ``loss`` (cross-entropy), ``accuracy`` over all images and
    ``auc``, the mean over classes (equal to ``medmnist.Evaluator``'s); for training the mean
    ``loss`` of the epoch.

    Args:
        classes: number of classes; the data module's.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.val_scores = _Scores(classes)
        self.test_scores = _Scores(classes)

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""

    def setup(self, stage: str) -> None:
        """Check that the data are images.

        Raises:
            UserError: if they are not.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MedMNISTDataModule):
            raise UserError(f"{type(self).__name__} needs image data, not {type(data).__name__}")

    def on_train_start(self) -> None:
        """Start the sum of the losses of a run that is resumed in the middle of an epoch."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Start the sum of the losses."""
        self._loss_sum = torch.zeros((), device=self.device)
        self._examples = 0

    def sum_losses(self, total: Tensor, examples: int) -> None:
        """Add a batch to the epoch's mean loss.

        With small networks a `self.log` or a metric a step costs as much as the step.
        """
        self._loss_sum += total
        self._examples += examples

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss."""
        self.log("train/loss", self._loss_sum / max(self._examples, 1), sync_dist=True)

    def validation_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        return self._score(batch, "val", self.val_scores)

    def test_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        return self._score(batch, "test", self.test_scores)

    def predict_step(self, batch: ImageBatch) -> Tensor:
        """Return the probabilities (batch, classes)."""
        return self.logits(batch.images).softmax(-1)

    def _score(self, batch: ImageBatch, stage: str, scores: "_Scores") -> dict[str, Tensor]:
        logits = self.logits(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels)
        scores.loss.update(loss, len(batch.labels))
        scores.accuracy.update(logits, batch.labels)
        scores.auc.update(logits.softmax(-1), batch.labels)
        self.log(f"{stage}/loss", scores.loss)
        self.log(f"{stage}/accuracy", scores.accuracy, prog_bar=True)
        self.log(f"{stage}/auc", scores.auc)
        return {"logits": logits}


class _Scores(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.auc = MulticlassAUROC(classes, average="macro")


class ImageClassifier(Classifier):
    """Train a network by automatic differentiation.

    Args:
        network: from images (batch, channels, height, width) to logits (batch, classes).
        classes: number of classes; the data module's.
        label_smoothing: probability mass spread over all classes in the training target.
    """

    def __init__(self, network: nn.Module, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(classes)
        self.network = network
        self.label_smoothing = label_smoothing

    def logits(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: ImageBatch) -> Tensor:
        """Return the loss."""
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        self.sum_losses(loss.detach() * len(batch.labels), len(batch.labels))
        return loss
