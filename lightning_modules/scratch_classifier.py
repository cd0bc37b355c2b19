"""Training of the classifiers by plain linear algebra."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from datamodules.medmnist import ImageBatch
from lightning_modules.classifier import Classifier
from networks.scratch import ScratchNetwork


class ScratchClassifier(Classifier):
    """Hand a numpy network its examples in the data module's order; no autograd, CPU only.

    The network updates itself after every single example; a batch is only how many it is handed
    at once. Its parameters are in the checkpoint. With several processes each learns from its share
    of a batch, and behind it their parameters are averaged: iterative parameter mixing (McDonald,
    Hall and Mann 2010), which is another training than that of one process.

    Args:
        network: a classifier with hand-written updates.
        classes: number of classes; the data module's.
    """

    def __init__(self, network: ScratchNetwork, classes: int) -> None:
        super().__init__(classes)
        self.automatic_optimization = False
        self.network = network
        # Tensors over the arrays' own memory: what the network changes is what is saved.
        self.parameters_ = nn.ParameterDict(
            {
                # They get no gradients, but DistributedDataParallel wants some that could.
                name: nn.Parameter(torch.from_numpy(array))
                for name, array in network.parameters.items()
            }
        )

    @property
    def parameter_count(self) -> int:
        """Return the number of parameters that training changes, though not by gradients."""
        return sum(array.size for array in self.network.parameters.values())

    def configure_optimizers(self) -> Optimizer:
        """Return an optimizer that changes nothing: the trainer wants one."""
        return SGD(self.parameters_.values(), lr=0.0)

    def logits(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.network.scores(to_rows(images)))

    def training_step(self, batch: ImageBatch) -> None:
        """Update by one example after another."""
        # The trainer counts steps by this, and a step that is not completed is not saved.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        losses = self.network.update(to_rows(batch.images), batch.labels.numpy())
        if self.trainer.world_size > 1:
            for parameter in self.parameters_.values():
                mean = self.trainer.strategy.reduce(parameter.detach().clone(), reduce_op="mean")
                parameter.detach().copy_(mean)
        loss = torch.tensor(losses.mean())
        self.add_losses({"loss": self.check_loss(loss, batch)}, len(losses))
        progress.increment_completed()


def to_rows(images: Tensor) -> NDArray[np.float64]:
    """(batch, channels, height, width) → rows of float64, (batch, inputs)."""
    return images.flatten(1).double().numpy()
