"""Batches of clips with their transcripts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.augment import ClipAugment
from datamodules.clips import Clip, read_clip
from datamodules.vocabulary import CharacterVocabulary
from errors import UserError


class SpeechBatch(NamedTuple):
    """A batch of clips.

    Attributes:
        indices: (batch,) indices of the clips in their data set.
        ids: names of the clips.
        waveforms: (batch, samples) in [-1, 1], zero after the end of each clip.
        lengths: (batch,) lengths in samples.
        tokens: (batch, tokens) start, characters, stop, then padding.
        token_lengths: (batch,) number of tokens, start and stop included.
        seconds: length that the clips are padded to.
        unreadable: names of the clips left out of the batch because they cannot be read, each with
            the reason.
    """

    indices: Tensor
    ids: tuple[str, ...]
    waveforms: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    seconds: float
    unreadable: tuple[tuple[str, str], ...] = ()

    def target_count(self) -> Tensor:
        """Return the number of tokens to predict: all but the start token."""
        return (self.token_lengths - 1).sum()

    def head(self, count: int) -> "SpeechBatch":
        """Return the first clips of the batch, with the batch's padding."""
        return self._replace(
            indices=self.indices[:count],
            ids=self.ids[:count],
            waveforms=self.waveforms[:count],
            lengths=self.lengths[:count],
            tokens=self.tokens[:count],
            token_lengths=self.token_lengths[:count],
        )

    def describe(self) -> str:
        """Return the number of clips, their padded length and their names."""
        return (
            f"a batch of {len(self.ids)} clips, padded to {self.seconds:.2f} s and "
            f"{self.tokens.shape[1]} tokens ({', '.join(self.ids)})"
        )


class SpeechDataset(Dataset[SpeechBatch]):
    """Clips, indexed by lists of indices; a list yields a batch of its readable clips.

    Args:
        clips: clips whose headers were read.
        vocabulary: vocabulary of the transcripts.
        sample_rate: rate in Hz that clips are resampled to.
        channel: number of the channel to read, from 0; None averages the channels.
        augment: augmentation of each clip; none by default.
        multiple: number of samples that batches are padded to a multiple of.
        token_multiple: number of tokens that batches are padded to a multiple of, but not beyond
            the longest text.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        vocabulary: CharacterVocabulary,
        sample_rate: int,
        channel: int | None = None,
        augment: ClipAugment | None = None,
        multiple: int = 1,
        token_multiple: int = 1,
    ) -> None:
        self.clips = clips
        self.vocabulary = vocabulary
        self.sample_rate = sample_rate
        self.channel = channel
        self.augment = augment
        self.multiple = multiple
        self.token_multiple = token_multiple
        longest = max((clip.text for clip in clips), key=len, default="")
        self.longest_text = len(vocabulary.encode(longest))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, indices: Sequence[int]) -> SpeechBatch:
        read, waveforms, tokens, unreadable = [], [], [], []
        for i in indices:
            clip = self.clips[i]
            try:
                waveform = read_clip(clip, self.sample_rate, self.channel)
            except UserError as error:
                unreadable.append((clip.name, str(error)))
                if len(unreadable) == len(indices):
                    raise UserError(f"{error}, nor can any other clip of its batch") from error
                continue
            has_text = True
            if self.augment is not None:
                waveform, has_text = self.augment(waveform, self.sample_rate)
            read.append(i)
            waveforms.append(waveform)
            tokens.append(torch.tensor(self.vocabulary.encode(clip.text if has_text else "")))
        padded = pad(waveforms, self.multiple)
        return SpeechBatch(
            indices=torch.tensor(read),
            ids=tuple(self.clips[i].id for i in read),
            waveforms=padded,
            lengths=torch.tensor([len(waveform) for waveform in waveforms]),
            tokens=pad(tokens, self.token_multiple, self.vocabulary.pad, self.longest_text),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            seconds=padded.shape[1] / self.sample_rate,
            unreadable=tuple(unreadable),
        )


def pad(
    sequences: Sequence[Tensor], multiple: int, value: int = 0, longest: int | None = None
) -> Tensor:
    """Return sequences as the rows of a tensor, filled with ``value``.

    Their common length is a multiple of ``multiple``, or ``longest`` if that is less.
    """
    padded = pad_sequence(list(sequences), batch_first=True, padding_value=value)
    length = padded.shape[1]
    rounded = length + -length % multiple
    missing = (rounded if longest is None else min(rounded, max(longest, length))) - length
    return F.pad(padded, (0, missing), value=value) if missing else padded
