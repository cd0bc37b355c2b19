"""Augmentation of OCT scans that preserves the diagnosis."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ScanAugment(nn.Module):
    """Move, mirror, brighten images and add noise to them, at random and each one independently.

    A retina may be mirrored left to right (the other eye), a little tilted, shifted or scaled, and
    recorded with a different gain and noise. It is never upside down.

    Args:
        rotation: maximum angle, in degrees.
        shift: maximum shift, as a fraction of the image's side.
        scale: maximum relative change of size.
        contrast: maximum relative change of contrast.
        brightness: maximum change of brightness, for pixels in [0, 1].
        noise: maximum standard deviation of the Gaussian noise, for pixels in [0, 1].
    """

    def __init__(
        self,
        rotation: float = 10.0,
        shift: float = 0.1,
        scale: float = 0.1,
        contrast: float = 0.2,
        brightness: float = 0.1,
        noise: float = 0.03,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.shift = shift
        self.scale = scale
        self.contrast = contrast
        self.brightness = brightness
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        """Augment a batch of images, (batch, channels, height, width) floats."""
        count, device = len(images), images.device

        def draw(bound: float) -> Tensor:
            """Draw uniformly from [−bound, bound) for each image."""
            return bound * (2 * torch.rand(count, device=device) - 1)

        angle, size = draw(math.radians(self.rotation)), 1 + draw(self.scale)
        mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
        cosine, sine = size * angle.cos(), size * angle.sin()
        # Affine maps from the new image's coordinates to the old one's, in units of half a side.
        rows = (
            torch.stack((mirror * cosine, -sine, draw(2 * self.shift)), dim=1),
            torch.stack((mirror * sine, cosine, draw(2 * self.shift)), dim=1),
        )
        grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain = (1 + draw(self.contrast))[:, None, None, None]
        offset = draw(self.brightness)[:, None, None, None]
        deviation = draw(self.noise)[:, None, None, None]
        return moved * gain + offset + deviation * torch.randn_like(moved)
