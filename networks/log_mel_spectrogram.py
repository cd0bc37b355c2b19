"""Normalized log-mel spectrograms of waveforms, and SpecAugment."""

from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

CLIPS = 4
"""Clips that a CPU computes at a time: their spectra stay in its caches."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (batch, size), true on the real positions, of (batch,) lengths."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class PowerMelSpectrogram(MelSpectrogram):  # type: ignore[misc] # torchaudio is not typed
    """torchaudio's mel spectrogram of powers, without the square roots that it squares again.

    They would take a third of the time on a CPU. Arguments as `MelSpectrogram`'s, but ``power``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, power=None)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return mel powers (…, bands, frames) of waveforms (…, samples)."""
        spectrum = self.spectrogram(waveform)
        return self.mel_scale(spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag))


class LogMelSpectrogram(nn.Module):
    """Log-mel spectrogram with a dynamic range of 80 dB, normalized clip by clip.

    The mel power is clamped at 1e-10, its log10 x at 8 below the clip's maximum; the result is
    (x + 4) / 4. This is the course's normalization, and Whisper's (Radford et al. 2022). Frames and
    maximum are computed from the real samples, with zeros before and after them, so that a clip's
    spectrogram does not depend on the padding of its batch.

    Args:
        sample_rate: sample rate of the waveforms, in Hz.
        n_fft: window length, in samples.
        hop_length: distance between frames, in samples.
        bands: number of mel bands (Slaney's scale and norm).
    """

    def __init__(
        self, sample_rate: int = 22_050, n_fft: int = 400, hop_length: int = 160, bands: int = 80
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.bands = bands
        self.mel: nn.Module = PowerMelSpectrogram(
            sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            n_mels=bands,
            pad_mode="constant",
            norm="slaney",
            mel_scale="slaney",
        )

    def frames(self, samples: Tensor) -> Tensor:
        """Return the number of frames of clips with the given number of samples.

        Frames are centred on samples 0, ``hop_length``, 2 ``hop_length``, ….
        """
        return samples // self.hop_length + 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the spectrograms of a batch.

        Args:
            waveforms: (batch, samples) in [-1, 1], zero after each clip's end.
            lengths: (batch,) real samples of each clip.

        Returns:
            Spectrograms (batch, bands, frames), zero after each clip's end, and their lengths
            (batch,) in frames.
        """
        frames = self.frames(lengths)
        if waveforms.device.type != "cpu" or torch.compiler.is_exporting():
            return self._compute(waveforms, frames), frames
        parts = zip(waveforms.split(CLIPS), frames.split(CLIPS), strict=True)
        return torch.cat([self._compute(*part) for part in parts]), frames

    def _compute(self, waveforms: Tensor, frames: Tensor) -> Tensor:
        # The range of the powers is too large for half precision.
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self.mel(waveforms.float())  # (batch, bands, frames)
        padding = ~length_mask(frames, power.shape[-1])[:, None, :]
        log = power.clamp_(min=1e-10).log10_()
        peak = log.masked_fill(padding, -torch.inf).amax((1, 2), keepdim=True)
        return torch.maximum(log, peak - 8.0).add_(4.0).div_(4.0).masked_fill_(padding, 0.0)


class SpecAugment(nn.Module):
    """Zero random ranges of bands and of frames in training mode (Park et al. 2019, section 2).

    Args:
        frequency_mask: maximum number of bands per mask.
        time_mask: maximum number of frames per mask.
        frequency_masks: number of masks over bands.
        time_masks: number of masks over time.
        max_time_fraction: maximum fraction of a clip's real frames per mask.
    """

    def __init__(
        self,
        frequency_mask: int = 27,
        time_mask: int = 80,
        frequency_masks: int = 1,
        time_masks: int = 1,
        max_time_fraction: float = 0.2,
    ) -> None:
        super().__init__()
        self.frequency_mask = frequency_mask
        self.time_mask = time_mask
        self.frequency_masks = frequency_masks
        self.time_masks = time_masks
        self.max_time_fraction = max_time_fraction

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Mask a batch; in evaluation mode, return it unchanged.

        Args:
            features: spectrograms (batch, bands, frames).
            lengths: (batch,) real frames of each clip.

        Returns:
            Spectrograms (batch, bands, frames).
        """
        if not self.training:
            return features
        _, bands, frames = features.shape
        all_bands = torch.full_like(lengths, bands)
        hidden = torch.zeros_like(features, dtype=torch.bool)
        for _ in range(self.frequency_masks):
            widest = all_bands.clamp(max=self.frequency_mask)
            hidden |= _random_span(all_bands, widest, bands)[:, :, None]
        for _ in range(self.time_masks):
            widest = (lengths * self.max_time_fraction).long().clamp(max=self.time_mask)
            hidden |= _random_span(lengths, widest, frames)[:, None, :]
        return features.masked_fill(hidden, 0.0)


def _random_span(lengths: Tensor, widest: Tensor, size: int) -> Tensor:
    """Draw a span of 0 … ``widest`` positions within each of the ``lengths``.

    Returns:
        (batch, size) booleans, true within the spans.
    """
    width = _random_integers(widest)
    start = _random_integers(lengths - width)
    position = torch.arange(size, device=lengths.device)
    return (position >= start[:, None]) & (position < (start + width)[:, None])


def _random_integers(highest: Tensor) -> Tensor:
    """Draw an integer from 0 to ``highest``, both included, for each element."""
    uniform = torch.rand(highest.shape, device=highest.device)
    return (uniform * (highest + 1)).long().clamp(max=highest)
