import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pytorch_lightning import LightningDataModule

from datamodules import MultiCorpusDataModule, TranscriptDataModule
from datamodules.ljspeech import LJSpeechDataModule, read_metadata
from datamodules.speech import SpeechDataModule, Transcript
from errors import UserError
from tests.conftest import SAMPLE_RATE


class PairsDataModule(SpeechDataModule):
    """Pairs of files ``name.flac`` and ``name.txt`` in one folder."""

    def read_transcripts(self) -> list[Transcript]:
        return [
            Transcript(
                path.stem, path.with_suffix(".flac"), path.read_text(encoding="utf-8"), str(path)
            )
            for path in sorted(self.root.glob("*.txt"))
        ]


class MadeDataModule(PairsDataModule):
    """A corpus that makes its folder, as one from outside this project does."""

    def prepare_data(self) -> None:
        self.root.mkdir()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda corpus: TranscriptDataModule(corpus=corpus),
        lambda corpus: MultiCorpusDataModule(corpora=[corpus]),
    ],
)
def test_a_corpus_is_prepared_in_its_own_way(
    wrap: Callable[[SpeechDataModule], LightningDataModule], tmp_path: Path
) -> None:
    wrap(MadeDataModule(str(tmp_path / "made"))).prepare_data()
    assert (tmp_path / "made").is_dir()


@pytest.fixture
def pairs(tones: Path, tmp_path: Path) -> Path:
    """The clips of ``tones`` as pairs of files."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for id, text, _ in read_metadata(tones / "metadata.csv"):
        samples, _ = soundfile.read(tones / "wavs" / f"{id}.wav")
        soundfile.write(folder / f"{id}.flac", samples, SAMPLE_RATE)
        (folder / f"{id}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_corpus_in_a_custom_layout_needs_one_method(
    pairs: Path, small: list[str], run_cli: Callable[..., Path]
) -> None:
    data = ["--data", "tests.datamodules.test_speech.PairsDataModule"]
    data += ["--data.init_args.root", str(pairs), "--data.init_args.splits=[0.6,0.2]"]
    run = run_cli("fit", *small, *data, "--trainer.max_epochs=1")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3  # 24 clips in batches of 8


def test_the_layout_changes_nothing_but_where_clips_are_found(pairs: Path, tones: Path) -> None:
    modules = (PairsDataModule(str(pairs), batch_size=8), LJSpeechDataModule(str(tones)))
    batches = []
    for module in modules:
        module.setup("test")
        batches.append(module.datasets["test"][[0, 3]])
    ours, theirs = batches
    assert ours.ids == theirs.ids == ("T-032", "T-035")
    assert torch.equal(ours.waveforms, theirs.waveforms)
    assert torch.equal(ours.tokens, theirs.tokens)


def test_errors_in_a_custom_corpus_are_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: set --data\.init_args\.root"):
        PairsDataModule(str(tmp_path / "nowhere")).prepare_data()
    (pairs / "T-001.flac").unlink()
    with pytest.raises(UserError, match=r"T-001\.flac \(.*T-001\.txt\) does not exist"):
        PairsDataModule(str(pairs)).setup("fit")


@pytest.mark.filterwarnings("error")
def test_unreadable_clips_are_left_out_counted_once_and_named(pairs: Path) -> None:
    data = PairsDataModule(str(pairs), max_unreadable_clips=1)
    data.setup("fit")
    for name in ("T-001", "T-002"):
        (pairs / f"{name}.flac").write_bytes(b"noise")
    batch = data.datasets["train"][[0, 1, 3]]
    assert batch.ids == ("T-000", "T-003")
    assert batch.indices.tolist() == [0, 3]
    with pytest.warns(UserWarning, match=r"skipped clip 1 of at most 1: .*T-001\.flac"):
        data.on_before_batch_transfer(batch, 0)
    data.on_before_batch_transfer(batch, 0)  # silent: warnings are errors
    with pytest.raises(UserError, match=r"T-002\.flac .*set .*max_unreadable_clips=2 or more"):
        data.on_before_batch_transfer(data.datasets["train"][[2, 3]], 0)
    with pytest.raises(UserError, match=r"T-002\.flac .*nor can any other clip of its batch"):
        data.datasets["train"][[1, 2]]


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_an_empty_clip_is_left_out(pairs: Path) -> None:
    soundfile.write(pairs / "T-001.flac", np.zeros(0), SAMPLE_RATE)
    data = PairsDataModule(str(pairs), max_unreadable_clips=1)
    data.setup("fit")
    assert data.datasets["train"][[0, 1]].ids == ("T-000",)


def test_a_jobs_workers_are_as_many_as_its_own_cores(
    tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setattr(LJSpeechDataModule, "_is_on_gpu", lambda data: True)
    assert LJSpeechDataModule(str(tones)).loader_options()["num_workers"] == 3
