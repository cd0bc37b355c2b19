"""Recordings: headers and samples."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Suffixes of the files that count as recordings when a folder is searched."""
LONGEST_CLIP = 600
"""Maximum length of a clip in seconds; LJ Speech's longest has 10."""
STREAMED = 0x7FFFF000
"""Number of bytes from which a header's length is a placeholder, of a program that wrote to a pipe.

Programs differ: sox writes this one, arecord 0x80000000, ffmpeg 0xFFFFFFFF.
"""
LONGEST_PAGE = 27 + 255 + 255 * 255
"""Maximum number of bytes of a page of an Ogg file."""
PART = 1 << 18
"""Number of samples that are read at a time."""
LARGEST_RESAMPLER = 10_000_000
"""Maximum number of weights of the resampling filter: product of the rates over gcd²."""


@dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        id: name of the clip.
        path: audio file of a format that libsndfile reads.
        source: where the clip is listed, for messages: a line of ``metadata.csv``, or "".
        samples: length at the data module's sample rate; 0 if the file cannot be read.
        text: transcript; "" without one.
    """

    id: str
    path: Path
    source: str
    samples: int
    text: str = ""

    @property
    def name(self) -> str:
        """Path of the clip, and where it is listed."""
        return f"{self.path} ({self.source})" if self.source else str(self.path)


def inspect_clip(
    id: str,
    path: Path,
    sample_rate: int,
    source: str = "",
    text: str = "",
    channel: int | None = None,
) -> Clip:
    """Read the header of a file and return the clip.

    Raises:
        UserError: if the file is missing, unreadable, cut off, empty or longer than
            `LONGEST_CLIP`, lacks the channel, or has a rate that cannot be resampled.
    """
    clip = Clip(id, path, source, 0, text)
    if not path.is_file():
        raise UserError(f"{clip.name} does not exist")
    try:
        header = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise UserError(f"{clip.name} is not a readable audio file ({error})") from error
    check_whole(clip.name, path)
    if channel is not None and channel >= header.channels:
        raise UserError(
            f"{clip.name} has no channel {channel}: it has {header.channels} channel(s), counted "
            "from 0; pass --data.init_args.channel=null to average them"
        )
    if header.frames == 0:
        raise UserError(f"{clip.name} is empty")
    if header.frames > LONGEST_CLIP * header.samplerate:
        raise UserError(
            f"{clip.name} is {header.frames / header.samplerate / 60:,.0f} minutes long by its "
            f"header: cut it into clips of at most {LONGEST_CLIP // 60} minutes"
        )
    check_rate(clip.name, header.samplerate, sample_rate)
    samples = count_samples(header.frames, header.samplerate, sample_rate)
    return Clip(id, path, source, samples, text)


def count_samples(frames: int, rate: int, sample_rate: int) -> int:
    """Return how many samples a recording has after resampling, rounded up."""
    return -(-frames * sample_rate // rate)


def check_rate(name: str, rate: int, sample_rate: int) -> None:
    """Raise a `UserError` if a recording's rate cannot be resampled."""
    common = math.gcd(rate, sample_rate)
    if rate // common * (sample_rate // common) > LARGEST_RESAMPLER:
        raise UserError(
            f"{name} has {rate} Hz; resampling that to {sample_rate} Hz takes gigabytes: convert "
            "it to a common rate"
        )


def find_recordings(paths: Sequence[str], setting: str) -> list[Path]:
    """Return the given files, and the recordings in the given folders.

    Raises:
        UserError: if a folder holds no recording; names the setting that lists it.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            if not found:
                raise UserError(f"{setting}: the folder {path} holds no audio file")
            files += found
        else:
            files.append(path)
    return files


def check_whole(name: str, path: Path) -> None:
    """Raise a `UserError` if a recording ends before its header says, or its header is unfinished.

    libsndfile reads a truncated file as a shorter clip.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        position, length = find_samples(file, size)
    if length == 0 and position < size:
        raise UserError(
            f"{name} has an unfinished header, which says that there are no samples: convert it "
            "with ffmpeg"
        )
    if position + length > size:
        missing = position + length - size
        raise UserError(f"{name} is cut off: it is {missing:,} bytes shorter than its header says")


