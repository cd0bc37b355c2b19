from typing import Any

import numpy as np
import pytest
import torch

from networks import LogMelSpectrogram, SpecAugment


def slaney_mel_filters(sample_rate: int, n_fft: int, bands: int) -> np.ndarray:
    """Return triangles of equal area, spaced linearly up to 1 kHz, then logarithmically.

    Shape (bins, bands).
    """

    def to_mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) * 27 / np.log(6.4)

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)

    corners = [to_hertz(mel) for mel in np.linspace(0, to_mel(sample_rate / 2), bands + 2)]
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    filters = np.zeros((len(bins), bands))
    for band in range(bands):
        low, middle, high = corners[band : band + 3]
        rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
        filters[:, band] = np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
    return filters


def log_mel(waveform: np.ndarray, sample_rate: int = 22_050) -> Any:
    """Compute a spectrogram (bands, frames) by its definition, frame by frame in float64."""
    padded = np.pad(waveform.astype(np.float64), 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)  # periodic Hann
    frames = [
        np.abs(np.fft.rfft(padded[start : start + 400] * window)) ** 2
        for start in range(0, len(waveform) + 1, 160)
    ]
    power = np.stack(frames) @ slaney_mel_filters(sample_rate, 400, 80)
    log = np.log10(np.maximum(power, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).T


def test_spectrograms_match_the_course_and_ignore_padding() -> None:
    random = np.random.default_rng(0)
    clips = [random.normal(0, scale, n) for scale, n in ((0.1, 5000), (1e-3, 3201), (0.5, 160))]
    batch = torch.zeros(3, 5000)
    for i, clip in enumerate(clips):
        batch[i, : len(clip)] = torch.from_numpy(clip)
    features, frames = LogMelSpectrogram()(batch, torch.tensor([len(clip) for clip in clips]))
    assert features.shape == (3, 80, 32)
    assert frames.tolist() == [32, 21, 2]
    for i, clip in enumerate(clips):
        expected = log_mel(clip)
        np.testing.assert_allclose(features[i, :, : frames[i]], expected, atol=2e-4)
        assert features[i, :, frames[i] :].abs().sum() == 0


@pytest.mark.parametrize("lengths", [[100, 60], [50, 1]])
def test_spec_augment_masks_within_its_limits_and_the_real_frames(lengths: list[int]) -> None:
    torch.manual_seed(0)
    augment = SpecAugment(frequency_mask=10, time_mask=15, max_time_fraction=0.25)
    seen_bands, seen_frames = set(), set()
    for _ in range(300):
        masked = augment(torch.ones(2, 20, 100), torch.tensor(lengths)) == 0
        for clip, length in zip(masked, lengths, strict=True):
            bands, frames = clip.all(1).sum().item(), clip.all(0)
            assert bands <= 10
            assert frames.sum() <= min(15, length // 4)
            assert not frames[length:].any()
            seen_bands.add(bands)
            seen_frames.add(int(frames.sum()))
    assert seen_bands == set(range(11))  # every width, 0 and the widest included
    assert seen_frames == set(range(min(15, lengths[0] // 4) + 1))


def test_spec_augment_is_the_identity_in_evaluation() -> None:
    features = torch.randn(2, 20, 100)
    assert SpecAugment().eval()(features, torch.tensor([100, 60])) is features
