"""Image classifiers trained by automatic differentiation."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def get_number_trainable_params(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class FeedForwardNetwork(nn.Sequential):
    """Linear layers, each hidden one followed by an activation and dropout.

    The course's network is 784 → 200 → 200 → 4, 198,004 parameters. Without hidden layers, it is
    multinomial logistic regression, 3,140 parameters.

    Args:
        inputs: number of values per image.
        hidden_size: number of units per hidden layer.
        layers: number of hidden layers.
        classes: number of classes.
        activation: ``relu`` or ``tanh``.
        dropout: dropout probability of the hidden units.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden_size: int = 200,
        layers: int = 2,
        classes: int = 4,
        activation: Literal["relu", "tanh"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(nn.Flatten())
        if layers < 0 or hidden_size < 1:
            raise ValueError(f"layers {layers} is negative, or hidden_size {hidden_size} below 1")
        sizes = [inputs, *[hidden_size] * layers]
        for before, after in pairwise(sizes):
            self.extend([nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)])
        self.append(nn.Linear(sizes[-1], classes))


class ConvNet(nn.Module):
    """The course's convolutional network, with max-pooling or strides.

    Both variants have 224,892 parameters for images of 28×28: two convolutions with 8 and 16
    channels reduce the size to 14×14 and 6×6; three linear layers follow.

    Args:
        max_pool: whether 2×2 max-pooling follows each convolution; otherwise their stride is 2.
        channels: number of image channels.
        classes: number of classes.
        dropout: dropout probability after the first linear layer.
        image_size: pixels per side of an image.
    """

    def __init__(
        self,
        max_pool: bool = True,
        channels: int = 1,
        classes: int = 4,
        dropout: float = 0.7,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        stride = 1 if max_pool else 2
        pool = nn.MaxPool2d(2) if max_pool else nn.Identity()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride, padding=1),  # (batch, 8, 28, 28) or (…, 14, 14)
            nn.ReLU(),
            pool,  # (batch, 8, 14, 14)
            nn.Conv2d(8, 16, 3, stride, padding=0),  # (batch, 16, 12, 12) or (…, 6, 6)
            nn.ReLU(),
            pool,  # (batch, 16, 6, 6)
        )
        with torch.no_grad():
            flat = self.features(torch.zeros(1, channels, image_size, image_size)).numel()
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, 320),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(320, 120),
            nn.ReLU(),
            nn.Linear(120, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: (batch, channels, image_size, image_size) → (batch, classes)."""
        return self.classifier(self.features(images))
