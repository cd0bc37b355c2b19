"""Image classification: metrics of all classifiers, and training by autograd."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassRecall,
)

from datamodules.medmnist import ImageBatch
from engine import TrainingModule
from engine.training import Losses


class Classifier(TrainingModule, ABC):
    """Score a classifier as MedMNIST does: accuracy, and the AUC of each class against the rest.

    Logged for validation and test: ``loss`` (cross-entropy); ``accuracy`` over all images;
    ``recall``, the mean over classes (the accuracy if all were equally frequent); and ``auc``, the
    mean over classes (equal to ``medmnist.Evaluator``'s). Also logged for test: each class's
    ``recall`` and ``ece``, the expected calibration error with 15 bins (Guo et al. 2017). Logged
    for training: the mean ``loss`` of the epoch.

    Args:
        class_names: names of the classes, filled from the data module.
    """

    batch_type = ImageBatch

    def __init__(self, class_names: list[str]) -> None:
        super().__init__()
        self.class_names = class_names
        self.val_scores = _Scores(len(class_names))
        self.test_scores = _Scores(len(class_names))

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""

    def validation_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        return self._score(batch, "val", self.val_scores)

    def test_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        return self._score(batch, "test", self.test_scores)

    def predict_step(self, batch: ImageBatch) -> Tensor:
        """Return the probabilities (batch, classes)."""
        return self.logits(batch.images).float().softmax(-1)

    def _score(self, batch: ImageBatch, stage: str, scores: "_Scores") -> dict[str, Tensor]:
        logits = self.logits(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels)
        scores.loss.update(loss, len(batch.labels))
        scores.accuracy.update(logits, batch.labels)
        probabilities = logits.softmax(-1)
        scores.auc.update(probabilities, batch.labels)
        scores.recall.update(logits, batch.labels)
        self.log(f"{stage}/loss", scores.loss)
        self.log(f"{stage}/accuracy", scores.accuracy, prog_bar=True)
        self.log(f"{stage}/auc", scores.auc)
        self.log(f"{stage}/recall", scores.recall)
        if stage == "test":
            scores.ece.update(probabilities, batch.labels)
            scores.recalls.update(logits, batch.labels)
            self.log("test/ece", scores.ece)
        return {"logits": logits}

    def on_test_epoch_end(self) -> None:
        """Log each class's recall."""
        # Lightning logs a metric object only if it has a single value.
        recalls = self.test_scores.recalls.compute()
        pairs = zip(self.class_names, recalls, strict=True)
        self.log_dict({f"test/recall/{name}": recall for name, recall in pairs})
        self.test_scores.recalls.reset()


class _Scores(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.auc = MulticlassAUROC(classes, average="macro")
        self.recall = MulticlassRecall(classes, average="macro")
        self.recalls = MulticlassRecall(classes, average="none")
        self.ece = MulticlassCalibrationError(classes, n_bins=15, norm="l1")


class ImageClassifier(Classifier):
    """Train a network by automatic differentiation.

    Args:
        network: network from images (batch, channels, height, width) to logits (batch, classes).
        class_names: names of the classes, filled from the data module.
        label_smoothing: probability mass spread over all classes in the training target.
        mirror: whether evaluation averages the logits of an image and its mirror image; for images
            whose class does not depend on left and right.
    """

    mixed_precision = True

    def __init__(
        self,
        network: nn.Module,
        class_names: list[str],
        label_smoothing: float = 0.0,
        mirror: bool = False,
    ) -> None:
        super().__init__(class_names)
        self.network = network
        self.label_smoothing = label_smoothing
        self.mirror = mirror

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return (logits + self.network(images.flip(-1))) / 2 if self.mirror else logits

    def training_losses(self, batch: ImageBatch) -> tuple[Losses, int]:
        """Return the cross-entropy of one step's batch."""
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return {"loss": loss}, len(batch.labels)
