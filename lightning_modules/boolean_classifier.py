"""Boolean functions: training a perceptron, and proving what a network computes."""

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, MinMetric

from datamodules.boolean import BooleanBatch
from engine import TrainingModule
from errors import UserError
from networks.boolean import BooleanPerceptron, IntervalMLP, interval_labels, sign
from networks.separability import Separation, separate, signs

PROVABLE = 12
"""Maximum dimension for which training first solves the linear program, in a second or two."""


class BooleanClassifier(TrainingModule):
    """Learn or check f(x) = +1 iff A ≤ Σ xᵢ ≤ B on {−1, +1}ᴰ, with sign(0) = +1.

    Logged for training: ``loss`` (hinge). Logged for validation: ``accuracy``. Logged for test:
    ``accuracy``; ``perturbed_accuracy``, the accuracy on perturbed copies; ``margin``, the smallest
    distance of a thresholded pre-activation from 0 on the unperturbed inputs.

    Args:
        network: network from inputs (batch, D) to (batch, 1), with the method ``preactivations``.
        dimension: D, filled from the data module.
        low: A, filled from the data module.
        high: B, filled from the data module.
    """

    batch_type = BooleanBatch

    def __init__(
        self, network: BooleanPerceptron | IntervalMLP, dimension: int, low: int, high: int
    ) -> None:
        super().__init__()
        self.network = network
        self.dimension = dimension
        self.low = low
        self.high = high
        self.val_accuracy = MeanMetric()
        self.test_accuracy = MeanMetric()
        self.test_perturbed_accuracy = MeanMetric()
        self.test_margin = MinMetric()

    def setup(self, stage: str) -> None:
        """Check that there is something to train.

        Raises:
            UserError: if the network has no trainable parameters.
        """
        super().setup(stage)
        if stage == "fit" and not any(p.requires_grad for p in self.parameters()):
            raise UserError(
                f"{type(self.network).__name__} is constructed and has nothing to train: test it"
            )

    def configure_optimizers(self) -> None:
        """Refuse: the configuration's ``optimizer`` replaces this method."""
        raise UserError("training needs an optimizer, as in configs/boolean_perceptron.yaml")

    def on_fit_start(self) -> None:
        """Log whether accuracy 1 can be reached, and why."""
        super().on_fit_start()
        name = f"f(x) = +1 iff the sum of {self.dimension} signs is in [{self.low}, {self.high}]"
        if self.dimension > PROVABLE:
            rank_zero_info(f"{name}. Not checked: whether one perceptron can compute it.")
            return
        points = signs(self.dimension)
        labels = interval_labels(torch.from_numpy(points), self.low, self.high)
        found = separate(points, labels.numpy())
        if isinstance(found, Separation):
            rank_zero_info(f"{name}. One perceptron computes it: {found}.")
        else:
            rank_zero_info(
                f"{name}. No perceptron computes it, because inputs with f = +1 and inputs with "
                f"f = −1 have the common mean {found}: training will not reach accuracy 1."
            )

    def training_losses(self, batch: BooleanBatch) -> tuple[dict[str, Tensor], int]:
        """Return the hinge loss."""
        x, y, _ = batch
        return {"loss": F.relu(1 - y * self.network(x)[:, 0]).mean()}, len(y)

    def validation_step(self, batch: BooleanBatch) -> None:
        """Score a batch."""
        x, y, _ = batch
        self.val_accuracy.update((sign(self.network(x)[:, 0]) == y).float())
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: BooleanBatch) -> None:
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

    def predict_step(self, batch: BooleanBatch) -> Tensor:
        """Return the inputs and f(x) as the network computes it, (batch, D + 1)."""
        x, _, is_perturbed = batch
        values = sign(self.network(x))
        return torch.cat((x, values), dim=-1)[~is_perturbed]