def find_samples(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return where a header says that the samples begin, and how many bytes they have.

    The number is -1 if it is unknown, or the file is not WAV, RF64, W64, AIFF, AU or Ogg.
    """
    kind = file.read(4)
    if kind == b".snd":
        position, length = struct.unpack(">II", file.read(8))
        return position, -1 if length >= STREAMED else length
    if kind == b"riff":  # W64 says how long the whole file is
        return 0, *struct.unpack("<12xq", file.read(20))
    if kind not in (b"RIFF", b"RF64", b"FORM"):
        return find_last_page(file, size) if kind == b"OggS" else (0, -1)
    position, of_rf64 = 12, -1  # after the kind, a size, WAVE or AIFF
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sI" if kind == b"FORM" else "<4sI", file.read(8))
        position += 8
        if name == b"ds64":
            (of_rf64,) = struct.unpack("<8xq", file.read(16))
        if name in (b"data", b"SSND"):
            if kind == b"RF64" and length == 2**32 - 1:
                return position, of_rf64
            return position, -1 if length >= STREAMED and position + length > size else length
        position += length + length % 2  # chunks begin at even positions
    return 0, -1


def find_last_page(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return where the content of an Ogg file's last page begins, and its bytes (RFC 3533)."""
    begin = max(size - LONGEST_PAGE, 0)
    file.seek(begin)
    tail = file.read()
    start = tail.rfind(b"OggS")
    segments = start + 27  # after the header: the length of each segment, a byte
    count = tail[segments - 1] if segments <= len(tail) else 1
    content = segments + count
    if start < 0:  # something else follows
        return 0, -1
    if content > len(tail):
        return size, 1  # the end is within the page's header
    return begin + content, sum(tail[segments:content])


def read_parts(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Yield the samples (samples, channels) of an open file in parts.

    A header may claim more samples than the file has: memory is not allocated for them, and the
    last part is short (``SoundFile.blocks`` would repeat old samples instead).
    """
    while len(part := file.read(PART, dtype="float32", always_2d=True)):
        yield part


def mix_down(samples: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    """Return a channel of (samples, channels), or the mean of all if ``channel`` is None."""
    if channel is None and samples.shape[1] == 1:
        channel = 0  # NumPy's mean of a single channel takes half as long as reading the file
    return samples[:, channel] if channel is not None else samples.mean(1)


def read_clip(clip: Clip, sample_rate: int, channel: int | None = None) -> Tensor:
    """Return the samples of a clip, (samples,) in [-1, 1] at ``sample_rate`` Hz.

    Args:
        clip: clip whose header was read.
        sample_rate: rate in Hz that the clip is resampled to.
        channel: number of the channel, from 0; None takes the mean of all.

    Raises:
        UserError: if the file cannot be read, its length differs from its header's, or a sample is
            not finite.
    """
    try:
        with soundfile.SoundFile(str(clip.path)) as file:
            rate = file.samplerate
            parts = [mix_down(part, channel) for part in read_parts(file)]
    except soundfile.SoundFileError as error:
        raise UserError(f"{clip.name} cannot be read ({error})") from error
    if not parts:
        raise UserError(f"{clip.name} is empty")
    recording = np.concatenate(parts)
    samples = count_samples(len(recording), rate, sample_rate)
    if samples != clip.samples:
        raise UserError(
            f"{clip.name} has {samples} samples where {clip.samples} were expected: it is "
            "damaged, or was changed during the run"
        )
    if not np.isfinite(recording).all():
        raise UserError(f"{clip.name} has samples that are not finite: it is damaged")
    waveform = torch.from_numpy(recording)
    if rate != sample_rate:
        # resample computes the length in float32 and so can lose the last sample.
        waveform = resample(waveform, rate, sample_rate)
        waveform = F.pad(waveform, (0, samples - len(waveform)))
    return waveform
