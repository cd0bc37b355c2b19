"""Spectrograms, alignments and transcripts of a few clips in TensorBoard."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps, get_data_path
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from datamodules.speech_dataset import SpeechBatch
from lightning_modules.speech_recognizer import SpeechRecognizer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WIDTH, MARGIN, CAPTION = 1000, 16, 18
BAND_HEIGHT, ROW_HEIGHT = 3, 9
"""Sizes in pixels: of both pictures, and of a mel band and a character."""


class SpeechExamples(Callback):
    """Log the few longest validation clips to TensorBoard after each validation.

    Each clip has its spectrogram, the cross-attention alignment of the predicted text with the
    audio, and the reference and predicted texts. The audio is logged once.

    Args:
        clips: number of clips.
    """

    def __init__(self, clips: int = 4) -> None:
        self.clips = clips
        self._batch: SpeechBatch | None = None
        self._encoded: tuple[Tensor, Tensor] | None = None
        self._texts: list[str] = []
        self._has_audio = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the clips and their encodings, on the model's device, and their transcripts."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._batch = batch.head(self.clips)
            memory, memory_mask = outputs["encoded"]
            self._encoded = memory[: self.clips].float(), memory_mask[: self.clips].clone()
            self._texts = outputs["transcripts"][: self.clips]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the clips' pictures and texts."""
        board = next((lg for lg in trainer.loggers if isinstance(lg, TensorBoardLogger)), None)
        batch, self._batch = self._batch, None
        encoded, self._encoded = self._encoded, None
        if board is None or batch is None or trainer.sanity_checking:
            return
        assert isinstance(pl_module, SpeechRecognizer)
        writer, step, vocabulary = board.experiment, trainer.global_step, pl_module.vocabulary
        first, self._has_audio = not self._has_audio, True
        for i, view in enumerate(inspect_batch(pl_module, batch, self._texts, encoded)):
            clip = f"example_{i}"  # TensorBoard shows only one kind of data for a tag
            if first:
                audio = batch.waveforms[i, : batch.lengths[i]]
                rate = pl_module.network.features.sample_rate
                writer.add_audio(f"{clip}/audio", audio, step, sample_rate=rate)
            reference = vocabulary.decode(batch.tokens[i].tolist())
            text = f"reference: `{reference}`\n\npredicted: `{view.text}`"
            writer.add_text(f"{clip}/text", text, step)
            add_picture(writer, f"{clip}/alignment", view.image(), step)


@dataclass(frozen=True)
class View:
    """One clip and its prediction.

    Attributes:
        spectrogram: (bands, frames).
        alignment: (tokens, positions), rows sum to 1.
        text: predicted text, one character per row of the alignment; the last row predicts the
            stop token.
    """

    spectrogram: Tensor
    alignment: Tensor
    text: str

    def image(self) -> Image.Image:
        """Draw the spectrogram above the alignment, over the same time.

        Pixels are coloured and pasted directly, a tenth of the time of a matplotlib figure: a run
        draws after every validation.
        """
        bands, (rows, positions) = self.spectrogram.flip(0), self.alignment.shape
        above = paint(bands, "magma", BAND_HEIGHT * len(bands))
        below = paint(self.alignment, "viridis", ROW_HEIGHT * rows)
        top = above.height + CAPTION
        image = Image.new("RGB", (MARGIN + WIDTH, top + below.height + CAPTION), "white")
        image.paste(above, (MARGIN, 0))
        image.paste(below, (MARGIN, top))
        canvas, font = ImageDraw.Draw(image), load_font()
        caption = f"spectrogram: {len(bands)} mel bands upwards, {bands.shape[1]} frames"
        canvas.text((MARGIN, above.height), caption, "black", font)
        caption = f"alignment: predicted text downwards, {positions} encoder positions"
        canvas.text((MARGIN, top + below.height), caption, "black", font)
        for row, character in enumerate(self.text.replace(" ", "␣")):
            middle = top + (row + 0.5) * ROW_HEIGHT
            canvas.text((MARGIN - 3, middle), character, "black", font, anchor="rm")
        return image


def add_picture(writer: "SummaryWriter", tag: str, picture: Image.Image, step: int) -> None:
    """Log a picture as JPEG; ``SummaryWriter.add_image`` writes PNG, in ten times the time.

    TensorBoard's checksums, in Python, take 0.1 s for each megabyte.

    The writer must have logged something before.
    """
    encoded = BytesIO()
    picture.save(encoded, "JPEG")
    image = Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    assert writer.file_writer is not None
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def paint(values: Tensor, colours: str, height: int) -> Image.Image:
    """Colour a matrix from its minimum to its maximum, in an image of the views' width."""
    low, high = values.aminmax()
    levels = (values - low) * (255 / (high - low).clamp(min=1e-12))
    image = Image.fromarray(levels.round().byte().numpy())
    image = image.resize((WIDTH, height), Image.Resampling.NEAREST)
    image.putpalette(load_palette(colours))
    return image.convert("RGB")


@cache
def load_palette(colours: str) -> bytes:
    """Return the 256 colours of one of matplotlib's maps, three bytes each."""
    pixels = colormaps[colours](range(256), bytes=True)
    return bytes(pixels[:, :3].tobytes())


@cache
def load_font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has the letters of many alphabets."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 10)


@torch.no_grad()
def inspect_batch(
    module: SpeechRecognizer,
    batch: SpeechBatch,
    texts: list[str],
    encoded: tuple[Tensor, Tensor] | None = None,
) -> list[View]:
    """Return a view of each clip of a batch; the module must be in evaluation mode.

    Args:
        module: recognizer.
        batch: clips.
        texts: predicted texts.
        encoded: encodings of the clips and their mask, if they are known.
    """
    network = module.network
    spectrograms, frames = network.features(batch.waveforms, batch.lengths)
    memory, memory_mask = encoded or network.encode(batch.waveforms, batch.lengths)
    views = []
    for i, text in enumerate(texts):
        read = module.vocabulary.encode(text)[:-1][: network.decoder.max_tokens]
        tokens = torch.tensor([read], device=memory.device)
        alignment = network.decoder.alignment(tokens, memory[i : i + 1], memory_mask[i : i + 1])
        views.append(
            View(
                spectrograms[i, :, : frames[i]].float().cpu(),
                alignment[0, :, : memory_mask[i].sum()].float().cpu(),
                text,
            )
        )
    return views
