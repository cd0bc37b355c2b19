"""The recognizer's network: from waveforms and the text so far to the next token."""

import torch
from torch import Tensor, nn

from networks.audio_encoder import AudioEncoder
from networks.log_mel_spectrogram import LogMelSpectrogram
from networks.text_decoder import TextDecoder


class SpeechToText(nn.Module):
    """Log-mel spectrogram, audio encoder, text decoder.

    Args:
        encoder: turns spectrograms into encodings.
        decoder: attends to the encodings.
        features: turns waveforms into spectrograms.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    def __init__(
        self, encoder: AudioEncoder, decoder: TextDecoder, features: LogMelSpectrogram
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
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips (batch, samples) of (batch,) lengths in samples.

        Returns:
            Encodings (batch, positions, hidden) and a mask (batch, positions), true on real ones.
        """
        return self.encoder(*self.features(waveforms, lengths))

    def forward(self, waveforms: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits (batch, length, vocabulary) of what follows each of the tokens."""
        return self.decoder(tokens, *self.encode(waveforms, lengths))


@torch.no_grad()
def greedy_decode(
    decoder: TextDecoder,
    memory: Tensor,
    memory_mask: Tensor,
    *,
    start: int,
    stop: int,
    pad: int,
    max_tokens: int | None = None,
) -> Tensor:
    """Take the likeliest token at each step until every text has ended.

    Args:
        decoder: in evaluation mode.
        memory: encoded audio (batch, positions, hidden).
        memory_mask: (batch, positions), true on the real ones.
        start: the token each text begins with.
        stop: the token that ends a text.
        pad: fills up a text that has ended.
        max_tokens: longest text; the decoder's own limit by default.

    Returns:
        (batch, length) tokens without the start; a text that did not end has no stop.
    """
    max_tokens = decoder.max_tokens if max_tokens is None else max_tokens
    cache = decoder.start(memory, memory_mask, max_tokens)
    tokens = torch.full(memory.shape[:1], start, device=memory.device)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    decoded = []
    for _ in range(max_tokens):
        tokens = decoder.step(tokens, cache).argmax(-1).masked_fill(ended, pad)
        decoded.append(tokens)
        ended |= tokens == stop
        if ended.all():
            break
    return torch.stack(decoded, dim=1)
