"""Recorded speech as batches: what every speech data module shares, whatever the corpus."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torchaudio.functional import resample

from datamodules.vocabulary import CharacterVocabulary
from errors import UserError

LONGEST_CLIP = 600
"""Seconds; LJ Speech's longest clip has 10."""
LARGEST_RESAMPLER = 10_000_000
"""Product of two rates without their common factor: weights of the filter between them."""


@dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        id: its name.
        path: its WAV or FLAC file.
        source: where it was asked for, for messages: a line of ``metadata.csv``, or "".
        samples: its length at the data module's sample rate; 0 where it could not be read.
        text: its transcript; "" where there is none.
    """

    id: str
    path: Path
    source: str
    samples: int
    text: str = ""

    @property
    def name(self) -> str:
        """Return its file, and where it was asked for."""
        return f"{self.path} ({self.source})" if self.source else str(self.path)


def inspect_clip(id: str, path: Path, sample_rate: int, source: str = "", text: str = "") -> Clip:
    """Read a file's header, and return the clip.

    Raises:
        UserError: if the file is missing, unreadable, cut off, empty, longer than `LONGEST_CLIP`,
            has several channels, or a rate that cannot be resampled.
    """
    clip = Clip(id, path, source, 0, text)
    if not path.is_file():
        raise UserError(f"{clip.name} does not exist")
    try:
        header = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise UserError(f"{clip.name} is not a readable WAV or FLAC file ({error})") from error
    missing = count_missing_bytes(path)
    if missing:
        raise UserError(f"{clip.name} is cut off: its header promises {missing:,} bytes more")
    if header.channels != 1:
        raise UserError(f"{clip.name} has {header.channels} channels: mix it down to one")
    if header.frames == 0:
        raise UserError(f"{clip.name} is empty")
    if header.frames > LONGEST_CLIP * header.samplerate:
        raise UserError(
            f"{clip.name} says that it is {header.frames / header.samplerate / 60:,.0f} minutes "
            f"long: cut it into clips of {LONGEST_CLIP // 60} minutes at most"
        )
    common = math.gcd(header.samplerate, sample_rate)
    if header.samplerate // common * (sample_rate // common) > LARGEST_RESAMPLER:
        raise UserError(
            f"{clip.name} has {header.samplerate} Hz, from which {sample_rate} Hz take a filter of "
            f"gigabytes: convert it to a usual rate"
        )
    samples = -(-header.frames * sample_rate // header.samplerate)  # rounded up, as resample does
    return Clip(id, path, source, samples, text)


def count_missing_bytes(path: Path) -> int:
    """Return how many bytes a WAV file lacks of what its chunks' headers promise.

    The WAV reader takes a file that was cut off for a shorter one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        position = 12  # behind RIFF, a size, WAVE
        while position + 8 <= size:
            file.seek(position)
            name, length = struct.unpack("<4sI", file.read(8))
            position += 8 + length
            if name == b"data":
                break
            position += length % 2  # chunks begin at even places
    return max(position - size, 0)


def read_clip(clip: Clip, sample_rate: int) -> Tensor:
    """Return a clip's samples in [-1, 1] at ``sample_rate`` Hz.

    Raises:
        UserError: if the file cannot be read, or is not as long as its header said.
    """
    try:
        with soundfile.SoundFile(str(clip.path)) as file:
            rate = file.samplerate
            # Block by block: a header may claim more than there is.
            blocks = list(file.blocks(blocksize=1 << 20, dtype="float32", always_2d=True))
    except soundfile.SoundFileError as error:
        raise UserError(f"{clip.name} cannot be read ({error})") from error
    waveform = torch.from_numpy(np.concatenate([np.zeros((0, 1), np.float32), *blocks])[:, 0])
    if rate != sample_rate:
        waveform = resample(waveform, rate, sample_rate)
    if len(waveform) != clip.samples:
        raise UserError(
            f"{clip.name} has {len(waveform)} samples where {clip.samples} were expected: it is "
            "damaged, or was changed during the run"
        )
    return waveform


class SpeechBatch(NamedTuple):
    """A batch of clips.

    Attributes:
        indices: (batch,) places of the clips in their data set.
        waveforms: (batch, samples) in [-1, 1], zero behind each clip's length.
        lengths: (batch,) in samples.
        tokens: (batch, tokens) start, characters, stop, then padding.
        token_lengths: (batch,) with start and stop.
        faults: clips that are not in the batch because they cannot be read: place and reason.
    """

    indices: Tensor
    waveforms: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    faults: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the number of clips, what they are padded to, and the clips."""
        return (
            f"a batch of {len(self.indices)} clips, padded to 0.{self.waveforms.shape[1]} s and "
            f"{self.tokens.shape[1]} tokens ({', '.join(self.ids)})"
        )

    def target_count(self) -> Tensor:
        """Return the number of tokens to be predicted: all but the start."""
        return (self.token_lengths - 1).sum()


class SpeechDataset(Dataset[SpeechBatch]):
    """Clips, indexed by lists of places: one list, one batch, without the clips not readable.

    Args:
        clips: as `inspect_clip` gives them.
        vocabulary: for the transcripts.
        sample_rate: in Hz; clips of another are resampled.
    """

    def __init__(
        self, clips: Sequence[Clip], vocabulary: CharacterVocabulary, sample_rate: int
    ) -> None:
        self.clips = clips
        self.vocabulary = vocabulary
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, indices: Sequence[int]) -> SpeechBatch:
        read, waveforms, tokens, faults = [], [], [], []
        for i in indices:
            clip = self.clips[i]
            try:
                waveforms.append(read_clip(clip, self.sample_rate))
            except UserError as error:
                faults.append((clip.name, str(error)))
                if len(faults) == len(indices):
                    raise UserError(f"{error}, nor any other clip of its batch") from error
                continue
            read.append(i)
            tokens.append(torch.tensor(self.vocabulary.encode(clip.text)))
        return SpeechBatch(
            indices=torch.tensor(read),
            waveforms=pad_sequence(waveforms, batch_first=True),
            lengths=torch.tensor([len(waveform) for waveform in waveforms]),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.vocabulary.pad),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            faults=tuple(faults),
            ids=tuple(self.clips[i].id for i in read),
        )
