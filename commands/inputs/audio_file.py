"""Audio files of any format, rate, number of channels and length, read in blocks."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from datamodules.clips import check_rate, check_whole, mix_down, read_parts
from errors import UserError, extra

MEDIA_SUFFIXES = (
    *(".aif", ".aiff", ".oga", ".m4a", ".m4b", ".aac", ".wma", ".amr", ".mka"),
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".3gp"),
)
"""Further suffixes of recordings; most need FFmpeg."""
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,mp3,flac,wav,w64,aac,ac3,amr,amrnb,amrwb,asf,aiff,au,"
    "avi,caf,flv,mpeg,mpegts"
)
"""Formats that FFmpeg may read."""
BLOCK_SECONDS = 10
SHORTEST = 0.05
"""Minimum length of a recording in seconds; a spoken sound is longer."""
MAX_CHANNELS = 64
MIN_GAP, MAX_GAP = 0.05, 3600.0
"""Limits in seconds of the silence that is inserted where time stamps jump."""
MAX_MISSING = 0.1
"""Number of seconds by which a file may be shorter than its header says."""
UNKNOWN_LENGTH = 2**40
"""Number of samples from which a header's length is a placeholder."""


@dataclass(frozen=True)
class AudioFile:
    """An audio file that libsndfile reads; `MediaFile` is one that FFmpeg reads.

    Attributes:
        path: the file.
        rate: sample rate in Hz.
        channels: number of channels.
        seconds: approximate length by the header; 0 if it is unknown.
    """

    path: Path
    rate: int
    channels: int
    seconds: float

    def samples(self) -> Iterator[NDArray[np.float32]]:
        """Yield the samples, (samples, channels) in [-1, 1], in pieces of any length.

        Raises:
            UserError: if the file is damaged or cut off.
        """
        try:
            with soundfile.SoundFile(str(self.path)) as file:
                count = 0
                for part in read_parts(file):
                    count += len(part)
                    yield part
        except soundfile.SoundFileError as error:
            raise UserError(f"{self.path} is damaged ({error})") from error
        self.check_end(count / self.rate)

    def check_end(self, seconds: float) -> None:
        """Raise a `UserError` if the sound ends before the header says."""
        if seconds < self.seconds - MAX_MISSING:
            raise UserError(
                f"{self.path} is cut off: it ends after {seconds:.1f} of {self.seconds:.1f} s"
            )

    def read(self, sample_rate: int, channel: int | None = None) -> Iterator[Tensor]:
        """Yield the waveform in blocks (samples,), of about ten seconds each.

        Args:
            sample_rate: rate in Hz that the samples are resampled to.
            channel: number of the channel, from 0; None averages the channels.

        Raises:
            UserError: if the file is damaged or has samples that are not finite, or if its rate
                cannot be resampled.
        """
        check_rate(str(self.path), self.rate, sample_rate)
        blocks = regroup(self._channel(channel), BLOCK_SECONDS * self.rate)
        return resample_blocks(blocks, self.rate, sample_rate)

    def _channel(self, channel: int | None) -> Iterator[Tensor]:
        for part in self.samples():
            mono = mix_down(part, channel)
            if not np.isfinite(mono).all():
                raise UserError(f"{self.path} has samples that are not finite: it is damaged")
            yield torch.from_numpy(mono)


class MediaFile(AudioFile):
    """An audio or video file that FFmpeg reads: m4a, mp4, webm, …."""

    def samples(self) -> Iterator[NDArray[np.float32]]:
        import av

        count = 0
        try:
            with open_container(self.path) as container:
                as_float = av.AudioResampler(format="flt")
                # FFmpeg gives the stream a length of its own where it only estimates one. The
                # header's is that of the longest stream.
                is_exact = len(container.streams) == 1 and container.streams[0].duration is None
                origin = (container.start_time or 0) / 1_000_000  # FFmpeg counts microseconds
                for frame in chain(container.decode(audio=0), (None,)):  # None flushes
                    if frame is not None and frame.time is not None:
                        gap = frame.time - origin - count / self.rate
                        if MIN_GAP < gap < MAX_GAP:
                            silence = np.zeros((int(gap * self.rate), self.channels), np.float32)
                            count += len(silence)
                            yield silence
                    for part in as_float.resample(frame):
                        packed = part.to_ndarray().astype(np.float32, copy=False)
                        packed = packed.reshape(-1, self.channels)
                        count += len(packed)
                        yield packed
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"{self.path} is damaged ({error})") from error
        if is_exact:
            self.check_end(origin + count / self.rate)


def open_audio(path: Path) -> AudioFile:
    """Read the header of an audio file.

    Raises:
        UserError: if the file is missing, cut off, empty or not audio, or has too many channels.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    file: AudioFile
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError, ValueError):  # types: of a suffix such as .raw
        file = open_media(path)
    else:
        check_whole(str(path), path)
        seconds = header.frames / header.samplerate
        file = AudioFile(path, header.samplerate, header.channels, seconds)
        if header.frames > UNKNOWN_LENGTH:
            file = open_media(path)
    if file.channels > MAX_CHANNELS:
        raise UserError(f"{path} has {file.channels} channels; the maximum is {MAX_CHANNELS}")
    return file


def open_media(path: Path) -> MediaFile:
    """Read the header of a file through FFmpeg; see `open_audio`."""
    with extra("media", f"{path}, which libsndfile does not read,"):
        import av
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no sound")
            stream = container.streams.audio[0]
            if stream.codec_context is None or not stream.rate:
                raise UserError(f"{path} has sound that FFmpeg cannot decode")
            seconds = (container.duration or 0) / 1_000_000
            return MediaFile(path, stream.rate, stream.channels, seconds)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path} is not an audio file ({error})") from error


def open_container(path: Path) -> Any:
    """Open a file with FFmpeg; its name is no URL, and its tags may have any encoding.

    Playlists are refused: they name other files, which the owner of this one may not read.
    """
    import av

    options = {"format_whitelist": FORMATS}
    return av.open(f"file:{path}", metadata_errors="ignore", options=options)


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
