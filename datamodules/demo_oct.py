"""Generated images that look like retinal OCT scans, with the signs of each disease."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.octmnist import OCTMNISTDataModule
from engine import creation, whole_file
from errors import UserError

CORPUS_SEED = 0  # the seed of training does not change the images


class DemoOCTDataModule(OCTMNISTDataModule):
    """Generated images in OCTMNIST's layout, read exactly like OCTMNIST.

    Each image shows the bright and dark layers of a retina. It has a membrane and fluid below them
    (choroidal neovascularization), dark cysts inside (diabetic macular edema), bumps on the lowest
    layer (drusen), or none of these (normal).

    Args:
        file: .npz file; generated if it does not exist.
        images: number of training images; a tenth as many are for validation, 1,000 for test.
        kwargs: arguments of `OCTMNISTDataModule`.
    """

    def __init__(self, file: str = "data/demo_oct.npz", images: int = 4_000, **kwargs: Any) -> None:
        super().__init__(file=file, **kwargs)
        if images < 1:
            raise ValueError(f"images {images} is less than 1")
        self.images = images

    def prepare_data(self) -> None:
        """Generate the file if it does not exist.

        Raises:
            UserError: if it exists, and is damaged or has another number of images.
        """
        with creation(self.path) as is_missing:
            if is_missing:
                write_file(self.path, self.images, self.size)
        found = len(self.read_split("train")[1])
        if found != self.images:
            raise UserError(
                f"{self.path} has {found:,} training images instead of {self.images:,}: delete it, "
                "or name another file with --data.init_args.file"
            )


def write_file(path: Path, images: int, size: int) -> None:
    """Write images in MedMNIST's layout, all classes equally likely.

    The file depends on the arguments and numpy alone.

    Args:
        path: .npz file to write; appears only once it is complete.
        images: number of training images; a tenth as many are for validation, 1,000 for test.
        size: pixels per side.
    """
    random = np.random.default_rng(CORPUS_SEED)
    arrays: dict[str, Any] = {}
    test_labels = np.repeat(np.arange(4), 250)
    for split, labels in (
        ("train", random.integers(0, 4, images)),
        ("val", random.integers(0, 4, max(images // 10, 8))),
        ("test", test_labels),
    ):
        arrays[f"{split}_images"] = draw_retinas(labels, size, random)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def draw_retinas(
    labels: NDArray[np.int64], size: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw one image per label: (N, size, size) uint8."""
    count = len(labels)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return random.uniform(low, high, (count, 1, 1))

    # Coordinates in units of the image's side; y grows downwards.
    y, x = np.meshgrid(*(np.linspace(0, 1, size),) * 2, indexing="ij")
    tilt, curve, middle = uniform(-0.15, 0.15), uniform(-0.2, 0.2), uniform(0.25, 0.75)
    base = uniform(0.6, 0.75) + tilt * (x - 0.5) + curve * (x - 0.5) ** 2  # lowest layer
    thickness = uniform(0.28, 0.38)
    fovea = 0.4 * thickness * np.exp(-(((x - middle) / uniform(0.08, 0.14)) ** 2))

    def is_class(label: int) -> NDArray[np.float64]:
        return (labels == label).astype(float)[:, None, None]

    def blob(height: float, low: float, high: float) -> NDArray[np.float64]:
        """Return a spot with the value 1 in its centre, ``height`` thicknesses above the base."""
        place = middle + uniform(-0.2, 0.2)
        width, tall = uniform(low, high), uniform(low, high)
        centre = base - height * thickness
        return np.exp(-(((x - place) / width) ** 2) - ((y - centre) / (0.7 * tall)) ** 2)

    # Drusen: bumps that lift the lowest layer; neovascularization: one large lift with fluid below.
    bumps = sum(np.exp(-(((x - middle - uniform(-0.35, 0.35)) / 0.05) ** 2)) for _ in range(3))
    dome = np.exp(-(((x - middle) / uniform(0.14, 0.22)) ** 2))
    lift = is_class(2) * uniform(0.05, 0.09) * bumps + is_class(0) * uniform(0.12, 0.2) * dome
    floor = base - lift
    top = base - thickness + fovea - 0.5 * lift

    inside = 1 / (1 + np.exp(-(y - top) / 0.012)) / (1 + np.exp((y - floor) / 0.012))
    depth = (y - top) / np.maximum(floor - top, 0.05)
    layers = 0.5 + 0.2 * np.cos(2 * np.pi * (2.5 * depth + 0.1))
    bright_line = 0.55 * np.exp(-(((y - floor) / 0.03) ** 2))
    choroid = 0.35 * np.exp(-np.maximum(y - base, 0) / uniform(0.08, 0.16)) * (y > floor)
    picture = inside * layers + bright_line + choroid
    fluid = (y > floor + 0.03) * (y < base)
    picture = picture * (1 - is_class(0) * fluid * 0.75)
    cysts = np.clip(blob(0.45, 0.05, 0.1) + blob(0.6, 0.05, 0.1) + blob(0.5, 0.04, 0.08), 0, 1)
    picture = picture * (1 - is_class(1) * cysts * 0.9)
    picture = uniform(0.7, 1.1) * picture + uniform(0.02, 0.08)
    picture *= random.normal(1, 0.12, picture.shape)  # speckle multiplies
    picture += random.normal(0, 0.02, picture.shape)
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)
