"""OCTMNIST: retinal OCT images in four classes (Kermany et al. 2018, CC BY 4.0)."""

from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.medmnist import MedMNISTDataModule
from errors import UserError

COURSE_TEST_IMAGES = (182, 55, 42, 250)
"""Number of images of each class in the course's test set, the first ones of the official set. They
have the natural class priors."""


class OCTMNISTDataModule(MedMNISTDataModule):
    """OCTMNIST with the official test set, or with the course's.

    Their scores are not comparable: guessing the most frequent class gives 0.25 and 0.473.

    Args:
        test_protocol: ``official`` for all test images (1,000, balanced), ``course`` for the first
            182, 55, 42 and 250 images of the classes.
        kwargs: further arguments of `MedMNISTDataModule`.
    """

    def __init__(
        self, test_protocol: Literal["official", "course"] = "official", **kwargs: Any
    ) -> None:
        super().__init__(flag="octmnist", **kwargs)
        self.test_protocol = test_protocol

    def select(self, split: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of a split that is used, in the file's order."""
        if split == "test" and self.test_protocol == "course":
            chosen = []
            for label, count in enumerate(COURSE_TEST_IMAGES):
                indices = (labels == label).nonzero().flatten()
                if len(indices) < count:
                    raise UserError(
                        f"{self.path} has {len(indices)} test images of class {label}, the "
                        f"course's protocol needs {count}: set "
                        "--data.init_args.test_protocol=official"
                    )
                chosen.append(indices[:count])
            indices = torch.cat(chosen).sort().values
            images, labels = images[indices], labels[indices]
        return super().select(split, images, labels)
