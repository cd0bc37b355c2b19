"""Training of classifiers from scratch, with plain linear algebra."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from datamodules.image_dataset import ImageBatch
from errors import UserError
from lightning_modules.classifier import Classifier
from networks.scratch import ScratchNetwork


class ScratchClassifier(Classifier):
    """Train a numpy network without autograd, on the CPU, in the data module's order of examples.

    The network updates itself after every single example; a batch only sets how many examples it
    receives per call. Its parameters are in the checkpoint. With several processes, each learns
    from its share of a batch, then their parameters are averaged: iterative parameter mixing
    (McDonald, Hall and Mann 2010), whose result differs from that of one process.

    Args:
        network: classifier with hand-written updates.
        class_names: names of the classes, filled from the data module.
    """

    def __init__(self, network: ScratchNetwork, class_names: list[str]) -> None:
        super().__init__(class_names)
        self.network = network
        # Tensors share the arrays' memory, so the checkpoint holds the network's current values.
        self.parameters_ = nn.ParameterDict(
            {
                # They get no gradients, but DistributedDataParallel needs parameters that could.
                name: nn.Parameter(torch.from_numpy(array))
                for name, array in network.parameters.items()
            }
        )

    def configure_optimizers(self) -> Optimizer:
        """Return an optimizer that changes nothing: the trainer needs one."""
        return SGD(self.parameters_.values(), lr=0.0)

    def logits(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.network.scores(to_rows(images))).to(images.device)

    def setup(self, stage: str) -> None:
        """Take the steps in this class, not in the trainer.

        Raises:
            UserError: if it is to be trained on another device than the CPU, or with settings of
                steps that are not its own.
        """
        name, trainer = type(self).__name__, self.trainer
        if stage == "fit" and trainer.strategy.root_device.type != "cpu":
            raise UserError(f"{name} is trained on the CPU: give --trainer.accelerator cpu")
        has_optimizer = "configure_optimizers" in vars(self)  # set by the command line
        has_other_steps = trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1
        if stage == "fit" and (has_optimizer or has_other_steps):
            raise UserError(
                f"{name} takes its own steps, without optimizer, lr_scheduler, gradient_clip_val "
                "or accumulate_grad_batches: set model.init_args.network.init_args.learning_rate"
            )
        super().setup(stage)
        self.automatic_optimization = False

    def training_step(self, batch: ImageBatch) -> None:
        """Update the parameters, one example after another."""
        self.count_step_started()
        losses = self.network.update(to_rows(batch.images), batch.labels.numpy())
        if self.trainer.world_size > 1:
            for parameter in self.parameters_.values():
                mean = self.trainer.strategy.reduce(parameter.detach().clone(), reduce_op="mean")
                parameter.detach().copy_(mean)
        loss = float(losses.mean())
        self.check_finite(loss, batch, self.global_step)
        self.add_losses({"loss": loss}, len(losses))
        self.count_step_completed()


def to_rows(images: Tensor) -> NDArray[np.float64]:
    """(batch, channels, height, width) → rows of float64, (batch, inputs)."""
    return images.flatten(1).cpu().double().numpy()
