"""Classify images with an exported classifier.

Usage: ``python run.py IMAGE…``. Needs numpy, onnxruntime and pillow. Images are converted as the
training images were: cropped to the square at the centre and resized.
"""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

HERE = Path(__file__).parent
EIGHT_BITS, TWELVE_BITS, SIXTEEN_BITS = 255, 4_095, 65_535
MODEL = json.loads((HERE / "model.json").read_text(encoding="utf-8"))


def read(path: str) -> NDArray[np.uint8]:
    """Return the first image of a file, converted for the classifier.

    Raises:
        ValueError: if its pixels are not of 8 or 16 bits, or it is too small.
    """
    with Image.open(path) as file:
        image: Image.Image = ImageOps.exif_transpose(file)
        if 4 * min(image.size) < MODEL["size"]:
            raise ValueError(f"{image.size[0]}×{image.size[1]} pixels are too few")
        if image.mode.startswith("I"):
            pixels = np.asarray(image)
            if pixels.max() > SIXTEEN_BITS or pixels.min() < 0:
                raise ValueError("its pixels have more than 16 bits")
            if 0 < pixels.max() <= TWELVE_BITS:  # of 8, 12 or 16 bits?
                raise ValueError(
                    "its depth is unclear: save it with 8 bits, or with values up to 65,535"
                )
            image = Image.fromarray((pixels / SIXTEEN_BITS * EIGHT_BITS).round().astype(np.uint8))
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.mode in ("P", "PA", "LA", "RGBA"):  # palette indices are not brightness values
            image = image.convert("RGB")
        image = image.convert("L" if MODEL["channels"] == 1 else "RGB")
        if image.size != (MODEL["size"],) * 2:
            side = min(image.size)
            left, top = ((length - side) // 2 for length in image.size)
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((MODEL["size"],) * 2, Image.Resampling.BICUBIC)
        return np.asarray(image)


def main() -> None:
    """Classify the images of the command line; print CSV."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit("usage: python run.py IMAGE…")
    session = onnxruntime.InferenceSession(
        HERE / "classifier.onnx", providers=["CPUExecutionProvider"]
    )
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "prediction", *MODEL["classes"]])
    failed = 0
    for path in sys.argv[1:]:
        try:
            images = read(path)[None]
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            failed += 1
            print(f"skipped: {path} ({error})", file=sys.stderr)
            continue
        (probabilities,) = session.run(None, {"images": images})[0]
        best = MODEL["classes"][int(probabilities.argmax())]
        table.writerow([path, best, *(f"{p:.6f}" for p in probabilities)])
    sys.stdout.flush()
    sys.exit(f"error: {failed} file(s) could not be classified" if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the program that reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
