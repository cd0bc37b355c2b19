"""Transcripts of recordings of any length."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.audio_file import MEDIA_SUFFIXES, SHORTEST, AudioFile, open_audio
from datamodules.clips import AUDIO_SUFFIXES
from datamodules.sampling import cut_by_length
from datamodules.speech_activity import DETECTOR_RATE, Span, cut, find_speech
from errors import UserError
from lightning_modules import SpeechRecognizer
from lightning_modules.words import Word

WINDOW_SECONDS = 120
"""Seconds of audio that are sorted by length, so that batches have little padding."""
BATCH_SECONDS = 60


@dataclass
class Recording:
    """A recording on its way to its transcript.

    Attributes:
        path: file.
        seconds: length by the header.
        position: seconds of the recordings before it.
        records: transcript of each channel, or the only one.
        waiting: number of pieces that are read but not transcribed.
        is_read: whether all pieces are read.
        error: why it cannot be transcribed.
    """

    path: Path
    seconds: float = 0.0
    position: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    is_read: bool = False
    error: UserError | None = None


class Piece(NamedTuple):
    """A part of a recording that the recognizer reads at once.

    Attributes:
        recording: recording that it is part of.
        record: transcript that it belongs to.
        span: where it is.
        waveform: (samples,) at the recognizer's rate.
    """

    recording: Recording
    record: dict[str, Any]
    span: Span
    waveform: Tensor


class Transcriber:
    """Transcribe recordings of any length in constant memory.

    A recording that is longer than the recognizer's longest training clip is cut at its silences.
    Pieces of several recordings share batches.

    Args:
        model: trained recognizer.
        each_channel: whether to transcribe every channel, instead of their mean.
    """

    suffixes: Sequence[str] = (*AUDIO_SUFFIXES, *MEDIA_SUFFIXES)
    formats: Sequence[str] = ("txt", "csv", "jsonl", "srt", "vtt")

    def __init__(self, model: SpeechRecognizer, *, each_channel: bool = False) -> None:
        self.model = model
        self.each_channel = each_channel
        self.sample_rate = model.network.features.sample_rate

    @torch.inference_mode()
    def predict(
        self, files: Sequence[Path], progress: Progress
    ) -> Iterator[tuple[Path, list[dict[str, Any]] | UserError]]:
        """Yield each file, in order, with its transcripts or the reason why there are none.

        A transcript is a dictionary with ``file``, ``seconds``, ``text``, ``segments`` and, if
        every channel is transcribed, ``channel``. Segments have ``start``, ``end`` (seconds) and
        ``text`` and, with a CTC head, ``words``, each with ``word``, ``start``, ``end`` and
        ``confidence``.
        """
        recordings = deque(Recording(path) for path in files)
        bar = progress.add_task("", total=None)
        for window in self._windows(self._read(list(recordings), progress, bar)):
            self._transcribe(window)
            if window:
                last = window[-1]
                progress.update(bar, completed=last.recording.position + last.span.end)
            while recordings and recordings[0].is_read and not recordings[0].waiting:
                done = recordings.popleft()
                progress.update(bar, completed=done.position + done.seconds)
                for record in done.records:
                    record["text"] = " ".join(segment["text"] for segment in record["segments"])
                yield done.path, done.error or done.records

    def _read(
        self, recordings: list[Recording], progress: Progress, bar: Any
    ) -> Iterator[Piece | None]:
        """Yield the pieces of all recordings, and None after each recording."""
        files: dict[Path, AudioFile] = {}
        total = 0.0
        for recording in recordings:
            recording.position = total
            try:
                files[recording.path] = open_audio(recording.path)
            except UserError as error:
                recording.error = error
            else:
                recording.seconds = files[recording.path].seconds
                total += recording.seconds
        progress.update(bar, total=total)
        for recording in recordings:
            try:
                if recording.path in files:
                    progress.update(bar, description=recording.path.name)
                    yield from self._cut(recording, files[recording.path])
            except UserError as error:
                recording.error = error
            recording.is_read = True
            yield None

    def _cut(self, recording: Recording, file: AudioFile) -> Iterator[Piece]:
        for channel in range(file.channels) if self.each_channel else (None,):
            record: dict[str, Any] = {"file": str(file.path)}
            if channel is not None:
                record["channel"] = channel
            record |= {"seconds": round(file.seconds, 3), "text": "", "segments": []}
            recording.records.append(record)
            longest = self.model.longest_clip
            if 0 < file.seconds <= longest:
                spans = [Span(0.0, file.seconds)]
            else:
                spans = find_speech(file.read(DETECTOR_RATE, channel), longest)
            waveforms = cut(file.read(self.sample_rate, channel), spans, self.sample_rate)
            for span, waveform in zip(spans, waveforms, strict=True):
                if len(waveform) < SHORTEST * self.sample_rate:
                    raise UserError(f"{file.path} ends before {span.end:.2f} s: it is damaged")
                recording.waiting += 1
                yield Piece(recording, record, span, waveform)

    def _windows(self, pieces: Iterable[Piece | None]) -> Iterator[list[Piece]]:
        """Group pieces into windows; an empty one tells that a recording ended after a window."""
        window: list[Piece] = []
        samples = 0
        for piece in pieces:
            if piece is not None:
                window.append(piece)
                samples += len(piece.waveform)
            if samples >= WINDOW_SECONDS * self.sample_rate or not window:
                yield window
                window, samples = [], 0
        yield window

    def _transcribe(self, window: list[Piece]) -> None:
        """Add the segments of pieces to their transcripts."""
        order = sorted(window, key=lambda piece: -len(piece.waveform))
        lengths = np.array([len(piece.waveform) for piece in order])
        limit = BATCH_SECONDS * self.sample_rate
        sizes = iter(cut_by_length(lengths, len(order), limit, 1) if order else [])
        segments: dict[int, dict[str, Any]] = {}
        first = 0
        for size in sizes:
            batch = order[first : first + size]
            first += size
            for piece, segment in zip(batch, self._recognize(batch), strict=True):
                segments[id(piece)] = segment
        for piece in window:  # in the order of time
            piece.recording.waiting -= 1
            if segments[id(piece)]["text"]:
                piece.record["segments"].append(segments[id(piece)])

    def _recognize(self, batch: list[Piece]) -> Iterator[dict[str, Any]]:
        device = next(self.model.parameters()).device
        waveforms = pad_sequence([piece.waveform for piece in batch], batch_first=True).to(device)
        lengths = torch.tensor([len(piece.waveform) for piece in batch], device=device)
        encoded = self.model.network.encode(waveforms, lengths)
        texts = self.model.transcribe(*encoded, self.model.test_decoding, warn_if_cut=True)
        has_words = self.model.network.ctc_head is not None
        words = self.model.find_words(*encoded, texts) if has_words else None
        for i, (piece, text) in enumerate(zip(batch, texts, strict=True)):
            segment: dict[str, Any] = {
                "start": round(piece.span.start, 3),
                "end": round(piece.span.end, 3),
                "text": text.strip(),
            }
            if words is not None:
                segment["words"] = [shift(word, piece.span.start).describe() for word in words[i]]
            yield segment


def shift(word: Word, seconds: float) -> Word:
    """Return a word with later times."""
    if math.isnan(word.start):
        return word
    return word._replace(start=word.start + seconds, end=word.end + seconds)
