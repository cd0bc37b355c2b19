"""Detection of speech on synthetic voices, and cutting on any spans."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from commands.inputs.speech_activity import DETECTOR_RATE, Span, cut, find_speech
from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak

pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a second sentence follows it",
    "and this is the last one of them",
)


def voice(text: str) -> torch.Tensor:
    with link_data() as data:
        samples = torch.from_numpy(speak(text, Voice(), data)).float() / 2**15
    sound = resample(samples, SAMPLE_RATE, DETECTOR_RATE)
    heard = (sound.abs() > 0.01).nonzero()
    return sound[heard.min() : heard.max()]


@pytest.mark.parametrize("silence", [0.4, 1.5])
def test_borders_of_speech_are_found(silence: float) -> None:
    gap = torch.zeros(int(silence * DETECTOR_RATE))
    parts, expected, position = [gap], [], silence
    for text in TEXTS:
        sound = voice(text)
        seconds = len(sound) / DETECTOR_RATE
        expected.append((position, position + seconds))
        parts += [sound, gap]
        position += seconds + silence
    whole = torch.cat(parts)
    found, seconds = find_speech(whole.split(7_000), longest=30)
    assert seconds == len(whole) / DETECTOR_RATE
    assert len(found) == len(expected)
    for span, (start, end) in zip(found, expected, strict=True):
        assert span.start == pytest.approx(start, abs=0.3)
        assert span.end == pytest.approx(end, abs=0.3)


def test_silence_noise_and_tones_are_not_speech() -> None:
    seconds = 20
    time = torch.arange(seconds * DETECTOR_RATE) / DETECTOR_RATE
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    chords = sum(torch.sin(2 * np.pi * f * time) for f in (220, 277, 330)) / 10
    for sound in (torch.zeros_like(time), 0.05 * noise, chords * (time % 1 < 0.8)):
        assert find_speech([sound], longest=10) == ([], seconds)


def test_long_speech_is_cut() -> None:
    sound = torch.cat([voice(text) for text in TEXTS])
    spans, _ = find_speech([sound], longest=2.5)
    assert len(spans) >= 3
    assert all(span.end - span.start <= 2.5 for span in spans)
    covered = sum(span.end - span.start for span in spans)
    assert covered == pytest.approx(len(sound) / DETECTOR_RATE, abs=0.5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), max_size=8),
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_spans_are_cut_from_any_blocks(gaps: list[tuple[int, int]], sizes: list[int]) -> None:
    sound = torch.arange(sum(sizes)).float()
    spans, position = [], 0
    for gap, length in gaps:
        start, end = position + gap, min(position + gap + length, len(sound))
        if start < end:
            spans.append(Span(start / 8, end / 8))
        position = end
    found = list(cut(sound.split(sizes), spans, rate=8))
    expected = [sound[round(span.start * 8) : round(span.end * 8)] for span in spans]
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]
