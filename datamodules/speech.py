"""Speech corpora of any layout: split, checked, bucketed by length and batched."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.clips import Clip, inspect_clip, read_clip
from datamodules.sampling import LengthBucketBatchSampler
from datamodules.splits import SplitDataModule
from datamodules.vocabulary import COURSE_ALPHABET, CharacterVocabulary
from errors import UserError

AUDIO_SUFFIXES = {".wav", ".flac"}


class Transcript(NamedTuple):
    """Transcript of an audio file.

    Attributes:
        id: name of the clip, unique in its corpus.
        path: audio file.
        text: words spoken.
        source: where the transcript was read, for messages.
    """

    id: str
    path: Path
    text: str
    source: str


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
        read, waveforms, tokens, unreadable = [], [], [], []
        for i in indices:
            clip = self.clips[i]
            try:
                waveforms.append(read_clip(clip, self.sample_rate))
            except UserError as error:
                unreadable.append((clip.name, str(error)))
                if len(unreadable) == len(indices):
                    raise UserError(f"{error}, nor can any other clip of its batch") from error
                continue
            read.append(i)
            tokens.append(torch.tensor(self.vocabulary.encode(clip.text)))
        padded = pad_sequence(waveforms, batch_first=True)
        return SpeechBatch(
            indices=torch.tensor(read),
            ids=tuple(self.clips[i].id for i in read),
            waveforms=padded,
            lengths=torch.tensor([len(waveform) for waveform in waveforms]),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.vocabulary.pad),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            seconds=padded.shape[1] / self.sample_rate,
            unreadable=tuple(unreadable),
        )


class SpeechDataModule(SplitDataModule[SpeechDataset]):
    """Base of the speech corpora: a subclass reads the transcripts of its layout.

    Args:
        root: folder of the corpus.
        batch_size: maximum number of clips per batch and process.
        splits: fractions of the clips, in order, for training and validation; the rest is for
            test. The defaults are the course's: 9,825, 655 and 2,620 of LJ Speech's 13,100 clips.
        alphabet: characters of the vocabulary; others become ``#``, in the references too.
        max_characters: length that longer transcripts are cut to; None keeps all. The course cuts
            at 97.
        sample_rate: rate in Hz that clips are resampled to.
        max_clips: maximum number of clips per split, the first ones; None takes all.
        evaluate_on_train: whether to validate and test on the training clips, to check that a model
            can over-fit them.
        predict_paths: WAV or FLAC files, or folders searched for them, to transcribe with
            ``predict``; if empty, the test clips.
        max_unreadable_clips: maximum number of clips to skip, per process, because they are missing
            or cannot be read. Each is reported. A batch without any readable clip stops the run.
        num_workers: number of processes that read clips. None means up to 8 with a GPU. Without a
            GPU it means 0, because reading costs little compared with a model on the same cores.
        seed: seed for shuffling.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        splits: tuple[float, float] = (0.75, 0.05),
        alphabet: str = COURSE_ALPHABET,
        max_characters: int | None = None,
        sample_rate: int = 22_050,
        max_clips: int | None = None,
        evaluate_on_train: bool = False,
        predict_paths: Sequence[str] = (),
        max_unreadable_clips: int = 0,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        if min(splits) < 0 or sum(splits) > 1:
            raise ValueError(f"splits {splits} are not fractions that leave a part of 1 for test")
        self.root = Path(root)
        self.batch_size = batch_size
        self.splits = splits
        self.vocabulary = CharacterVocabulary(alphabet)
        self.max_characters = max_characters
        self.sample_rate = sample_rate
        self.max_clips = max_clips
        self.evaluate_on_train = evaluate_on_train
        self.predict_paths = predict_paths
        self.max_unreadable_clips = max_unreadable_clips
        self.unreadable: set[str] = set()
        self.num_workers = num_workers
        self.seed = seed

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return len(self.vocabulary)

    @abstractmethod
    def read_transcripts(self) -> list[Transcript]:
        """Read the transcript of each clip of ``root``, in the order used for splitting.

        Raises:
            UserError: if the corpus is missing or malformed; names the file or line.
        """

    def prepare_data(self) -> None:
        """Check that the corpus exists.

        Raises:
            UserError: if it does not.
        """
        if not self.root.exists() and not self._predicts_files():
            raise UserError(f"{self.root} does not exist: set --data.init_args.root")

    def longest_transcript(self) -> tuple[int, str]:
        """Return the number of characters in the longest transcript, and its source."""
        clips = [clip for dataset in self.datasets.values() for clip in dataset.clips]
        lengths = [len(self.vocabulary.encode_characters(clip.text)) for clip in clips]
        longest = max(range(len(clips)), key=lengths.__getitem__)
        return lengths[longest], clips[longest].source

    # ------------------------------------------------------------------ checking and splitting

    def setup(self, stage: str) -> None:
        """Read the transcripts and clip headers that ``stage`` needs.

        Raises:
            UserError: if a line or a clip cannot be used; names it.
        """
        if self._predicts_files():
            self.datasets["predict"] = self._dataset(self._files_to_predict())
            return
        parts = self._split(self.read_transcripts())
        for split in self.missing_splits(stage):
            source = "train" if self.evaluate_on_train else split
            self.datasets[split] = self._dataset(self._inspect(split, parts[source]))

    def _split(self, transcripts: list[Transcript]) -> dict[str, list[Transcript]]:
        train = round(len(transcripts) * self.splits[0])
        val = train + round(len(transcripts) * self.splits[1])
        parts = {
            "train": transcripts[:train],
            "val": transcripts[train:val],
            "test": transcripts[val:],
        }
        return {split: part[: self.max_clips] for split, part in parts.items()}

    def _inspect(self, split: str, transcripts: list[Transcript]) -> list[Clip]:
        if not transcripts:
            raise UserError(f"{self.root} has no clips left for {split}: change splits")
        clips = []
        for id, path, text, source in track(transcripts, f"checking {split} clips", transient=True):
            tokens = self.vocabulary.encode_characters(text)
            if all(token == self.vocabulary.unknown for token in tokens):
                raise UserError(f"{source}: the transcript {text!r} has no known character")
            kept = text[: self.max_characters]
            try:
                clip = inspect_clip(id, path, self.sample_rate, source, kept)
            except UserError as error:
                # The clip keeps its index, so a run that started with it keeps its batches.
                clip = Clip(id, path, source, 0, kept)
                self._count_unreadable(clip.name, str(error))
            clips.append(clip)
        return clips

    def _count_unreadable(self, name: str, reason: str) -> None:
        if name in self.unreadable:
            return
        self.unreadable.add(name)
        if len(self.unreadable) > self.max_unreadable_clips:
            raise UserError(
                f"{reason}; to skip such clips set --data.init_args.max_unreadable_clips="
                f"{len(self.unreadable)} or more"
            )
        warnings.warn(
            f"skipped clip {len(self.unreadable)} of at most {self.max_unreadable_clips}: {reason}",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the lengths of the training clips, which decide the batches."""
        return {"samples": torch.tensor([clip.samples for clip in self.datasets["train"].clips])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the lengths of clips that can no longer be read."""
        train = self.datasets.get("train")
        if train is not None and len(train) == len(state["samples"]):
            lengths = state["samples"].tolist()
            train.clips = [
                clip if clip.samples else replace(clip, samples=samples)
                for clip, samples in zip(train.clips, lengths, strict=True)
            ]

    def on_before_batch_transfer(self, batch: SpeechBatch, dataloader_idx: int) -> SpeechBatch:
        """Count the clips that could not be read.

        Raises:
            UserError: if there are more than ``max_unreadable_clips``.
        """
        for name, reason in batch.unreadable:
            self._count_unreadable(name, reason)
        return batch

    def _predicts_files(self) -> bool:
        predicting = self.trainer is not None and self.trainer.state.fn == TrainerFn.PREDICTING
        return predicting and len(self.predict_paths) > 0

    def _files_to_predict(self) -> list[Clip]:
        files: list[Path] = []
        for path in map(Path, self.predict_paths):
            if path.is_dir():
                found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
                if not found:
                    raise UserError(f"predict_paths: the folder {path} holds no WAV or FLAC file")
                files += found
            else:
                files.append(path)
        return [inspect_clip(file.stem, file, self.sample_rate) for file in files]

    def _dataset(self, clips: list[Clip]) -> SpeechDataset:
        return SpeechDataset(clips, self.vocabulary, self.sample_rate)

    # ------------------------------------------------------------------ batching

    def make_sampler(self, split: str, *, shuffle: bool) -> LengthBucketBatchSampler:
        lengths = [clip.samples for clip in self.datasets[split].clips]
        sampler = LengthBucketBatchSampler(
            lengths,
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        rank_zero_info(
            f"{split}: {len(lengths):,} clips, {sum(lengths) / self.sample_rate / 3600:.2f} hours, "
            f"{len(sampler):,} batches of up to {self.batch_size}, "
            f"{sampler.padding():.1%} of the frames padding"
        )
        return sampler

    def loader_options(self) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
