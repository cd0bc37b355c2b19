"""Classify images with an exported classifier.

Usage: ``python run.py IMAGE…``. Needs numpy, onnxruntime and pillow. Images are converted as the
training images were: cropped to the square at the centre and resized.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
MODEL = json.loads((HERE / "model.json").read_text(encoding="utf-8"))


def read(path: str) -> NDArray[np.uint8]:
    """Return an image as the classifier takes it, uint8."""
    with Image.open(path) as file:
        image: Image.Image = file
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        if image.mode in ("P", "PA", "LA", "RGBA"):  # a palette's indices are no brightness
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
    if len(sys.argv) < 2:
        sys.exit("usage: python run.py IMAGE…")
    session = onnxruntime.InferenceSession(
        HERE / "classifier.onnx", providers=["CPUExecutionProvider"]
    )
    print(",".join(["file", "prediction", *MODEL["classes"]]))
    failed = 0
    for path in sys.argv[1:]:
        try:
            images = read(path)[None]
        except (OSError, ValueError) as error:
            failed += 1
            print(f"skipped: {path} ({error})", file=sys.stderr)
            continue
        (probabilities,) = session.run(None, {"images": images})[0]
        best = MODEL["classes"][int(probabilities.argmax())]
        print(",".join([path, best, *(f"{p:.6f}" for p in probabilities)]))
    sys.exit(f"error: {failed} file(s) could not be classified" if failed else 0)


if __name__ == "__main__":
    main()
