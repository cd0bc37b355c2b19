"""The recognizer's network: from waveforms and the text so far to the next token."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from networks.audio_encoder import SpeechEncoder
from networks.log_mel_spectrogram import LogMelSpectrogram, SpecAugment
from networks.text_decoder import TextDecoder

TOGETHER = 8
"""Clips that a CPU encodes together in evaluation."""


class Prediction(NamedTuple):
    """What the network computes of a batch.

    Attributes:
        logits: (batch, length, vocabulary) of the token after each of the tokens.
        memory: encoded audio (batch, positions, hidden).
        memory_mask: (batch, positions), true on real positions.
    """

    logits: Tensor
    memory: Tensor
    memory_mask: Tensor


class SpeechToText(nn.Module):
    """Log-mel spectrogram, SpecAugment while training, audio encoder, text decoder.

    Args:
        encoder: maps spectrograms to encodings.
        decoder: attends to the encodings and predicts the text.
        features: maps waveforms to spectrograms.
        augment: augmentation of the spectrograms in training mode; none by default.
        ctc: whether there is a CTC head, a linear layer from the encodings to the decoder's tokens.

    Raises:
        ValueError: if the parts do not fit together.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        decoder: TextDecoder,
        features: LogMelSpectrogram,
        augment: SpecAugment | None = None,
        ctc: bool = False,
    ) -> None:
        super().__init__()
        if encoder.hidden_size != decoder.hidden_size:
            raise ValueError(
                f"the encoder's hidden_size {encoder.hidden_size} and the decoder's "
                f"{decoder.hidden_size} differ: the decoder attends to the encoder"
            )
        if encoder.bands != features.bands:
            raise ValueError(
                f"the encoder expects {encoder.bands} bands, the spectrogram has {features.bands}"
            )
        self.features = features
        self.augment = augment
        self.encoder = encoder
        self.decoder = decoder
        self.ctc_head = nn.Linear(encoder.hidden_size, decoder.vocabulary_size) if ctc else None

    def token_weights(self) -> list[str]:
        """Return the names of the weights with one row per token of the vocabulary."""
        names = ["decoder.embedding.weight", "decoder.output.weight", "decoder.output.bias"]
        return names + (["ctc_head.weight", "ctc_head.bias"] if self.ctc_head is not None else [])

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips (batch, samples) with (batch,) lengths in samples.

        In evaluation on a CPU, clips of similar length are encoded together, without the padding
        of the whole batch: an encoding does not depend on it.

        Returns:
            Encodings (batch, positions, hidden) and a mask (batch, positions), true on real ones.
        """
        is_eager = waveforms.device.type == "cpu" and not torch.compiler.is_exporting()
        if self.training or not is_eager or len(waveforms) <= TOGETHER:
            return self._encode(waveforms, lengths)
        groups = lengths.argsort(descending=True).split(TOGETHER)
        parts = [self._encode(waveforms[g, : lengths[g[0]]], lengths[g]) for g in groups]
        longest, _ = parts[0]
        memory = longest.new_zeros(len(waveforms), *longest.shape[1:])
        mask = torch.zeros(memory.shape[:2], dtype=torch.bool)
        for group, (encodings, real) in zip(groups, parts, strict=True):
            memory[group, : encodings.shape[1]] = encodings
            mask[group, : real.shape[1]] = real
        return memory, mask

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        spectrograms, frames = self.features(waveforms, lengths)  # (batch, bands, frames)
        if self.augment is not None:
            spectrograms = self.augment(spectrograms, frames)
        return self.encoder(spectrograms, frames)

    def forward(self, waveforms: Tensor, lengths: Tensor, tokens: Tensor) -> Prediction:
        """Encode clips as `encode` does, and predict the token after each of the tokens.

        Args:
            waveforms: (batch, samples).
            lengths: (batch,) lengths in samples.
            tokens: (batch, length), each text after its start token.
        """
        memory, memory_mask = self.encode(waveforms, lengths)
        return Prediction(self.decoder(tokens, memory, memory_mask), memory, memory_mask)

    def ctc_log_probabilities(self, memory: Tensor) -> Tensor:
        """Return the CTC head's log-probabilities of encodings, in float32.

        Args:
            memory: encodings (batch, positions, hidden).

        Returns:
            (batch, positions, vocabulary); the padding token stands for the blank.

        Raises:
            ValueError: if there is no CTC head.
        """
        if self.ctc_head is None:
            raise ValueError("the network has no CTC head: set network.init_args.ctc=true")
        return self.ctc_head(memory).float().log_softmax(-1)
