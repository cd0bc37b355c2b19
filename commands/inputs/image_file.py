"""Image files of any size and mode, converted to what a classifier was trained on."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.ExifTags import Base

from datamodules.npz import open_npz, read_array
from errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npz")
EIGHT_BITS, TWELVE_BITS, SIXTEEN_BITS = 255, 4_095, 65_535
MAX_ENLARGEMENT = 4
"""Maximum factor by which a small image is enlarged."""


def read_images(path: Path, size: int, channels: int) -> tuple[NDArray[np.uint8], str]:
    """Read the images of a file, one or several.

    As MedMNIST did with OCTMNIST's scans (Yang et al. 2023), an image is cropped to the square at
    its centre and resized by bicubic interpolation. Sixteen bits become eight.

    Args:
        path: PNG, JPEG, TIFF or BMP image; or an npz archive, whose array ``test_images`` or whose
            only array is read.
        size: pixels per side.
        channels: 1 for grey, 3 for colour.

    Returns:
        Images (N, size, size) or (N, size, size, 3), and what was converted; "" if nothing was.

    Raises:
        UserError: if the file is missing, damaged, no image, or has images that are too small.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    images: list[Image.Image] = []
    is_turned = False
    try:
        if path.suffix.lower() == ".npz":
            images = [Image.fromarray(pixels) for pixels in read_archive(path)]
        else:
            with Image.open(path) as file:
                # The further frames of other formats are thumbnails.
                frames = ImageSequence.Iterator(file) if file.format == "TIFF" else (file,)
                for frame in frames:
                    is_turned |= frame.getexif().get(Base.Orientation, 1) != 1
                    images.append(ImageOps.exif_transpose(frame))
        smallest = min(images, key=lambda image: min(image.size))
        if min(smallest.size) * MAX_ENLARGEMENT < size:
            width, height = smallest.size
            raise UserError(
                f"{path} has {width}×{height} pixels: too few for a classifier of {size}×{size}"
            )
        mode = "L" if channels == 1 else "RGB"
        deep = [np.asarray(image).max() for image in images if image.mode.startswith("I")]
        if deep and 0 < max(deep) <= TWELVE_BITS:  # of 8, 12 or 16 bits?
            raise ValueError(
                "its depth is unclear: save it with 8 bits, or with values up to 65,535"
            )
        found = [convert(image, size, mode) for image in images]
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image") from error
    # Pillow raises many types for damaged files.
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from error
    notes = ["turned as its EXIF data say"] if is_turned else []
    note = ", ".join(dict.fromkeys([*notes, *(note for _, note in found if note)]))
    return np.stack([np.asarray(image) for image, _ in found]), note


def read_archive(path: Path) -> NDArray[Any]:
    """Read the images of an npz archive, (N, height, width) or (N, height, width, 3) as uint8.

    Raises:
        UserError: if it is damaged, or it is not clear which array holds them.
    """
    with open_npz(path) as archive:
        files = (Path(name) for name in archive.namelist())
        names = [file.stem for file in files if file.suffix == ".npy"]
        chosen = names[0] if len(names) == 1 else "test_images"
        if names and chosen not in names:
            arrays = ", ".join(names)
            raise UserError(f"{path} has the arrays {arrays}: name one of them test_images")
        images = read_array(archive, chosen)
    is_grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not is_grey_or_colour or not images.size:
        raise UserError(
            f"{path}: {chosen} is {images.dtype} {images.shape}, not uint8 (N, height, width) or "
            "(N, height, width, 3)"
        )
    return images


def convert(image: Image.Image, size: int, mode: str) -> tuple[Image.Image, str]:
    """Convert an image to the classifier's size and mode; also return a note on what was changed.

    Raises:
        ValueError: if its pixels are floating-point numbers or have more than 16 bits.
    """
    notes = []
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save them with 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.max() > SIXTEEN_BITS or pixels.min() < 0:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((pixels / SIXTEEN_BITS * EIGHT_BITS).round().astype(np.uint8))
        notes.append("16 bits to 8")
    if image.mode in ("P", "PA", "LA", "RGBA"):  # palette indices are not brightness values
        image = image.convert("RGB")
    if image.mode != mode:
        notes.append(f"{image.mode} to {mode}")
        image = image.convert(mode)
    if image.size != (size, size):
        side = min(image.size)
        left, top_edge = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top_edge, left + side, top_edge + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        notes.append(f"other sizes to {size}×{size}")
    return image, ", ".join(notes)
