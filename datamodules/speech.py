"""Speech corpora of any layout: split, checked, bucketed by length and batched."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import track

from datamodules.augment import ClipAugment
from datamodules.clips import Clip, find_recordings, inspect_clip
from datamodules.sampling import LengthBucketBatchSampler
from datamodules.speech_dataset import SpeechBatch, SpeechDataset
from datamodules.splits import SplitDataModule
from datamodules.vocabulary import COURSE_ALPHABET, CharacterVocabulary
from errors import UserError
from metrics import normalize_transcript

SPLITS = ("train", "val", "test")
EVALUATION_TIMES = 4
"""On a GPU, the size of all other batches relative to those of training."""


class Transcript(NamedTuple):
    """Transcript of an audio file.

    Attributes:
        id: name of the clip, unique in its corpus.
        path: audio file.
        text: words spoken.
        source: where the transcript was read, for messages.
        split: train, val or test; None if the corpus does not name splits.
    """

    id: str
    path: Path
    text: str
    source: str
    split: str | None = None


class SpeechDataModule(SplitDataModule[SpeechDataset]):
    """Base of the speech corpora: a subclass reads the transcripts of its layout.

    Args:
        root: folder of the corpus.
        batch_size: maximum number of clips per batch and process. On a GPU, all but training
            takes four times as many, and four times ``max_batch_seconds``.
        max_batch_seconds: maximum seconds per batch and process, padding and the slowest speed of
            ``augment`` included; None for no limit. A longer clip gets a batch of its own.
        splits: fractions of the clips, in order, for training and validation; the rest is for
            test. The defaults are the course's: 9,825, 655 and 2,620 of LJ Speech's 13,100 clips.
        alphabet: characters of the vocabulary; others become ``#``, in the references too.
        max_characters: length that longer transcripts are cut to; None keeps all. The course cuts
            at 97.
        normalize_text: how to unify the transcripts of corpora that differ: ``lower`` for lower
            case, ``letters`` for letters, digits, apostrophes and single spaces only
            (`normalize_transcript`); None leaves them as they are.
        sample_rate: rate in Hz that clips are resampled to.
        channel: number of the channel to read, from 0; None averages the channels.
        augment: augmentation of the training clips; none by default.
        max_clips: maximum number of clips per split, the first ones; None takes all.
        evaluate_on_train: whether to validate and test on the training clips, to check that a model
            can over-fit them.
        predict_paths: audio files, or folders searched for them, to transcribe with ``predict``; if
            empty, the test clips.
        max_unreadable_clips: maximum number of clips to skip, per process, because they are missing
            or cannot be read. Each is reported. A batch without any readable clip stops the run.
        num_workers: number of processes that read clips. None means up to 8 on a GPU. On the CPU
            it means 0, because reading costs little compared with a model on the same cores.
        seed: seed for shuffling; by default the run's.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        max_batch_seconds: float | None = None,
        splits: tuple[float, float] = (0.75, 0.05),
        alphabet: str = COURSE_ALPHABET,
        max_characters: int | None = None,
        normalize_text: Literal["lower", "letters"] | None = None,
        sample_rate: int = 22_050,
        channel: int | None = None,
        augment: ClipAugment | None = None,
        max_clips: int | None = None,
        evaluate_on_train: bool = False,
        predict_paths: Sequence[str] = (),
        max_unreadable_clips: int = 0,
        num_workers: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers {num_workers} is negative")
        if seed is not None and seed < 0:
            raise ValueError(f"seed {seed} is negative")
        if max_clips is not None and max_clips < 1:
            raise ValueError(f"max_clips {max_clips} is less than 1")
        if max_characters is not None and max_characters < 1:
            raise ValueError(f"max_characters {max_characters} is less than 1")
        for name, count in (("channel", channel), ("max_unreadable_clips", max_unreadable_clips)):
            if count is not None and count < 0:
                raise ValueError(f"{name} {count} is negative")
        if max_batch_seconds is not None and not max_batch_seconds > 0:
            raise ValueError(f"max_batch_seconds {max_batch_seconds} is not above 0")
        if not (min(splits) >= 0 and sum(splits) <= 1):
            raise ValueError(f"splits {splits} are not fractions that leave a part of 1 for test")
        self.root = Path(root)
        self.batch_size = batch_size
        self.max_batch_seconds = max_batch_seconds
        self.splits = splits
        self.vocabulary = CharacterVocabulary(alphabet)
        self.max_characters = max_characters
        self.normalize_text = normalize_text
        self.sample_rate = sample_rate
        self.channel = channel
        self.augment = augment
        self.max_clips = max_clips
        self.evaluate_on_train = evaluate_on_train
        self.predict_paths = predict_paths
        self.max_unreadable_clips = max_unreadable_clips
        self.unreadable: dict[str, str] = {}  # the reason by the clip's name
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
        """Get the corpus unless other recordings are to be predicted; runs in one process.

        Raises:
            UserError: if this fails.
        """
        if not self._predicts_files():
            self.get_corpus()

    def get_corpus(self) -> None:
        """Download or create the corpus if it is missing; by default, only check.

        Raises:
            UserError: if it is still missing.
        """
        if not self.is_present():
            raise UserError(f"{self.root} does not exist: set --data.init_args.root")

    def is_present(self) -> bool:
        """Return whether the corpus is on this machine."""
        return self.root.exists()

    def longest_clip(self) -> float:
        """Return the length of the longest training clip in seconds."""
        return max(clip.samples for clip in self.datasets["train"].clips) / self.sample_rate

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
        parts = self.split_transcripts()
        for split in self.missing_splits(stage):
            source = "train" if self.evaluate_on_train else split
            clips = self.inspect_clips(split, parts[source])
            augment = self.augment if split == "train" else None
            if augment is not None:
                augment.check(self.sample_rate)
            self.datasets[split] = self._dataset(clips, augment)

    def split_transcripts(self) -> dict[str, list[Transcript]]:
        """Return each split's normalized transcripts.

        The corpus may name every clip's split; otherwise ``splits`` divides the clips in order.

        Raises:
            UserError: if the corpus is missing or malformed, or an id occurs twice; names the file
                or line.
        """
        transcripts = self.read_transcripts()
        seen: dict[str, str] = {}
        for transcript in transcripts:
            if transcript.id in seen:
                raise UserError(
                    f"{transcript.source} repeats the id {transcript.id} of {seen[transcript.id]}: "
                    "ids must differ"
                )
            seen[transcript.id] = transcript.source
        if self.normalize_text is not None:
            normalize = str.lower if self.normalize_text == "lower" else normalize_transcript
            transcripts = [t._replace(text=normalize(t.text)) for t in transcripts]
        unsplit = [t for t in transcripts if t.split is None]
        if len(unsplit) < len(transcripts):
            if unsplit:
                raise UserError(
                    f"{unsplit[0].source} has no split, but other clips have one: "
                    "give every clip a split, or none"
                )
            parts = {split: [t for t in transcripts if t.split == split] for split in SPLITS}
        else:
            train = round(len(transcripts) * self.splits[0])
            val = train + round(len(transcripts) * self.splits[1])
            parts = {
                "train": transcripts[:train],
                "val": transcripts[train:val],
                "test": transcripts[val:],
            }
        return {split: part[: self.max_clips] for split, part in parts.items()}

    def inspect_clips(self, split: str, transcripts: list[Transcript]) -> list[Clip]:
        """Read the header of each clip; an unreadable clip gets length 0.

        Raises:
            UserError: if there are no clips, a transcript has no known character, or too many
                clips are unreadable.
        """
        if not transcripts:
            raise UserError(f"{self.root} has no clips left for {split}: change splits")
        clips = []
        for transcript in track(transcripts, f"checking {split} clips", transient=True):
            id, path, text, source, _ = transcript
            if not self.vocabulary.knows(text):
                raise UserError(f"{source}: the transcript {text!r} has no known character")
            kept = text[: self.max_characters]
            try:
                clip = inspect_clip(id, path, self.sample_rate, source, kept, self.channel)
            except UserError as error:
                # The clip keeps its index, so a run that started with it keeps its batches.
                clip = Clip(id, path, source, 0, kept)
                self._count_unreadable(clip.name, str(error))
            clips.append(clip)
        return clips

    def _count_unreadable(self, name: str, reason: str) -> None:
        if name in self.unreadable:
            return
        self.unreadable[name] = reason
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
        files = find_recordings(self.predict_paths, "predict_paths")
        seen: dict[str, Path] = {}
        for file in files:
            if seen.setdefault(file.stem, file) != file:
                raise UserError(
                    f"{seen[file.stem]} and {file} would both be {file.stem} in predictions.csv: "
                    "use predict RUN PATH, which writes their paths"
                )
        return [
            inspect_clip(file.stem, file, self.sample_rate, channel=self.channel) for file in files
        ]

    def _dataset(self, clips: list[Clip], augment: ClipAugment | None = None) -> SpeechDataset:
        return SpeechDataset(
            clips,
            self.vocabulary,
            self.sample_rate,
            self.channel,
            augment,
            multiple=self._multiple(),
            token_multiple=32 if self._is_on_gpu() else 1,
        )

    def _is_on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _multiple(self) -> int:
        """Return the number of samples that batches are padded to a multiple of.

        On a GPU, the first batch of each new shape takes longer, above all with `CUDAGraphs`.
        """
        return self.sample_rate // 4 if self._is_on_gpu() else 1

    # ------------------------------------------------------------------ batching

    def make_sampler(self, split: str, *, shuffle: bool) -> LengthBucketBatchSampler:
        lengths = spread_unreadable([clip.samples for clip in self.datasets[split].clips])
        # The steps of decoding are too small to keep a GPU busy.
        times = EVALUATION_TIMES if not shuffle and self._is_on_gpu() else 1
        longest = None
        if self.max_batch_seconds is not None:
            slowest = min(self.augment.speeds) if shuffle and self.augment else 1.0
            longest = int(times * self.max_batch_seconds * self.sample_rate * min(slowest, 1.0))
        sampler = LengthBucketBatchSampler(
            lengths,
            times * self.batch_size,
            longest,
            multiple=self._multiple(),
            shuffle=shuffle,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        rank_zero_info(
            f"{split}: {len(lengths):,} clips, {sum(lengths) / self.sample_rate / 3600:.2f} hours, "
            f"{len(sampler):,} batches of up to {max(sampler.sizes)} clips, "
            f"{sampler.padding():.1%} of the frames padding"
        )
        return sampler

    def loader_options(self) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            workers = min(8, count_cores()) if self._is_on_gpu() else 0
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._is_on_gpu(),
        }


def count_cores() -> int:
    """Return the number of cores that this process may use: fewer than the machine's in a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def spread_unreadable(lengths: list[int]) -> list[int]:
    """Replace zeros, the lengths of unreadable clips, by lengths spread over those of the others.

    Alike in length, unreadable clips would fill a batch, and a batch without any other clip stops
    the run.
    """
    known, missing = sorted(length for length in lengths if length), lengths.count(0)
    if not known or not missing:
        return lengths
    places = iter(known[(2 * i + 1) * len(known) // (2 * missing)] for i in range(missing))
    return [length or next(places) for length in lengths]
