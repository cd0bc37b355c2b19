"""Transcripts without audio, for language models."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.sampling import LengthBucketBatchSampler
from datamodules.speech import SpeechDataModule, Transcript
from datamodules.splits import SplitDataModule
from datamodules.vocabulary import CharacterVocabulary
from errors import UserError


class TextBatch(NamedTuple):
    """A batch of texts.

    Attributes:
        indices: (batch,) indices of the texts in their data set.
        ids: names of the texts.
        tokens: (batch, tokens) start, characters, stop, then padding.
        token_lengths: (batch,) number of tokens, start and stop included.
    """

    indices: Tensor
    ids: tuple[str, ...]
    tokens: Tensor
    token_lengths: Tensor

    def target_count(self) -> Tensor:
        """Return the number of tokens to predict: all but the start token."""
        return (self.token_lengths - 1).sum()

    def describe(self) -> str:
        """Return the number of texts, their padded length and their names."""
        return (
            f"a batch of {len(self.ids)} texts, padded to {self.tokens.shape[1]} tokens "
            f"({', '.join(self.ids)})"
        )


class TextDataset(Dataset[TextBatch]):
    """Transcripts, indexed by lists of indices; a list yields a batch.

    Args:
        transcripts: transcripts, whose audio is not read.
        vocabulary: vocabulary of the transcripts.
    """

    def __init__(self, transcripts: Sequence[Transcript], vocabulary: CharacterVocabulary) -> None:
        self.ids = [transcript.id for transcript in transcripts]
        self.tokens = [torch.tensor(vocabulary.encode(t.text)) for t in transcripts]
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, indices: Sequence[int]) -> TextBatch:
        tokens = [self.tokens[i] for i in indices]
        return TextBatch(
            indices=torch.tensor(indices),
            ids=tuple(self.ids[i] for i in indices),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.vocabulary.pad),
            token_lengths=torch.tensor([len(t) for t in tokens]),
        )


class TranscriptDataModule(SplitDataModule[TextDataset]):
    """Transcripts of a speech corpus, split as the corpus is.

    Args:
        corpus: data module of the corpus; its audio is not read.
        batch_size: maximum number of texts per batch and process.
        seed: seed for shuffling; by default the run's.
    """

    def __init__(
        self, corpus: SpeechDataModule, batch_size: int = 64, seed: int | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        self.corpus = corpus
        self.batch_size = batch_size
        self.seed = seed
        self.vocabulary = corpus.vocabulary

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return len(self.vocabulary)

    def prepare_data(self) -> None:
        """Get the corpus if it is missing."""
        self.corpus.prepare_data()

    def setup(self, stage: str) -> None:
        """Read the transcripts.

        Raises:
            UserError: if the corpus is malformed, or a split is empty.
        """
        parts = self.corpus.split_transcripts()
        for split in self.missing_splits(stage):
            if not parts[split]:
                raise UserError(f"{self.corpus.root} has no transcripts left for {split}")
            self.datasets[split] = TextDataset(parts[split], self.vocabulary)

    def make_sampler(self, split: str, *, shuffle: bool) -> LengthBucketBatchSampler:
        return LengthBucketBatchSampler(
            [len(tokens) for tokens in self.datasets[split].tokens],
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
