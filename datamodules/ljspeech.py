"""LJ Speech (Ito and Johnson 2017): one reader, 13,100 clips, about 24 hours."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import track

from datamodules.download import check_digest, download, unpack_folder
from datamodules.sampling import LengthBucketBatchSampler
from datamodules.speech import Clip, SpeechBatch, SpeechDataset, inspect_clip
from datamodules.splits import SplitDataModule
from datamodules.vocabulary import COURSE_ALPHABET, CharacterVocabulary
from errors import UserError

ARCHIVE_URL = "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"
ARCHIVE_SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
LONGEST_LINE = 100_000
"""Characters of a line of metadata.csv; LJ Speech's longest has fewer than 400."""
AUDIO_SUFFIXES = {".wav", ".flac"}


class LJSpeechDataModule(SplitDataModule[SpeechDataset]):
    """Clips and transcripts in LJ Speech's layout, batched by length.

    Args:
        root: folder with ``metadata.csv`` (lines ``id|transcript|normalized transcript``, unquoted)
            and ``wavs/<id>.wav``. If it does not exist, the official archive is downloaded.
        batch_size: most clips in a batch of one process.
        splits: fractions of the clips, in order, for training and validation; the rest is for
            test. The course's on 13,100 clips give 9,825, 655 and 2,620.
        alphabet: characters of the vocabulary; others become ``#``, in the references too.
        max_characters: cut longer transcripts; None keeps all. The course cuts at 97.
        sample_rate: in Hz; clips of another are resampled.
        max_clips: most clips of each split, the first ones; None takes all.
        evaluate_on_train: validate and test on the training clips, to check that a model can
            over-fit them.
        predict_paths: WAV or FLAC files, or folders searched for them, to transcribe with
            ``predict``; without any, the test clips.
        max_faulty_clips: most clips that are skipped, and reported, because they are missing or
            cannot be read; one more stops the run, and so does a batch of which none can be read.
            With several processes, of each.
        num_workers: processes that read clips; None means none where there is no GPU, because
            reading costs little beside a model on the same cores, and up to 8 where there is one.
        seed: of the shuffling.
        url: of the archive.
        sha256: of the archive.
    """

    def __init__(
        self,
        root: str = "data/LJSpeech-1.1",
        batch_size: int = 64,
        splits: tuple[float, float] = (0.75, 0.05),
        alphabet: str = COURSE_ALPHABET,
        max_characters: int | None = None,
        sample_rate: int = 22_050,
        max_clips: int | None = None,
        evaluate_on_train: bool = False,
        predict_paths: Sequence[str] = (),
        max_faulty_clips: int = 0,
        num_workers: int | None = None,
        seed: int = 0,
        url: str = ARCHIVE_URL,
        sha256: str = ARCHIVE_SHA256,
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
        self.max_faulty_clips = max_faulty_clips
        self.faults: set[str] = set()
        self.num_workers = num_workers
        self.seed = seed
        self.url = url
        self.sha256 = sha256

    @property
    def vocabulary_size(self) -> int:
        """Return the number of tokens."""
        return len(self.vocabulary)

    # ------------------------------------------------------------------ getting the data

    def prepare_data(self) -> None:
        """Download and unpack the archive if ``root`` does not exist; one process does.

        Raises:
            UserError: if that fails; says what to do instead.
        """
        if not self.root.exists() and not self._predicts_files():
            self.make_root()

    def make_root(self) -> None:
        """Make ``root``, whole or not at all."""
        archive = self.root.with_name("LJSpeech-1.1.tar.bz2")
        downloads = not archive.exists()
        if downloads:
            rank_zero_info(f"{self.root} does not exist: downloading LJ Speech 1.1 (2.6 GB)")
            try:
                download(self.url, archive, f"sha256:{self.sha256}")
            except UserError as error:
                raise UserError(
                    f"{error}. {self.root} does not exist: put the archive at {archive} by hand, "
                    "name another folder with --data.init_args.root, or add "
                    "--config configs/demo/speech.yaml to train on generated speech"
                ) from error
        else:
            check_digest(archive, f"sha256:{self.sha256}")
        unpack_folder(archive, "LJSpeech-1.1", self.root)
        if downloads:
            archive.unlink()

    # ------------------------------------------------------------------ checking and splitting

    def setup(self, stage: str) -> None:
        """Read transcripts and clip headers of what ``stage`` needs.

        Raises:
            UserError: if a line or a clip is not as it should be; names it.
        """
        if self._predicts_files():
            self.datasets["predict"] = self._dataset(self._files_to_predict())
            return
        lines = self._split_lines()
        for split in self.missing_splits(stage):
            source = "train" if self.evaluate_on_train else split
            self.datasets[split] = self._dataset(self._inspect(split, lines[source]))

    def _split_lines(self) -> dict[str, list[tuple[str, str, str]]]:
        lines = read_metadata(self.root / "metadata.csv")
        train = round(len(lines) * self.splits[0])
        val = train + round(len(lines) * self.splits[1])
        parts = {"train": lines[:train], "val": lines[train:val], "test": lines[val:]}
        return {split: part[: self.max_clips] for split, part in parts.items()}

    def _inspect(self, split: str, lines: list[tuple[str, str, str]]) -> list[Clip]:
        if not lines:
            raise UserError(f"{self.root} has no clips left for {split}: change splits")
        clips = []
        for id, text, source in track(lines, f"checking {split} clips", transient=True):
            path = self.root / "wavs" / f"{id}.wav"
            tokens = self.vocabulary.encode_characters(text)
            if all(token == self.vocabulary.unknown for token in tokens):
                raise UserError(f"{source}: the transcript {text!r} has no known character")
            kept = text[: self.max_characters]
            try:
                clip = inspect_clip(id, path, self.sample_rate, source, kept)
            except UserError as error:
                # It keeps its place: a run that began with it goes on with the same batches.
                clip = Clip(id, path, source, 0, kept)
                self.count_fault(clip.name, str(error))
            clips.append(clip)
        return clips

    def count_fault(self, name: str, fault: str) -> None:
        """Report a clip that is skipped.

        Raises:
            UserError: if it is one too many.
        """
        if name in self.faults:
            return
        self.faults.add(name)
        if len(self.faults) > self.max_faulty_clips:
            raise UserError(
                f"{fault}; --data.init_args.max_faulty_clips={self.max_faulty_clips} is how many "
                "such clips are skipped"
            )
        warnings.warn(
            f"skipped clip {len(self.faults)} of at most {self.max_faulty_clips}: {fault}",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        """Add the training clips' lengths, which decide their batches."""
        lengths = torch.tensor([clip.samples for clip in self.datasets["train"].clips])
        return {**super().state_dict(), "samples": lengths}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the lengths of clips that cannot be read any more."""
        super().load_state_dict(state)
        train = self.datasets.get("train")
        if train is not None and len(train) == len(state["samples"]):
            lengths = state["samples"].tolist()
            train.clips = [
                clip if clip.samples else replace(clip, samples=samples)
                for clip, samples in zip(train.clips, lengths, strict=True)
            ]

    def on_before_batch_transfer(self, batch: SpeechBatch, dataloader_idx: int) -> SpeechBatch:
        """Count what the readers have skipped."""
        for name, fault in batch.faults:
            self.count_fault(name, fault)
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
        """Return the batches of a split."""
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


def read_metadata(path: Path) -> list[tuple[str, str, str]]:
    """Read ``id|transcript|normalized transcript`` lines; the last field counts.

    Returns:
        For each line the clip's id, its normalized transcript, and the line's name for messages.

    Raises:
        UserError: if the file is missing or a line is malformed; names the line.
    """
    records = []
    seen: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        source = f"{path} line {number}"
        fields = line.split("|")
        if len(fields) not in (2, 3):
            raise UserError(
                f"{source} has {len(fields)} field(s) instead of id|transcript|normalized text"
            )
        id, text = fields[0], fields[-1].strip()
        if not id or id != Path(id).name:
            raise UserError(f"{source}: the id {id!r} is not a plain file name")
        if id in seen:
            raise UserError(f"{source} repeats the id {id} of {seen[id]}")
        seen[id] = source
        records.append((id, text, source))
    return records


def read_lines(path: Path) -> Iterator[str]:
    """Return a text file's lines without their ends, and without blank lines at its end.

    A file of one endless line is not read whole.

    Raises:
        UserError: if the file is missing, is not UTF-8, or has a line of more than `LONGEST_LINE`.
    """
    try:
        with path.open(encoding="utf-8") as file:
            number = blank = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path} line {number} has more than {LONGEST_LINE:,} characters instead "
                        "of id|transcript|normalized text"
                    )
                if line == "\n":
                    blank += 1
                    continue
                yield from [""] * blank
                blank = 0
                yield line.rstrip("\n")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: {path.parent} is not in LJ Speech's layout"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
