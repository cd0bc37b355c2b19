"""Class probabilities and saliency maps of image files."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from commands.inputs.image_file import IMAGE_SUFFIXES, read_images
from commands.outputs import as_user_error
from datamodules.image_dataset import ImageBatch
from datamodules.medmnist import MedMNISTDataModule
from errors import UserError, extra
from lightning_modules import ImageClassifier
from lightning_modules.classifier import Classifier

BATCH = 512
PICTURE_PIXELS = 224
STEPS = 32
"""Number of steps of the integral; more than that does not change the picture."""


class ImagePredictor:
    """Classify image files.

    Args:
        model: trained classifier.
        data: its data module, which knows how images are prepared.
        messages: console for notes on conversions.

    Attributes:
        pictures: whether a record holds pictures of the image and of its saliency.
    """

    suffixes: Sequence[str] = IMAGE_SUFFIXES
    formats: Sequence[str] = ("csv", "jsonl", "html")

    def __init__(self, model: Classifier, data: MedMNISTDataModule, messages: Console) -> None:
        self.model = model
        self.data = data
        self.messages = messages
        self.pictures = False
        self._said: set[str] = set()

    def predict(
        self, files: Sequence[Path], progress: Progress
    ) -> Iterator[tuple[Path, list[dict[str, Any]] | UserError]]:
        """Yield each file, in order, with a record for each image or the reason why there is none.

        A record is a dictionary with ``file``, ``index`` (of the image in its file),
        ``prediction`` and the probability of each class by its name; with pictures also ``image``
        and ``saliency``, PNG files in base64.
        """
        for path in progress.track(files, description="classifying"):
            try:
                pixels, note = read_images(path, self.data.size, self.data.channels)
            except (UserError, OSError) as error:
                yield path, as_user_error(error, path)
                continue
            if note and note not in self._said:
                self._said.add(note)
                self.messages.print(f"converted: {note}")
            images = np.split(pixels, range(BATCH, len(pixels), BATCH))
            found = [record for part in images for record in self.classify(part)]
            named = [{"file": str(path), "index": i} | record for i, record in enumerate(found)]
            yield path, named

    def classify(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Return a record of each image of `read_images`, without ``file`` and ``index``."""
        images = torch.from_numpy(pixels)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        count = len(images)
        batch = ImageBatch(torch.arange(count), images, torch.zeros(count).long(), (count,))
        prepared = self.data.on_after_batch_transfer(batch, 0)
        prepared = prepared._replace(images=prepared.images.to(self.model.device))
        with torch.inference_mode():
            probabilities = self.model.predict_step(prepared).cpu()
        best = probabilities.argmax(1)
        names = self.model.class_names
        records: list[dict[str, Any]] = [
            {"prediction": names[chosen]}
            | {name: round(p, 6) for name, p in zip(names, row, strict=True)}
            for chosen, row in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]
        if self.pictures:
            maps = self._explain(prepared.images, best)
            for record, image, saliency in zip(records, pixels, maps, strict=True):
                record["image"] = encode(image)
                record["saliency"] = None if saliency is None else encode(saliency)
        return records

    def _explain(self, images: Tensor, classes: Tensor) -> list[NDArray[np.uint8] | None]:
        """Return a heat map of each image, or None if the classifier has no gradients.

        It shows the magnitude of the integrated gradients of the class's logit (Sundararajan et al.
        2017) from a black image.
        """
        if not isinstance(self.model, ImageClassifier):
            return [None] * len(images)
        with extra("report", "a saliency map"):
            from captum.attr import IntegratedGradients
        method = IntegratedGradients(self.model.logits)
        attributed = method.attribute(
            images, target=classes.to(images.device), n_steps=STEPS, internal_batch_size=BATCH
        )
        heat = attributed.abs().sum(1).cpu()  # (batch, height, width)
        heat = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
        colours = colormaps["inferno"](heat.detach().numpy())[..., :3]
        return [*(255 * colours).astype(np.uint8)]


def encode(pixels: NDArray[np.uint8]) -> str:
    """Return an enlarged image as a PNG file in base64."""
    picture = io.BytesIO()
    image = Image.fromarray(pixels)
    image.resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.NEAREST).save(picture, "PNG")
    return base64.b64encode(picture.getvalue()).decode()
