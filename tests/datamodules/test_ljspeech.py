import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from datamodules.ljspeech import LJSpeechDataModule, read_metadata
from errors import UserError
from tests.conftest import REAL_DATA, SAMPLE_RATE, speak_tones


def test_the_courses_split_of_lj_speech_is_exact(tmp_path: Path) -> None:
    lines = (f"LJ-{i}|a|a\n" for i in range(13_100))
    (tmp_path / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    data = LJSpeechDataModule(root=str(tmp_path))
    parts = data.split_transcripts()
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 9825,
        "val": 655,
        "test": 2620,
    }
    assert [part[0].id for part in parts.values()] == ["LJ-0", "LJ-9825", "LJ-10480"]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_batches_hold_padded_waveforms_and_tokens_with_their_lengths(
    has_gpu: bool, tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LJSpeechDataModule, "_is_on_gpu", lambda _: has_gpu)
    monkeypatch.setattr(LJSpeechDataModule, "loader_options", lambda _: {"num_workers": 0})
    data = LJSpeechDataModule(root=str(tones), batch_size=8)
    data.setup("fit")
    texts = {id: text for id, text, _ in read_metadata(tones / "metadata.csv")}
    assert [len(data.datasets[split]) for split in ("train", "val")] == [30, 2]
    seen = []
    for batch in data.train_dataloader():
        quarters = -(-batch.lengths.max() // (SAMPLE_RATE // 4))
        width = quarters * (SAMPLE_RATE // 4) if has_gpu else batch.lengths.max()
        assert batch.waveforms.shape == (len(batch.indices), width)
        longest = batch.token_lengths.max()
        columns = longest
        if has_gpu:  # a multiple of 32, but not more than the longest text of all
            columns = min(32 * -(-longest // 32), max(map(len, list(texts.values())[:30])) + 2)
        assert batch.tokens.shape == (len(batch.indices), columns)
        for row, index in enumerate(batch.indices.tolist()):
            clip = data.datasets["train"].clips[index]
            samples, tokens = batch.lengths[row], batch.token_lengths[row]
            expected = torch.from_numpy(speak_tones(texts[clip.id]))
            torch.testing.assert_close(batch.waveforms[row, :samples], expected, atol=1e-4, rtol=0)
            assert not batch.waveforms[row, samples:].any()
            assert data.vocabulary.decode(batch.tokens[row].tolist()) == texts[clip.id]
            assert (batch.tokens[row, tokens:] == data.vocabulary.pad).all()
            seen.append(clip.id)
    assert sorted(seen) == sorted(texts)[:30]
    assert max(data.make_sampler("train", shuffle=False).sizes) == (30 if has_gpu else 8)


def test_workers_change_nothing(tones: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = LJSpeechDataModule(root=str(tones), batch_size=8, num_workers=workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for alone, helped in zip(*batches, strict=True):
        for a, b in zip(alone, helped, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_clip_of_another_rate_is_resampled(own_tones: Path) -> None:
    text = "abcdefgh"
    soundfile.write(own_tones / "wavs" / "T-000.wav", speak_tones(text, 16_000), 16_000)
    data = LJSpeechDataModule(root=str(own_tones), splits=(1.0, 0.0), evaluate_on_train=True)
    data.setup("fit")
    batch = data.datasets["train"][[0]]
    expected = speak_tones(text)
    assert abs(batch.lengths.item() - len(expected)) < 20
    spectra = [np.abs(np.fft.rfft(w, 8192)) for w in (batch.waveforms[0].numpy(), expected)]
    similarity = spectra[0] @ spectra[1] / np.linalg.norm(spectra[0]) / np.linalg.norm(spectra[1])
    assert similarity > 0.99


def test_max_characters_cuts_transcripts(own_tones: Path) -> None:
    data = LJSpeechDataModule(root=str(own_tones), max_characters=3)
    data.setup("test")
    assert {len(clip.text) for clip in data.datasets["test"].clips} == {3}


def spoil(kind: str, root: Path) -> None:
    wav, metadata = root / "wavs" / "T-001.wav", root / "metadata.csv"
    lines = metadata.read_text(encoding="utf-8").splitlines()
    if kind == "missing clip":
        wav.unlink()
    elif kind == "corrupt clip":
        wav.write_bytes(b"RIFF" + b"\0" * 100)
    elif kind == "empty file":
        wav.write_bytes(b"")
    elif kind == "empty clip":
        soundfile.write(wav, np.zeros(0), SAMPLE_RATE)
    elif kind == "one field":
        lines[1] = "T-001"
    elif kind == "four fields":
        lines[1] = "T-001|a|b|c"
    elif kind == "unknown characters":
        lines[1] = "T-001|ÄÖ|äö"
    elif kind == "no transcript":
        lines[1] = "T-001||"
    elif kind == "path as id":
        lines[1] = "../T-001|a|a"
    elif kind == "same id":
        lines[1] = lines[0]
    metadata.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if kind == "not text":
        metadata.write_bytes(b"\xff\xfe\x00")
    elif kind == "empty metadata":
        metadata.write_bytes(b"")
    elif kind == "no metadata":
        metadata.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing clip", r"T-001\.wav \(.*metadata\.csv line 2\) does not exist"),
        ("corrupt clip", r"T-001\.wav \(.*metadata\.csv line 2\) is not a readable"),
        ("empty file", r"T-001\.wav \(.*metadata\.csv line 2\) is not a readable"),
        ("empty clip", r"T-001\.wav \(.*metadata\.csv line 2\) is empty"),
        ("one field", r"metadata\.csv line 2 has 1 field\(s\)"),
        ("four fields", r"metadata\.csv line 2 has 4 field\(s\)"),
        ("unknown characters", r"metadata\.csv line 2: the transcript 'äö' has no known character"),
        ("no transcript", r"metadata\.csv line 2: the transcript '' has no known character"),
        ("path as id", r"metadata\.csv line 2: the id '\.\./T-001' is not a plain file name"),
        ("same id", r"metadata\.csv line 2 repeats the id T-000"),
        ("not text", r"metadata\.csv is not UTF-8 text"),
        ("empty metadata", r"metadata\.csv is empty: it needs a line id\|"),
        ("no metadata", r"metadata\.csv does not exist: it should hold one line id\|"),
    ],
)
def test_errors_in_the_corpus_are_named(kind: str, message: str, own_tones: Path) -> None:
    spoil(kind, own_tones)
    with pytest.raises(UserError, match=message):
        LJSpeechDataModule(root=str(own_tones)).setup("fit")


def test_ends_of_lines_and_of_the_file_do_not_matter(own_tones: Path) -> None:
    metadata = own_tones / "metadata.csv"
    expected = read_metadata(metadata)
    metadata.write_bytes(metadata.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_metadata(metadata) == expected
    metadata.write_bytes(b"\xef\xbb\xbf" + metadata.read_bytes())  # a byte order mark
    assert read_metadata(metadata) == expected
    metadata.write_bytes(b"\n" + metadata.read_bytes())
    with pytest.raises(UserError, match=r"metadata\.csv line 1 has 1 field"):
        read_metadata(metadata)


def test_the_case_of_a_suffix_does_not_matter(own_tones: Path) -> None:
    clip = own_tones / "wavs" / "T-000.wav"
    clip.rename(clip.with_suffix(".WAV"))
    transcripts = LJSpeechDataModule(root=str(own_tones)).read_transcripts()
    assert transcripts[0].path == clip.with_suffix(".WAV")


def test_a_clip_that_changes_during_the_run_is_named(own_tones: Path) -> None:
    data = LJSpeechDataModule(root=str(own_tones), splits=(0.5, 0.25))
    data.setup("fit")
    soundfile.write(own_tones / "wavs" / "T-001.wav", np.zeros(10), SAMPLE_RATE)
    batch = data.datasets["train"][[0, 1]]
    with pytest.raises(UserError, match=r"T-001\.wav \(.*line 2\) has 10 samples where"):
        data.on_before_batch_transfer(batch, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"splits": (0.9, 0.2)}, r"splits \(0.9, 0.2\)"),
        ({"splits": (math.nan, 0.2)}, r"splits \(nan, 0.2\)"),
        ({"max_batch_seconds": math.nan}, "max_batch_seconds nan is not above 0"),
        ({"max_characters": -1}, "max_characters -1 is less than 1"),
        ({"channel": -1}, "channel -1 is negative"),
        ({"max_unreadable_clips": -1}, "max_unreadable_clips -1 is negative"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LJSpeechDataModule(**settings)


@pytest.mark.skipif(
    not (REAL_DATA / "LJSpeech-1.1").exists(), reason="the real LJ Speech clips are not here"
)
def test_real_clips_are_read_whole() -> None:
    data = LJSpeechDataModule(root=str(REAL_DATA / "LJSpeech-1.1"))
    data.setup("fit")
    data.setup("test")
    clips = [clip for dataset in data.datasets.values() for clip in dataset.clips]
    assert len(clips) == 385
    seconds = sum(clip.samples for clip in clips) / SAMPLE_RATE
    assert seconds / 60 == pytest.approx(41.7, abs=0.05)
    first = data.datasets["train"][[0]]
    assert first.waveforms.abs().max() > 0.1
    assert data.vocabulary.decode(first.tokens[0].tolist()).startswith("printing, in the only")
