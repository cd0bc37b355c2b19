"""MedMNIST's 2-D data sets (Yang et al. 2023): small medical images, kept in memory."""

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from datamodules.download import check_digest, download
from datamodules.image_dataset import ImageBatch, ImageDataset
from datamodules.npz import open_npz, read_array
from datamodules.sampling import ShuffledBatchSampler
from datamodules.splits import SplitDataModule
from engine import creation
from errors import UserError

EVALUATION_BATCH = 512
"""Minimum number of images per batch without gradients: larger batches are faster."""


class MedMNISTDataModule(SplitDataModule[ImageDataset]):
    """A single-label MedMNIST set, grey or colour, kept in memory as uint8.

    Args:
        flag: MedMNIST's name of the set: ``octmnist``, ``bloodmnist``, ….
        size: pixels per side: 28, 64, 128 or 224.
        root: folder of the downloaded files.
        file: file of your own in the same layout, instead of the official one.
        class_names: names of the classes of ``file``; by default those of the official set.
        batch_size: maximum number of images per optimizer step and process.
        steps_per_execution: number of optimizer steps per training batch. The trainer's hooks cost
            more than a step of a small network; with this they run once per batch. The progress
            bar, logging and weight averaging count these batches.
        pixel_divisor: number that pixels are divided by; 255 maps them to [0, 1].
        augment: transformation of training batches, from float images (batch, channels, height,
            width) to the same shape, on the model's device.
        balanced: whether to draw training images so that all classes are equally frequent.
        max_images: maximum number of images per split, the first ones; None takes all.
        evaluate_on_train: whether to validate and test on the training images.
        seed: seed for shuffling; by default the run's.

    Attributes:
        class_names: names of the classes.
        channels: channels of an image, 1 or 3.
    """

    def __init__(
        self,
        flag: str = "octmnist",
        size: int = 28,
        root: str = "data/medmnist",
        file: str | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 64,
        steps_per_execution: int = 1,
        pixel_divisor: float = 255.0,
        augment: nn.Module | None = None,
        balanced: bool = False,
        max_images: int | None = None,
        evaluate_on_train: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sets = read_info()
        flat = [known for known in sets if not known.endswith("3d")]
        if flag not in flat:
            raise ValueError(f"flag {flag} is not a 2-D set of MedMNIST: {', '.join(flat)}")
        info = sets[flag]
        suffix = "" if size == 28 else f"_{size}"
        if f"url{suffix}" not in info:
            raise ValueError(f"size {size} of {flag} does not exist: choose 28, 64, 128 or 224")
        if info["task"] == "multi-label, binary-class":
            raise ValueError(f"flag {flag} has several labels per image: choose a single-label set")
        if class_names is not None and (
            file is None or len(class_names) < 2 or len({*class_names}) < len(class_names)
        ):
            raise ValueError("class_names needs two names or more, which differ, and a file")
        if not pixel_divisor > 0:
            raise ValueError(f"pixel_divisor {pixel_divisor} is not above 0")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        if steps_per_execution < 1:
            raise ValueError(f"steps_per_execution {steps_per_execution} is less than 1")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images {max_images} is less than 1")
        if seed is not None and seed < 0:
            raise ValueError(f"seed {seed} is negative")
        self.flag = flag
        self.size = size
        self.url: str = info[f"url{suffix}"]
        self.md5: str = info[f"MD5{suffix}"]
        self.class_names = class_names or [info["label"][str(i)] for i in range(len(info["label"]))]
        self.channels: int = info["n_channels"]
        self.licence: str = info["license"]
        self.path = Path(file) if file else Path(root) / f"{flag}{suffix}.npz"
        self.is_official = file is None
        self.batch_size = batch_size
        self.steps_per_execution = steps_per_execution
        self.pixel_divisor = pixel_divisor
        self.augment = augment
        self.balanced = balanced
        self.max_images = max_images
        self.evaluate_on_train = evaluate_on_train
        self.seed = seed

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def inputs(self) -> int:
        """Number of values of an image."""
        return self.channels * self.size**2

    # ------------------------------------------------------------------ getting the data

    def prepare_data(self) -> None:
        """Download the official file if it does not exist; runs in one process.

        Raises:
            UserError: if this fails; says what to do instead.
        """
        if not self.is_official and not self.path.exists():
            raise UserError(f"data.init_args.file {self.path} does not exist")
        try:
            with creation(self.path) as is_missing:
                if is_missing:
                    rank_zero_info(f"{self.path} does not exist: downloading it ({self.licence})")
                    download(self.url, self.path, f"md5:{self.md5}")
        except UserError as error:
            raise UserError(
                f"{error}. Put the file at {self.path} by hand, name a file of your own in its "
                "layout with --data.init_args.file, or add --config configs/demo/oct.yaml to "
                "train on generated images"
            ) from error

    # ------------------------------------------------------------------ checking

    def setup(self, stage: str) -> None:
        """Read and check what ``stage`` needs.

        Raises:
            UserError: if the file is damaged or not in MedMNIST's layout.
        """
        missing = self.missing_splits(stage)
        if not missing:
            return
        if self.is_official:
            check_digest(self.path, f"md5:{self.md5}")
        else:
            rank_zero_info(f"{self.path} is not checked against the official {self.flag}")
        for split in missing:
            source = "train" if self.evaluate_on_train else split
            images, labels = self.select(source, *self.read_split(source))
            self.datasets[split] = ImageDataset(images, labels)

    def read_split(self, split: str) -> tuple[Tensor, Tensor]:
        """Read images (N, channels, height, width) as uint8 and labels (N,) as int64.

        Raises:
            UserError: if an array is missing, or has the wrong shape, type or range.
        """
        with open_npz(self.path) as archive:
            images, labels = (
                read_array(archive, f"{split}_{part}") for part in ("images", "labels")
            )
        shape = (self.size, self.size) + ((3,) if self.channels == 3 else ())
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f"{self.path}: {split}_images is {images.dtype} {images.shape}, not uint8 "
                f"(N, {', '.join(map(str, shape))})"
            )
        if labels.shape not in ((len(images), 1), (len(images),)) or labels.dtype.kind not in "iu":
            raise UserError(
                f"{self.path}: {split}_labels is {labels.dtype} {labels.shape}, not integers "
                f"({len(images)}, 1)"
            )
        labels = labels.reshape(-1).astype(np.int64)
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise UserError(
                f"{self.path}: {split}_labels must be in 0 … {self.class_count - 1}, and not empty"
            )
        images = images[:, None] if self.channels == 1 else images.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)

    def select(self, split: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of a split that is used."""
        return images[: self.max_images], labels[: self.max_images]

    # ------------------------------------------------------------------ batching

    def make_sampler(self, split: str, *, shuffle: bool) -> ShuffledBatchSampler:
        dataset = self.datasets[split]
        return ShuffledBatchSampler(
            len(dataset),
            self.batch_size if shuffle else max(self.batch_size, EVALUATION_BATCH),
            shuffle=shuffle,
            weights=class_weights(dataset.labels) if shuffle and self.balanced else None,
            steps_per_execution=self.steps_per_execution if shuffle else 1,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Scale pixels and, in training, augment, on the model's device."""
        images = batch.images.float().div_(self.pixel_divisor)
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            images = self.augment(images)
        return batch._replace(images=images)


@cache
def read_info() -> dict[str, dict[str, Any]]:
    """Return what medmnist knows of each data set: download, classes, channels, licence.

    Only the package's table is read: importing the package imports scikit-learn and pandas, which
    takes longer than all else between the command and the first step.
    """
    package = find_spec("medmnist")
    assert package
    assert package.submodule_search_locations
    table = Path(package.submodule_search_locations[0]) / "info.py"
    return runpy.run_path(str(table))["INFO"]


def class_weights(labels: Tensor) -> Tensor:
    """Return for each label 1 / the size of its class, (N,)."""
    return (1 / torch.bincount(labels).float())[labels]
