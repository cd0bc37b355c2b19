"""Images and labels in memory, and their batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ImageBatch(NamedTuple):
    """A batch of images for one optimizer step or several.

    Attributes:
        indices: (batch,) indices of the images in their data set.
        images: (batch, channels, height, width), uint8 as stored, or float32 once prepared.
        labels: (batch,) classes as int64.
        sizes: number of images of each optimizer step, in order.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    sizes: tuple[int, ...]

    def steps(self) -> Iterator["ImageBatch"]:
        """Yield the batch of each optimizer step."""
        parts = (self.indices, self.images, self.labels)
        for indices, images, labels in zip(*(x.split(self.sizes) for x in parts), strict=True):
            yield ImageBatch(indices, images, labels, (len(indices),))

    def describe(self) -> str:
        """Return the number of images, their size and their indices."""
        height, width = self.images.shape[2:]
        indices = ", ".join(map(str, self.indices.tolist()))
        return (
            f"a batch of {len(self.indices)} images of {height}×{width} pixels (indices {indices})"
        )


class ImageDataset(Dataset[ImageBatch]):
    """Images and labels in memory, indexed by a tuple of index tensors, one per optimizer step."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, steps: tuple[Tensor, ...]) -> ImageBatch:
        indices = torch.cat(steps)
        sizes = tuple(len(step) for step in steps)
        return ImageBatch(indices, self.images[indices], self.labels[indices], sizes)
