"""A small residual network for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3×3 convolutions with batch norm (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(before)
        self.convolution_1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(after)
        self.convolution_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else nn.Conv2d(before, after, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) → (batch, after, height / stride, width / stride)."""
        active = F.relu(self.norm_1(x))
        # A shortcut that changes the shape starts after the activation, as in the paper.
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        hidden = F.relu(self.norm_2(self.convolution_1(active)))
        return shortcut + self.convolution_2(hidden)


class ResidualNetwork(nn.Module):
    """A convolution, stages of residual blocks, global average pooling, a linear layer.

    Args:
        channels: number of image channels.
        classes: number of classes.
        widths: number of channels of each stage; each stage after the first halves height and
            width.
        blocks: number of residual blocks per stage.
        dropout: dropout probability before the linear layer.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 4,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or blocks < 1:
            raise ValueError(f"widths {widths} or blocks {blocks} are not all at least 1")
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        layers = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(before, width, stride))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(before, classes)
        # No channels_last, although 1.1 times as fast: on CPUs, with some widths (4, 8, 12), the
        # convolutions of PyTorch 2.11 then write out of bounds and the process crashes.

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: (batch, channels, height, width) → (batch, classes)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.output(self.dropout(features.mean((2, 3))))
