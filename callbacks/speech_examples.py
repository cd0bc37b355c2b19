"""Spectrograms, alignments and transcripts of a few clips in TensorBoard."""

from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.speech_dataset import SpeechBatch
from lightning_modules.speech_recognizer import SpeechRecognizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        """Keep the clips, on the model's device."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._batch = batch.head(self.clips)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the clips' figures and texts."""
        board = next((lg for lg in trainer.loggers if isinstance(lg, TensorBoardLogger)), None)
        batch, self._batch = self._batch, None
        if board is None or batch is None or trainer.sanity_checking:
            return
        assert isinstance(pl_module, SpeechRecognizer)
        writer, step, vocabulary = board.experiment, trainer.global_step, pl_module.vocabulary
        first, self._has_audio = not self._has_audio, True
        for i, view in enumerate(inspect_batch(pl_module, batch)):
            tag = f"example_{i}"
            if first:
                audio = batch.waveforms[i, : batch.lengths[i]]
                writer.add_audio(
                    tag, audio, step, sample_rate=pl_module.network.features.sample_rate
                )
            reference = vocabulary.decode(batch.tokens[i].tolist())
            writer.add_text(tag, f"reference: `{reference}`\n\npredicted: `{view.text}`", step)
            writer.add_figure(tag, view.figure(), step)


class View:
    """One clip and its prediction.

    Args:
        spectrogram: (bands, frames).
        alignment: (tokens, positions), rows sum to 1.
        text: predicted text, one character per row of the alignment; the last row predicts the
            stop token.
    """

    def __init__(self, spectrogram: Tensor, alignment: Tensor, text: str) -> None:
        self.spectrogram = spectrogram
        self.alignment = alignment
        self.text = text

    def figure(self) -> "Figure":
        """Draw the spectrogram above the alignment, over the same time."""
        from matplotlib.figure import Figure  # late: a slow import

        figure = Figure(figsize=(10, 7))  # no automatic layout: it draws everything twice
        above, below = figure.subplots(2, 1, height_ratios=(1, 2))
        figure.subplots_adjust(left=0.06, right=0.99, bottom=0.07, top=0.98)
        above.imshow(self.spectrogram.numpy(), origin="lower", aspect="auto", cmap="magma")
        above.set(ylabel="mel band", xlabel="frame")
        below.imshow(self.alignment.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
        below.set(xlabel="encoder position")
        below.set_ylabel("predicted text", labelpad=14)
        below.set_yticks([])
        for row, character in enumerate(self.text.replace(" ", "␣")):
            below.text(-1, row, character, ha="right", va="center", fontsize=6)
        return figure


@torch.no_grad()
def inspect_batch(
    module: SpeechRecognizer, batch: SpeechBatch, texts: list[str] | None = None
) -> list[View]:
    """Return a view of each clip of a batch; the module must be in evaluation mode.

    Args:
        module: recognizer.
        batch: clips.
        texts: predicted texts; by default the clips are transcribed.
    """
    network = module.network
    spectrograms, frames = network.features(batch.waveforms, batch.lengths)
    memory, memory_mask = network.encode(batch.waveforms, batch.lengths)
    if texts is None:
        texts = module.transcribe(memory, memory_mask, module.decoding)
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
