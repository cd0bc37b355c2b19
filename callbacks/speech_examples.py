"""Spectrograms, alignments and transcripts of a few clips in TensorBoard."""

from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.speech import SpeechBatch
from lightning_modules.speech_recognizer import SpeechRecognizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SpeechExamples(Callback):
    """Log the first few validation clips to TensorBoard after each validation.

    Each clip has its spectrogram, the cross-attention alignment of the predicted text with the
    audio, and the reference and predicted texts. The audio is logged once.

    Args:
        clips: number of clips.
    """

    def __init__(self, clips: int = 4) -> None:
        self.clips = clips
        self._batch: SpeechBatch | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the clips' figures and texts."""
        board = next((lg for lg in trainer.loggers if isinstance(lg, TensorBoardLogger)), None)
        if board is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SpeechRecognizer)
        writer, step, vocabulary = board.experiment, trainer.global_step, pl_module.vocabulary
        first = self._batch is None
        if self._batch is None:
            dataset = trainer.datamodule.datasets["val"]  # type: ignore[attr-defined]
            self._batch = dataset[range(min(self.clips, len(dataset)))]
        batch = pl_module.transfer_batch_to_device(self._batch, pl_module.device, 0)
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

        figure = Figure(figsize=(10, 7), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(1, 2))
        above.imshow(self.spectrogram.numpy(), origin="lower", aspect="auto", cmap="magma")
        above.set(ylabel="mel band", xlabel="frame")
        below.imshow(self.alignment.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
        below.set(ylabel="predicted text", xlabel="encoder position")
        below.set_yticks(range(len(self.text)), list(self.text.replace(" ", "␣")), fontsize=6)
        return figure


@torch.no_grad()
def inspect_batch(module: SpeechRecognizer, batch: SpeechBatch) -> list[View]:
    """Transcribe a batch and return a view of each clip; the module must be in evaluation mode."""
    network = module.network
    spectrograms, frames = network.features(batch.waveforms, batch.lengths)
    memory, memory_mask = network.encode(batch.waveforms, batch.lengths)
    texts = [text for _, text in module.transcribe(batch, memory, memory_mask)]
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
