"""Image classification: metrics of all classifiers, and training by autograd."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from datamodules.image_dataset import ImageBatch
from engine import TrainingModule
from engine.training import Losses
from metrics import ClassRecalls, MacroAUROC, MacroRecall, WeightedMean
from networks.precision import accumulator


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
        classes = len(class_names)
        scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "recall": MacroRecall(classes),
                "auc": MacroAUROC(classes),
            },
            compute_groups=False,
        )
        self.val_loss, self.test_loss = WeightedMean(), WeightedMean()
        self.val_scores, self.test_scores = scores.clone("val/"), scores.clone("test/")
        ece = MulticlassCalibrationError(classes, n_bins=15, norm="l1")
        self.test_scores.add_metrics({"ece": ece})
        self.test_recalls = ClassRecalls(classes)

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width).

        They are float32 or float64.
        """

    def validation_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        return self._score(batch, self.val_loss, self.val_scores)

    def test_step(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Score one batch; return its ``logits``."""
        scored = self._score(batch, self.test_loss, self.test_scores)
        self.test_recalls.update(scored["logits"], batch.labels)
        return scored

    def predict_step(self, batch: ImageBatch) -> Tensor:
        """Return the probabilities (batch, classes)."""
        return self.logits(batch.images).softmax(-1).float()

    def _score(
        self, batch: ImageBatch, loss: WeightedMean, scores: MetricCollection
    ) -> dict[str, Tensor]:
        logits = self.logits(batch.images)
        # Probabilities that float32 rounds to 1 are equal, and have no rank for the AUC.
        logits = logits.to(accumulator(logits))
        loss.update(F.cross_entropy(logits, batch.labels), len(batch.labels))
        scores.update(logits.softmax(-1), batch.labels)
        self.log(f"{scores.prefix}loss", loss)
        for name, score in scores.items():
            self.log(name, score, prog_bar=name.endswith("accuracy"))
        return {"logits": logits}

    def on_test_epoch_end(self) -> None:
        """Log each class's recall; name the classes that no image has."""
        # Lightning logs a metric object only if it has a single value.
        recalls = dict(zip(self.class_names, self.test_recalls.compute(), strict=True))
        absent = [name for name, recall in recalls.items() if recall.isnan()]
        if absent:
            rank_zero_info(f"No test image is of class {', '.join(absent)}: the means leave it out")
        self.log_dict({f"test/recall/{k}": v for k, v in recalls.items() if k not in absent})
        self.test_recalls.reset()


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
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing {label_smoothing} is not in [0, 1]")
        self.network = network
        self.label_smoothing = label_smoothing
        self.mirror = mirror

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        if self.mirror:
            logits = (logits + self.network(images.flip(-1))) / 2
        return logits.float()

    def training_losses(self, batch: ImageBatch) -> tuple[Losses, int]:
        """Return the cross-entropy of one step's batch."""
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return {"loss": loss}, len(batch.labels)
