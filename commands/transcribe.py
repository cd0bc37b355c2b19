"""Transcripts of recordings of any length."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from commands.inputs.audio_file import MEDIA_SUFFIXES, SHORTEST, AudioFile, open_audio
from commands.inputs.speech_activity import DETECTOR_RATE, Span, cut, find_speech
from commands.outputs import as_user_error
from datamodules.clips import AUDIO_SUFFIXES
from datamodules.sampling import cut_by_length
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
        records: transcript of each channel, or the only one.
        waiting: number of pieces that are read but not transcribed.
        is_read: whether all pieces are read.
        error: reason for a failure.
    """

    path: Path
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    is_read: bool = False
    error: UserError | None = None


class Piece(NamedTuple):
    """A part of a recording that the recognizer reads at once.

    Attributes:
        recording: recording that it is part of.
        record: transcript that it belongs to.
        span: its position.
        waveform: (samples,) at the recognizer's rate.
    """

    recording: Recording
    record: dict[str, Any]
    span: Span
    waveform: Tensor


class Transcriber:
    """Transcribe recordings of any length in constant memory.

    A recording without speech has no text. One that is longer than the recognizer's longest
    training clip is cut at its silences. Pieces of several recordings share batches.

    Args:
        model: trained recognizer.

    Attributes:
        each_channel: whether to transcribe every channel, instead of their mean.
        max_seconds: maximum length of a recording; None for no limit.
    """

    suffixes: Sequence[str] = (*AUDIO_SUFFIXES, *MEDIA_SUFFIXES)
    formats: Sequence[str] = ("txt", "csv", "jsonl", "srt", "vtt")

    def __init__(self, model: SpeechRecognizer) -> None:
        self.model = model
        self.each_channel = False
        self.max_seconds: float | None = None
        self.sample_rate = model.network.features.sample_rate

    @torch.inference_mode()
    def predict(
        self, files: Sequence[Path], progress: Progress
    ) -> Iterator[tuple[Path, list[dict[str, Any]] | UserError]]:
        """Yield each file, in order, with its transcripts or the reason why there are none.

        A transcript is a dictionary with ``file``, ``seconds``, ``text``, ``segments`` and, if
        every channel is transcribed, ``channel``. Segments have ``start``, ``end`` (seconds) and
        ``text`` and, with a CTC head, ``words``, each with ``word``, ``start``, ``end`` and
        ``confidence``; then they begin with their first word and end with their last.
        """
        recordings = deque(Recording(path) for path in files)
        bar = progress.add_task("", total=None)
        for window in self._windows(self._read(list(recordings), progress, bar)):
            self._transcribe(window)
            while recordings and recordings[0].is_read and not recordings[0].waiting:
                done = recordings.popleft()
                for record in done.records:
                    record["text"] = " ".join(segment["text"] for segment in record["segments"])
                yield done.path, done.error or done.records
                done.records = []  # lets go of them

    def _read(
        self, recordings: list[Recording], progress: Progress, bar: TaskID
    ) -> Iterator[Piece | None]:
        """Yield the pieces of all recordings, and None after each recording."""
        files: dict[Path, AudioFile] = {}
        for recording in recordings:
            try:
                files[recording.path] = open_audio(recording.path)
                recording.seconds = files[recording.path].seconds
            except (UserError, OSError) as error:
                recording.error = as_user_error(error, recording.path)
        progress.update(bar, total=sum(recording.seconds for recording in recordings))
        before = 0.0
        for recording in recordings:
            progress.update(bar, description=recording.path.name, completed=before)
            advance = partial(progress.advance, bar)
            try:
                if recording.path in files:
                    for piece in self._cut(recording, files[recording.path], advance):
                        recording.waiting += 1
                        yield piece
            except (UserError, OSError) as error:
                recording.error = as_user_error(error, recording.path)
            before += recording.seconds
            recording.is_read = True
            yield None

    def _cut(
        self, recording: Recording, file: AudioFile, advance: Callable[[float], None]
    ) -> Iterator[Piece]:
        """Yield the pieces of a recording; advance the progress by its seconds."""
        channels = range(file.channels) if self.each_channel else (None,)
        passes = 2 * len(channels)  # to find the speech, and to read it
        for channel in channels:
            blocks = self._listen(file, channel, lambda seconds: advance(seconds / passes))
            spans, seconds = find_speech(blocks, self.model.longest_clip)
            if seconds < SHORTEST:
                raise UserError(f"{file.path} lasts {seconds:.3f} s; the minimum is {SHORTEST} s")
            if spans and seconds <= self.model.longest_clip:
                spans = [Span(0.0, seconds)]
            record: dict[str, Any] = {"file": str(file.path)}
            if channel is not None:
                record["channel"] = channel
            record |= {"seconds": round(seconds, 3), "text": "", "segments": []}
            recording.records.append(record)
            waveforms = cut(file.read(self.sample_rate, channel), spans, self.sample_rate)
            done = 0.0
            for span, waveform in zip(spans, waveforms, strict=True):
                advance((span.end - done) / passes)
                done = span.end
                yield Piece(recording, record, span, waveform)

    def _listen(
        self, file: AudioFile, channel: int | None, advance: Callable[[float], None]
    ) -> Iterator[Tensor]:
        """Yield the blocks of a recording for the detector; advance the progress."""
        samples = 0
        for block in file.read(DETECTOR_RATE, channel):
            samples += len(block)
            if self.max_seconds is not None and samples > self.max_seconds * DETECTOR_RATE:
                raise UserError(
                    f"{file.path} is longer than the maximum of {self.max_seconds / 60:g} minutes"
                )
            advance(len(block) / DETECTOR_RATE)
            yield block

    def _windows(self, pieces: Iterable[Piece | None]) -> Iterator[list[Piece]]:
        """Group pieces into windows; an empty window signals that a recording has ended."""
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
        segments: dict[int, dict[str, Any]] = {}
        first = 0
        for size in cut_by_length(lengths, len(order), limit, 1) if order else ():
            batch = order[first : first + size]
            first += size
            for piece, segment in zip(batch, self._recognize(batch), strict=True):
                segments[id(piece)] = segment
        for piece in window:  # in the order of time
            piece.recording.waiting -= 1
            if segments[id(piece)]["text"]:
                piece.record["segments"].append(segments[id(piece)])

    def _recognize(self, batch: list[Piece]) -> Iterator[dict[str, Any]]:
        device = self.model.device
        waveforms = pad_sequence([piece.waveform for piece in batch], batch_first=True).to(device)
        lengths = torch.tensor([len(piece.waveform) for piece in batch], device=device)
        found = self.model.recognize(waveforms, lengths)
        words = found.get("words")
        for i, (piece, text) in enumerate(zip(batch, found["transcripts"], strict=True)):
            segment: dict[str, Any] = {
                "start": round(piece.span.start, 3),
                "end": round(piece.span.end, 3),
                "text": text.strip(),
            }
            if words is not None:
                described = [shift(word, piece.span.start).describe() for word in words[i]]
                if described and described[0]["start"] is not None:  # closer than the detector
                    segment |= {"start": described[0]["start"], "end": described[-1]["end"]}
                segment["words"] = described
            yield segment


def shift(word: Word, seconds: float) -> Word:
    """Return a word with later times."""
    if math.isnan(word.start):
        return word
    return word._replace(start=word.start + seconds, end=word.end + seconds)
