"""Boolean functions: training a perceptron, and proving what a network computes."""

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, MinMetric

from datamodules.boolean import BooleanDataModule
from errors import UserError
from lightning_modules.separability import explain
from lightning_modules.training import TrainingModule
from networks.boolean import BooleanPerceptron, IntervalMLP, sign
from networks.separability import Certificate, separate

PROVABLE = 12
"""Largest dimension for which training begins with the linear program, a second or two."""

Batch = tuple[Tensor, Tensor, Tensor]


class BooleanClassifier(TrainingModule):
    """Learn or check f: {−1, +1}ᴰ → {−1, +1}, sign(0) being +1.

    Logged: ``train/loss`` (hinge), ``val/accuracy``; for test ``accuracy``, ``perturbed_accuracy``
    of the slightly moved copies and ``margin``, the smallest distance of a thresholded
    pre-activation from 0 on the inputs themselves.

    Args:
        network: inputs (batch, D) to (batch, 1), with the method ``preactivations``.
    """

    def __init__(self, network: BooleanPerceptron | IntervalMLP) -> None:
        super().__init__()
        self.network = network
        self.val_accuracy = MeanMetric()
        self.test_accuracy = MeanMetric()
        self.test_perturbed_accuracy = MeanMetric()
        self.test_margin = MinMetric()

    def setup(self, stage: str) -> None:
        """Check that there are data for it and something to train.

        Raises:
            UserError: if not.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, BooleanDataModule):
            raise UserError(f"BooleanClassifier needs Boolean data, not {type(data).__name__}")
        if stage == "fit" and not any(p.requires_grad for p in self.parameters()):
            raise UserError(
                f"{type(self.network).__name__} is constructed and has nothing to train: test it"
            )

    def configure_optimizers(self) -> None:
        """Refuse: the command line's ``optimizer`` takes this method's place."""
        raise UserError("training needs an optimizer, as in configs/boolean_perceptron.yaml")

    def on_fit_start(self) -> None:
        """Say what can be reached, and why."""
        data: BooleanDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        name = f"f(x) = +1 iff the sum of {data.dimension} signs is in [{data.low}, {data.high}]"
        if data.sample is not None or data.dimension > PROVABLE:
            rank_zero_info(f"{name}. Whether one perceptron can compute it was not decided.")
            return
        x, y, _ = data.datasets["train"].tensors
        found = separate(x.long().numpy(), y.long().numpy())
        rank_zero_info(f"{name}.\n{explain(found)}")
        if isinstance(found, Certificate):
            rank_zero_info("Training will not reach accuracy 1.")

    def training_step(self, batch: Batch) -> Tensor:
        """Return the hinge loss."""
        x, y, _ = batch
        loss = F.relu(1 - y * self.network(x)[:, 0]).mean()
        self.add_losses({"loss": self.check_loss(loss, batch)}, len(y))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Score a batch."""
        x, y, _ = batch
        self.val_accuracy.update((sign(self.network(x)[:, 0]) == y).float())
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch) -> None:
        """Score a batch."""
        x, y, is_perturbed = batch
        preactivations = self.network.preactivations(x)
        correct = (sign(preactivations[:, -1]) == y).float()
        self.test_accuracy.update(correct[~is_perturbed])
        self.test_perturbed_accuracy.update(correct[is_perturbed])
        self.test_margin.update(preactivations[~is_perturbed].abs())
        self.log("test/accuracy", self.test_accuracy)
        self.log("test/perturbed_accuracy", self.test_perturbed_accuracy)
        self.log("test/margin", self.test_margin)

    def predict_step(self, batch: Batch) -> Tensor:
        """Return the inputs and f(x) as the network computes it, (batch, D + 1)."""
        x, _, is_perturbed = batch
        values = sign(self.network(x))
        return torch.cat((x, values), dim=-1)[~is_perturbed]
