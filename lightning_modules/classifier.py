"""Image classification: what every classifier measures, and the one that autograd trains."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassRecall,
)

from datamodules.medmnist import ImageBatch, MedMNISTDataModule
from errors import UserError
from lightning_modules.training import TrainingModule


class Classifier(TrainingModule, ABC):
    """Measure a classifier as MedMNIST does: accuracy, and the AUC of one class against the rest.

    Logged for validation and test: ``loss`` (cross-entropy), ``accuracy`` over all images,
    ``recall``, the mean over classes (the accuracy if all were equally frequent), and ``auc``, the
    mean over classes (equal to ``medmnist.Evaluator``'s); for test also each class's ``recall`` and
    ``ece``, the expected calibration error with 15 bins (Guo et al. 2017); for training the mean
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
        # One metric's many values: Lightning logs a metric object of one value.
        recalls = self.test_scores.recalls.compute()
        names = self.trainer.datamodule.classes  # type: ignore[attr-defined]
        self.log_dict({f"test/recall/{n}": r for n, r in zip(names, recalls, strict=True)})
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
        network: from images (batch, channels, height, width) to logits (batch, classes).
        classes: number of classes; the data module's.
        label_smoothing: probability mass spread over all classes in the training target.
        mirror: whether an image's logits are the mean of its own and its mirror image's, outside
            training: for images whose class does not depend on left and right.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        label_smoothing: float = 0.0,
        mirror: bool = False,
    ) -> None:
        super().__init__(classes)
        self.network = network
        self.label_smoothing = label_smoothing
        self.mirror = mirror

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return (logits + self.network(images.flip(-1))) / 2 if self.mirror else logits

    def setup(self, stage: str) -> None:
        """Leave the optimizer to the trainer unless there are several steps in a batch.

        Raises:
            UserError: if the data are not images, or a setting of the trainer needs single steps.
        """
        super().setup(stage)
        trainer = self.trainer
        several = trainer.datamodule.steps_per_execution > 1  # type: ignore[attr-defined]
        self.automatic_optimization = not several
        if several and (trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1):
            raise UserError(
                "trainer.gradient_clip_val and trainer.accumulate_grad_batches need "
                "--data.init_args.steps_per_execution=1"
            )

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of one step."""
        logits = self.network(images)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def training_step(self, batch: ImageBatch) -> Tensor | None:
        """Return the loss; or take the batch's steps, each as the trainer would."""
        if self.automatic_optimization:
            loss = self._loss(batch.images, batch.labels)
            self.add_losses({"loss": self.check_loss(loss, batch)}, len(batch.labels))
            return loss
        first_step = self.global_step
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        backward, step = self.manual_backward, optimizer.step  # type: ignore[union-attr]
        if self._needs_no_trainer():
            backward, step = Tensor.backward, self._step_uncalled
        losses = []
        for images, labels in batch.steps():
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = self._loss(images, labels)
            losses.append(loss.detach())
            backward(loss)
            step()
            if schedule is not None:
                schedule.step()  # type: ignore[union-attr]
            if self.trainer.global_step == self.trainer.max_steps:
                break
        self._add_losses_of_steps(losses, batch, first_step)
        # What is logged is logged at this count, which the trainer raises by one for each batch.
        epoch_loop = self.trainer.fit_loop.epoch_loop
        epoch_loop._batches_that_stepped = self.trainer.global_step - 1  # noqa: SLF001
        return None

    def _add_losses_of_steps(
        self, losses: list[Tensor], batch: ImageBatch, first_step: int
    ) -> None:
        # All together, so that a GPU need not be waited for in each step. Of an execution with a
        # loss that is not finite nothing is saved.
        values = torch.stack(losses).tolist()
        broken = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        at = broken or 0
        self.check_finite(broken is None, first_step + at, values[at], batch.step(at))
        sizes = batch.sizes[: len(values)]
        total = sum(value * size for value, size in zip(values, sizes, strict=True))
        self.add_losses({"loss": total / sum(sizes)}, sum(sizes))

    def _needs_no_trainer(self) -> bool:
        """Return whether the trainer's backward and step are torch's own and hooks.

        The hooks, which nothing here uses, cost a fifth of a small network's step.
        """
        alone = isinstance(self.trainer.strategy, SingleDeviceStrategy)
        return alone and getattr(self.trainer.precision_plugin, "scaler", None) is None

    def _step_uncalled(self) -> None:
        """Take the optimizer's step and count it, without the trainer's hooks."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        self.optimizers(use_pl_optimizer=False).step()  # type: ignore[union-attr]
        progress.increment_completed()
