"""Audio files of any format, rate, number of channels and length, read in blocks."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from datamodules.clips import LARGEST_RESAMPLER, count_missing_bytes
from errors import UserError

MEDIA_SUFFIXES = (".m4a", ".aac", ".wma", ".mp4", ".mkv", ".mov", ".webm")
"""Suffixes of files that only FFmpeg reads."""
BLOCK_SECONDS = 10
SHORTEST = 0.05
"""Minimum length of a recording in seconds; a spoken sound is longer."""
MOST_CHANNELS = 64


@dataclass(frozen=True)
class AudioFile:
    """An audio file that libsndfile reads; `MediaFile` is one that FFmpeg reads.

    Attributes:
        path: the file.
        rate: sample rate in Hz.
        channels: number of channels.
        seconds: length by the header; 0 if the header does not say.
    """

    path: Path
    rate: int
    channels: int
    seconds: float

    def samples(self) -> Iterator[NDArray[np.float32]]:
        """Yield the samples, (samples, channels) in [-1, 1], in pieces of any length.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            with soundfile.SoundFile(str(self.path)) as file:
                yield from file.blocks(blocksize=1 << 16, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise UserError(f"{self.path} is damaged ({error})") from error

    def read(self, sample_rate: int, channel: int | None = None) -> Iterator[Tensor]:
        """Yield the waveform in blocks (samples,), of about ten seconds each.

        Args:
            sample_rate: rate in Hz that the samples are resampled to.
            channel: number of the channel, from 0; None averages the channels.

        Raises:
            UserError: if the file is damaged, or its rate cannot be resampled.
        """
        common = math.gcd(self.rate, sample_rate)
        if self.rate // common * (sample_rate // common) > LARGEST_RESAMPLER:
            raise UserError(
                f"{self.path} has {self.rate} Hz; resampling that to {sample_rate} Hz takes "
                "gigabytes: convert it to a common rate"
            )
        mono = (x[:, channel] if channel is not None else x.mean(1) for x in self.samples())
        blocks = regroup(map(torch.from_numpy, mono), BLOCK_SECONDS * self.rate)
        return resample_blocks(blocks, self.rate, sample_rate)


class MediaFile(AudioFile):
    """An audio or video file that FFmpeg reads: m4a, mp4, webm, …."""

    def samples(self) -> Iterator[NDArray[np.float32]]:
        import av

        try:
            with av.open(str(self.path)) as container:
                as_float = av.AudioResampler(format="flt")
                for frame in chain(container.decode(audio=0), (None,)):  # None flushes
                    for part in as_float.resample(frame):
                        packed = part.to_ndarray().astype(np.float32, copy=False)
                        yield packed.reshape(-1, self.channels)
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"{self.path} is damaged ({error})") from error


def open_audio(path: Path) -> AudioFile:
    """Read the header of an audio file.

    Raises:
        UserError: if the file is missing, cut off, too short or not audio, or has too many
            channels.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    file: AudioFile
    try:
        header = soundfile.info(str(path))
    except soundfile.SoundFileError:
        file = open_media(path)
    else:
        missing = count_missing_bytes(path)
        if missing:
            raise UserError(f"{path} is cut off: its header promises {missing:,} bytes more")
        seconds = header.frames / header.samplerate
        if seconds < SHORTEST:
            raise UserError(
                f"{path} has {header.frames} samples: a recording lasts at least {SHORTEST} s"
            )
        file = AudioFile(path, header.samplerate, header.channels, seconds)
    if file.channels > MOST_CHANNELS:
        raise UserError(f"{path} has {file.channels} channels: at most {MOST_CHANNELS} are read")
    return file


def open_media(path: Path) -> MediaFile:
    """Read the header of a file through FFmpeg; see `open_audio`."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{path} is not audio that libsndfile reads; for m4a, mp4 and webm "
            "pip install '.[media]'"
        ) from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no sound")
            stream = container.streams.audio[0]
            seconds = (container.duration or 0) / 1_000_000  # FFmpeg counts microseconds
            return MediaFile(path, stream.rate, stream.channels, seconds)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path} is not an audio file ({error})") from error


def regroup(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the samples of parts in blocks of ``size``; the last one may be shorter."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            joined = torch.cat(held)
            count %= size
            yield from joined[: len(joined) - count].split(size)
            held = [joined[len(joined) - count :]]
    if count:
        yield torch.cat(held)


def resample_blocks(blocks: Iterator[Tensor], rate: int, sample_rate: int) -> Iterator[Tensor]:
    """Resample a waveform block by block, with the result of resampling it as a whole.

    Args:
        blocks: waveforms of a whole number of seconds; the last one may have any length.
        rate: their rate in Hz.
        sample_rate: rate in Hz to resample to.
    """
    if rate == sample_rate:
        yield from blocks
        return
    before = torch.zeros(0)
    for block, after in pairwise(chain(blocks, [torch.zeros(0)])):
        # The filter reaches a few samples to both sides; a second is a whole number of steps.
        joined = torch.cat((before, block, after[:rate]))
        start = len(before) // rate * sample_rate
        length = math.ceil(len(block) * sample_rate / rate)
        yield resample(joined, rate, sample_rate)[start : start + length]
        before = block[-rate:]
