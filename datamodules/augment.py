"""Augmentation of waveforms."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchaudio.functional import resample


class ClipAugment:
    """Change speed and add noise, with random numbers of the global generator.

    The training loader seeds that generator before each batch, so a resumed run changes the clips
    in the same way.

    Args:
        speeds: factors of the speed, one of which is drawn for each clip; pitch changes with it
            (Ko et al. 2015, "Audio augmentation for speech recognition").
        noise_probability: probability of adding white noise to a clip.
        noise_snr: range of the signal-to-noise ratio in dB.
        silence_probability: probability of replacing a clip with noise or silence and its
            transcript with an empty one, so that the recognizer learns to write nothing.

    Raises:
        ValueError: if a speed is not positive, or a probability is not in [0, 1].
    """

    def __init__(
        self,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        noise_probability: float = 0.0,
        noise_snr: tuple[float, float] = (10.0, 30.0),
        silence_probability: float = 0.0,
    ) -> None:
        if not speeds or min(speeds) <= 0:
            raise ValueError(f"speeds {speeds} are not positive factors")
        for probability in (noise_probability, silence_probability):
            if not 0 <= probability <= 1:
                raise ValueError(f"the probability {probability} is not in [0, 1]")
        self.speeds = speeds
        self.noise_probability = noise_probability
        self.noise_snr = noise_snr
        self.silence_probability = silence_probability

    def __call__(self, waveform: Tensor) -> tuple[Tensor, bool]:
        """Return the changed waveform, and whether its transcript still applies.

        Args:
            waveform: (samples,) in [-1, 1].
        """
        if torch.rand(()) < self.silence_probability:
            return self._draw_silence(len(waveform)), False
        speed = self.speeds[int(torch.randint(len(self.speeds), ()))]
        if speed != 1:
            # Resampled by 1 / speed and played at the same rate, the clip is faster.
            waveform = resample(waveform, round(100 * speed), 100)
        if torch.rand(()) < self.noise_probability:
            low, high = self.noise_snr
            ratio = 10 ** (-(low + (high - low) * torch.rand(())) / 20)
            level = waveform.square().mean().sqrt() * ratio
            waveform = (waveform + level * torch.randn(len(waveform))).clamp(-1, 1)
        return waveform, True

    def _draw_silence(self, samples: int) -> Tensor:
        """Return digital silence, or white or low-pass noise of any level."""
        kind = int(torch.randint(3, ()))
        if kind == 0:
            return torch.zeros(samples)
        noise = torch.randn(samples)
        if kind == 2:  # a moving average, whose width decides the colour
            width = int(torch.randint(2, 50, ()))
            noise = torch.nn.functional.avg_pool1d(noise[None], width, 1, width // 2)[0, :samples]
        level = 10 ** (-4 * torch.rand(()))
        return (noise * level / noise.std().clamp(min=1e-6) / 4).clamp(-1, 1)
