"""Augmentation of waveforms."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchaudio.functional import resample

from datamodules.clips import find_recordings, inspect_clip, read_clip
from errors import UserError


class ClipAugment:
    """Change speed and add noise, with random numbers of the global generator.

    The training loader seeds that generator before each batch, so a resumed run changes the clips
    in the same way.

    Args:
        speeds: factors of the speed, in hundredths, one of which is drawn for each clip; pitch
            changes with it (Ko et al. 2015, "Audio augmentation for speech recognition").
        noise_probability: probability of adding noise to a clip.
        noise_snr: range of the signal-to-noise ratio in dB.
        noise_paths: recordings of noise, or folders searched for them; if empty, noise is white.
        silence_probability: probability of replacing a clip with noise or silence and its
            transcript with an empty one, so that the recognizer learns to write nothing.

    Raises:
        ValueError: if a speed is not positive, or a probability is not in [0, 1].
        UserError: if a folder of ``noise_paths`` holds no recording.
    """

    def __init__(
        self,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        noise_probability: float = 0.0,
        noise_snr: tuple[float, float] = (10.0, 30.0),
        noise_paths: Sequence[str] = (),
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
        self.noises = find_recordings(noise_paths, "noise_paths")
        self.silence_probability = silence_probability

    def check(self, sample_rate: int) -> None:
        """Check the speeds and read the headers of all noises, before a training draws them.

        Raises:
            UserError: if a speed is not in hundredths, or a noise cannot be read.
        """
        if any(round(100 * speed) / 100 != speed for speed in self.speeds):
            raise UserError(f"augment: speeds {self.speeds} are not hundredths")
        for path in self.noises:
            inspect_clip(path.stem, path, sample_rate)

    def __call__(self, waveform: Tensor, sample_rate: int) -> tuple[Tensor, bool]:
        """Return the changed waveform, and whether its transcript still applies.

        Args:
            waveform: (samples,) in [-1, 1].
            sample_rate: its rate in Hz.

        Raises:
            UserError: if a recording of noise cannot be read.
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
            noise = self._draw_noise(len(waveform), sample_rate)
            waveform = (waveform + level * noise).clamp(-1, 1)
        return waveform, True

    def _draw_noise(self, samples: int, sample_rate: int) -> Tensor:
        """Return noise with a mean square of 1: white, or a random part of a recording."""
        if not self.noises:
            return torch.randn(samples)
        path = self.noises[int(torch.randint(len(self.noises), ()))]
        noise = read_clip(inspect_clip(path.stem, path, sample_rate), sample_rate)
        noise = noise.repeat(-(-samples // len(noise)))
        first = int(torch.randint(len(noise) - samples + 1, ()))
        noise = noise[first : first + samples]
        return noise / noise.square().mean().sqrt().clamp(min=1e-6)

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
