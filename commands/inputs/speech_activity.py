"""Voice activity detection with silero-vad (Silero Team 2024)."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from commands.inputs.audio_file import regroup
from errors import extra

DETECTOR_RATE = 16_000
WINDOW = 512
"""Number of samples that the detector judges at a time."""
SHORTEST_SILENCE = 0.25
"""Minimum length in seconds of a silence that ends a segment."""
MARGIN = 0.15
"""Seconds of silence kept on each side of a segment."""
MIN_LONGEST = 2.0
"""Minimum of the maximum length of a segment in seconds: shorter ones would cut words."""


class Span(NamedTuple):
    """A part of a recording.

    Attributes:
        start: start in seconds.
        end: end in seconds.
    """

    start: float
    end: float


def find_speech(blocks: Iterable[Tensor], longest: float) -> tuple[list[Span], float]:
    """Find the parts of a recording that hold speech.

    Args:
        blocks: waveform at `DETECTOR_RATE`, in parts (samples,) of any length.
        longest: maximum length of a part in seconds, at least `MIN_LONGEST`. Longer speech is cut
            at its longest pause.

    Returns:
        The parts, in order, and the length of the recording in seconds.

    Raises:
        UserError: if silero-vad is not installed.
    """
    detector = load_detector()
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    detector.reset_states()
    probabilities = []
    samples = 0
    with torch.inference_mode():
        for window in regroup(blocks, WINDOW):
            samples += len(window)
            padded = torch.nn.functional.pad(window, (0, WINDOW - len(window)))
            probabilities.append(detector(padded, DETECTOR_RATE).item())
    found = get_speech_timestamps_from_probs(
        probabilities,
        sampling_rate=DETECTOR_RATE,
        max_speech_duration_s=max(longest, MIN_LONGEST),
        min_silence_duration_ms=round(1000 * SHORTEST_SILENCE),
        speech_pad_ms=round(1000 * MARGIN),
        audio_length_samples=samples,
    )
    spans = [Span(part["start"] / DETECTOR_RATE, part["end"] / DETECTOR_RATE) for part in found]
    return spans, samples / DETECTOR_RATE


@cache
def load_detector() -> Any:
    """Return silero-vad's network.

    Raises:
        UserError: if it is not installed.
    """
    threads = torch.get_num_threads()
    with extra("media", "finding speech in recordings"):
        from silero_vad import load_silero_vad
    torch.set_num_threads(threads)  # importing silero-vad sets one thread for the whole process
    return load_silero_vad()


def cut(blocks: Iterable[Tensor], spans: Iterable[Span], rate: int) -> Iterator[Tensor]:
    """Yield the waveform of each span; holds no more than one span and one block in memory.

    Args:
        blocks: waveform in parts (samples,) of any length.
        spans: parts to cut out, in order of their starts.
        rate: sample rate of the waveform in Hz.
    """
    source = iter(blocks)
    held, position = torch.zeros(0), 0  # samples read and not passed yet, and where they begin
    for span in spans:
        start, end = round(span.start * rate), round(span.end * rate)
        while position + len(held) < end:
            block = next(source, None)
            if block is None:
                break
            passed = min(max(start - position, 0), len(held))
            held, position = torch.cat((held[passed:], block)), position + passed
        yield held[max(start - position, 0) : end - position].clone()  # lets go of the block
