"""MedMNIST's 2-D data sets (Yang et al. 2023): small medical images, kept in memory."""

import math
import runpy
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import Dataset

from datamodules.download import check_digest, download
from datamodules.sampling import ShuffledBatchSampler
from datamodules.splits import SplitDataModule
from errors import UserError

EVALUATION_BATCH = 512
"""Minimum number of images per batch without gradients: larger batches are faster."""
MOST_COMPRESSED = 100
"""Maximum ratio of unpacked to packed size of an array above `SMALL`; scans reach 1.4."""
SMALL = 2**26
"""Unpacked size in bytes (64 MiB) up to which an array is always read."""
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""Function that reads an array's header, by header version."""


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


class MedMNISTDataModule(SplitDataModule[ImageDataset]):
    """A single-label MedMNIST set, grey or colour, kept in memory as uint8.

    Args:
        flag: MedMNIST's name of the set: ``octmnist``, ``bloodmnist``, ….
        size: pixels per side: 28, 64, 128 or 224.
        root: folder of the downloaded files.
        file: file of your own in the same layout, instead of the official one.
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
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        if steps_per_execution < 1:
            raise ValueError(f"steps_per_execution {steps_per_execution} is less than 1")
        self.flag = flag
        self.size = size
        self.url: str = info[f"url{suffix}"]
        self.md5: str = info[f"MD5{suffix}"]
        self.class_names = [info["label"][str(i)] for i in range(len(info["label"]))]
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
        if self.path.exists():
            return
        if not self.is_official:
            raise UserError(f"data.init_args.file {self.path} does not exist")
        rank_zero_info(f"{self.path} does not exist: downloading it ({self.licence})")
        try:
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
        try:
            with zipfile.ZipFile(self.path) as archive:
                images, labels = (
                    read_array(archive, f"{split}_{part}") for part in ("images", "labels")
                )
        except KeyError as error:
            raise UserError(f"{self.path} has no array {split}_images or {split}_labels") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path} is damaged or no .npz file ({error})") from error
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


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array of an .npz file, after checking its size against its header.

    Raises:
        KeyError: if it does not exist.
        ValueError: if it holds Python objects, is damaged, or unpacks to far more than any images.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > max(SMALL, MOST_COMPRESSED * member.compress_size):
        raise ValueError(
            f"{name} unpacks {member.compress_size:,} bytes to {member.file_size:,}: not an array "
            "of images"
        )
    with archive.open(member) as file:
        # Check the header before allocating memory.
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} has a header of version {version}")
        shape, _, dtype = HEADERS[version](file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{name} says it is {dtype} {shape}, but has {member.file_size} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
