"""Image classifiers with automatic differentiation."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def get_number_trainable_params(model: nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class FeedForwardNetwork(nn.Sequential):
    """Linear layers with an activation and dropout behind each hidden one.

    The course's: 784 → 200 → 200 → 4, 198,004 parameters. Without hidden layers it is multinomial
    logistic regression, 3,140 parameters.

    Args:
        inputs: values of an image.
        hidden_size: units of each hidden layer.
        layers: number of hidden layers.
        classes: number of classes.
        activation: ``relu`` or ``tanh``.
        dropout: probability to drop a hidden unit.
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
        sizes = [inputs, *[hidden_size] * layers]
        for before, after in pairwise(sizes):
            self.extend([nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)])
        self.append(nn.Linear(sizes[-1], classes))


class ConvNet(nn.Module):
    """The course's convolutional network, with max-pooling or with strides instead.

    Both have 224,892 parameters at 28×28: two convolutions of 8 and 16 channels halve the size
    twice, to 6×6, and three linear layers follow.

    Args:
        max_pool: pool 2×2 behind each convolution of stride 1; otherwise convolve with stride 2.
        channels: of the images.
        classes: number of classes.
        dropout: behind the first linear layer.
    """

    def __init__(
        self, max_pool: bool = True, channels: int = 1, classes: int = 4, dropout: float = 0.7
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
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(576, 320),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(320, 120),
            nn.ReLU(),
            nn.Linear(120, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, 28, 28) → logits (batch, classes); their LogSoftmax is the course's."""
        return self.classifier(self.features(images))
