"""Corpora of any layout, audio format and spelling; several as one; augmentation."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import cli
from datamodules import ClipAugment, LJSpeechDataModule, ManifestDataModule, MultiCorpusDataModule
from datamodules.clips import inspect_clip, read_clip
from datamodules.ljspeech import read_metadata
from errors import UserError
from tests.conftest import SAMPLE_RATE, speak_tones


def write_manifest(path: Path, entries: list[Any]) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def entries_of(tones: Path, **more: Any) -> list[dict[str, Any]]:
    return [
        {"audio_filepath": str(tones / "wavs" / f"{id}.wav"), "text": text, **more}
        for id, text, _ in read_metadata(tones / "metadata.csv")
    ]


def test_a_manifest_holds_the_same_clips_as_ljspeechs_layout(tones: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", entries_of(tones, duration=1.0))
    ours, theirs = ManifestDataModule(str(manifest)), LJSpeechDataModule(str(tones))
    for module in (ours, theirs):
        module.prepare_data()
        module.setup("test")
    a, b = (module.datasets["test"][[0, 3]] for module in (ours, theirs))
    assert torch.equal(a.waveforms, b.waveforms)
    assert torch.equal(a.tokens, b.tokens)


def test_splits_named_in_a_manifest_are_kept(tones: Path, tmp_path: Path) -> None:
    entries = entries_of(tones)
    for i, entry in enumerate(entries):
        entry["split"] = ("val", "test", "train", "train")[i % 4]
    data = ManifestDataModule(str(write_manifest(tmp_path / "m.jsonl", entries)))
    parts = data.split_transcripts()
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 20,
        "val": 10,
        "test": 10,
    }
    assert parts["val"][1].path == tones / "wavs" / "T-004.wav"
    entries[3].pop("split")
    data = ManifestDataModule(str(write_manifest(tmp_path / "m.jsonl", entries)))
    with pytest.raises(UserError, match=r"m\.jsonl line 4 has no split, but other clips have one"):
        data.split_transcripts()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"m\.jsonl is empty"),
        (["{"], r"m\.jsonl line 1 is not JSON"),
        (["[1]"], r"line 1 is not a JSON object"),
        ([{"text": "a"}], r"line 1 lacks the field 'audio_filepath'"),
        ([{"audio_filepath": "a.wav", "text": 1}], r"line 1 lacks the field 'text'"),
        (
            [{"audio_filepath": "a.wav", "text": "a", "split": "dev"}],
            r"split 'dev' must be one of",
        ),
        ([{"audio_filepath": "a.wav", "text": "a", "offset": 1.5}], r"line 1 has the offset 1\.5"),
        ([{"audio_filepath": "a.wav", "text": "a", "id": "a|b"}], r"the id 'a\|b' must not"),
        ([{"audio_filepath": "a.wav", "text": "a", "id": "a\n"}], r"the id 'a\\n' must not"),
        ([{"audio_filepath": "a.wav", "text": "a"}], r"a\.wav \(.*line 1\) does not exist"),
        ([{"audio_filepath": "a.wav", "text": "!!"}], r"line 1: .*'!!' has no known character"),
    ],
)
def test_a_wrong_manifest_is_named_in_one_line(
    entries: list[Any], message: str, tmp_path: Path, small: list[str], fail_cli: Callable[..., str]
) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", entries)
    data = ["--data=datamodules.ManifestDataModule", f"--data.init_args.root={manifest}"]
    found = fail_cli("fit", *small, *data, "--data.init_args.splits=[1,0]")
    assert re.search(message, found), found


def test_a_folder_is_no_manifest(tones: Path) -> None:
    with pytest.raises(UserError, match=r"tones is no file .*: it should hold one line"):
        ManifestDataModule(str(tones)).read_transcripts()


def test_several_corpora_are_trained_on_together(
    tones: Path, own_tones: Path, tmp_path: Path, small: list[str], run_cli: Callable[..., Path]
) -> None:
    """Each with its own splits; from the command line."""
    manifest = write_manifest(tmp_path / "m.jsonl", entries_of(own_tones, split="train"))
    corpora = [
        {
            "class_path": "LJSpeechDataModule",
            "init_args": {"root": str(tones), "splits": [0.6, 0.2]},
        },
        {"class_path": "ManifestDataModule", "init_args": {"root": str(manifest)}},
    ]
    for corpus in corpora:
        corpus["class_path"] = f"datamodules.{corpus['class_path']}"
    config = tmp_path / "both.yaml"
    data = {"class_path": "datamodules.MultiCorpusDataModule", "init_args": {"corpora": corpora}}
    config.write_text(json.dumps({"data": data}))
    small = small[:2]
    run = run_cli("fit", *small, "--config", config, "--trainer.max_epochs=1")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    run_cli("test", *small, "--config", config)
    lines = (run / "test_transcripts.csv").read_text().splitlines()
    assert len(lines) == 8  # of the first corpus
    manifest.unlink()
    with pytest.raises(SystemExit, match=r"error: [^,]*m\.jsonl, the data of .*, does not exist"):
        cli.main(["report", str(run)])
    # Files are transcribed without the corpora.
    files = f"--data.init_args.predict_paths=[{tones / 'wavs' / 'T-000.wav'}]"
    run_cli("predict", *small, "--config", config, files)
    assert len((run / "predictions.csv").read_text().splitlines()) == 1


def test_two_clips_with_one_id_are_refused(tones: Path) -> None:
    corpora = [LJSpeechDataModule(str(tones)), LJSpeechDataModule(str(tones))]
    with pytest.raises(UserError, match=r"line 1 repeats the id T-000 of .*metadata\.csv line 1"):
        MultiCorpusDataModule(corpora).setup("fit")
    with pytest.raises(ValueError, match="corpora is empty"):
        MultiCorpusDataModule([])


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3"])
def test_every_format_of_libsndfile_is_read(suffix: str, own_tones: Path) -> None:
    wavs = own_tones / "wavs"
    rate = 48_000 if suffix == "opus" else SAMPLE_RATE  # Opus has no 22,050 Hz
    stereo = np.stack([speak_tones("abcdefgh", rate)] * 2, axis=1)
    if suffix == "opus":
        soundfile.write(wavs / "T-000.opus", stereo, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(wavs / f"T-000.{suffix}", stereo, rate)
    (wavs / "T-000.wav").unlink()
    data = LJSpeechDataModule(str(own_tones), splits=(0.0, 0.0))
    data.setup("test")
    batch = data.datasets["test"][[0]]
    expected = torch.from_numpy(speak_tones("abcdefgh"))
    assert abs(batch.waveforms.shape[1] - len(expected)) < 0.1 * SAMPLE_RATE  # lossy coders pad
    length = min(batch.waveforms.shape[1], len(expected))
    found, meant = (torch.fft.rfft(x[:length]).abs() for x in (batch.waveforms[0], expected))
    assert torch.cosine_similarity(found, meant, dim=0) > 0.9


@pytest.mark.parametrize(("rate", "frames"), [(16_000, 80_201), (48_000, 240_283)])
def test_a_resampled_clip_has_the_length_that_its_header_promises(
    rate: int, frames: int, tmp_path: Path
) -> None:
    """torchaudio computes these lengths in float32, and is one sample short."""
    path = tmp_path / "long.wav"
    tone = np.sin(2 * np.pi * 100 * np.arange(frames) / rate).astype(np.float32)
    soundfile.write(path, tone, rate, subtype="FLOAT")
    clip = inspect_clip("long", path, SAMPLE_RATE)
    waveform = read_clip(clip, SAMPLE_RATE)
    assert len(waveform) == clip.samples == math.ceil(frames * SAMPLE_RATE / rate)
    expected = torch.sin(2 * torch.pi * 100 * torch.arange(clip.samples - 100) / SAMPLE_RATE)
    assert (waveform[100:-100] - expected[100:]).abs().max() < 1e-2


def test_a_clip_with_a_sample_that_is_no_number_is_refused(tmp_path: Path) -> None:
    tone = speak_tones("abc")
    tone[1000] = np.nan
    soundfile.write(tmp_path / "damaged.wav", tone, SAMPLE_RATE, subtype="FLOAT")
    clip = inspect_clip("damaged", tmp_path / "damaged.wav", SAMPLE_RATE)
    with pytest.raises(UserError, match=r"damaged\.wav has samples that are not finite"):
        read_clip(clip, SAMPLE_RATE)


def test_channels_are_mixed_down_or_chosen(own_tones: Path) -> None:
    left, right = speak_tones("abcd"), speak_tones("efgh")
    path = own_tones / "wavs" / "T-000.wav"
    soundfile.write(path, np.stack((left, right), axis=1), SAMPLE_RATE, subtype="FLOAT")
    found = {}
    for channel in (None, 0, 1):
        data = LJSpeechDataModule(str(own_tones), splits=(0, 0), max_clips=1, channel=channel)
        data.setup("test")
        found[channel] = data.datasets["test"][[0]].waveforms[0]
    torch.testing.assert_close(found[0], torch.from_numpy(left))
    torch.testing.assert_close(found[1], torch.from_numpy(right))
    torch.testing.assert_close(found[None], torch.from_numpy((left + right) / 2))
    with pytest.raises(UserError, match=r"T-000\.wav .*has no channel 2: it has 2 channel\(s\)"):
        LJSpeechDataModule(str(own_tones), splits=(0.0, 0.0), channel=2).setup("test")


def test_the_spelling_of_transcripts_is_unified(tones: Path, tmp_path: Path) -> None:
    entry = entries_of(tones)[0] | {"text": "It’s 5 o'clock — “really”,\tMr. Smith!"}
    manifest = write_manifest(tmp_path / "m.jsonl", [entry])
    for style, expected in (
        ("letters", "it's 5 o'clock really mr smith"),
        ("lower", "it’s 5 o'clock — “really”,\tmr. smith!"),
        (None, entry["text"]),
    ):
        data = ManifestDataModule(str(manifest), splits=(1.0, 0.0), normalize_text=style)
        assert data.split_transcripts()["train"][0].text == expected


def test_speeds_and_noise_change_the_clip_as_they_say() -> None:
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)
    for speed in (0.9, 1.0, 1.1):
        torch.manual_seed(0)
        changed, has_text = ClipAugment(speeds=[speed])(tone, SAMPLE_RATE)
        assert has_text
        assert len(changed) == pytest.approx(SAMPLE_RATE / speed, abs=2)
        peak = torch.fft.rfft(changed).abs().argmax() * SAMPLE_RATE / len(changed)
        assert float(peak) == pytest.approx(440 * speed, abs=2)  # pitch follows
    noisy, _ = ClipAugment([1.0], noise_probability=1.0, noise_snr=(20.0, 20.0))(tone, SAMPLE_RATE)
    ratio = tone.square().mean() / (noisy - tone).square().mean()
    assert 10 * float(ratio.log10()) == pytest.approx(20, abs=0.3)
    silent = [ClipAugment(silence_probability=1.0)(tone, SAMPLE_RATE) for _ in range(50)]
    assert not any(has_text for _, has_text in silent)
    assert all(len(waveform) == len(tone) and waveform.abs().max() <= 1 for waveform, _ in silent)
    assert any(not waveform.any() for waveform, _ in silent)
    wrongs: list[dict[str, Any]] = [
        {"speeds": [0.0]},
        {"speeds": []},
        {"silence_probability": 2.0},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"are not positive|is not in"):
            ClipAugment(**wrong)


def test_speeds_that_would_be_rounded_are_refused() -> None:
    with pytest.raises(UserError, match=r"speeds \[0\.995\] are not hundredths"):
        ClipAugment(speeds=[0.995]).check(SAMPLE_RATE)


def test_noise_can_be_recorded(tmp_path: Path) -> None:
    """A short 1 kHz tone of half the rate stands for the noise."""
    noises = tmp_path / "noises" / "deeper"
    noises.mkdir(parents=True)
    rate = SAMPLE_RATE // 2
    hum = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(rate // 4) / rate)
    soundfile.write(noises / "hum.wav", hum, rate)
    augment = ClipAugment([1.0], 1.0, (6.0, 6.0), noise_paths=[str(tmp_path / "noises")])
    augment.check(SAMPLE_RATE)
    clip = 0.1 * torch.randn(SAMPLE_RATE)
    noisy, _ = augment(clip, SAMPLE_RATE)
    noise = noisy - clip
    assert 10 * float((clip.square().mean() / noise.square().mean()).log10()) == pytest.approx(
        6, abs=0.01
    )
    peak = torch.fft.rfft(noise).abs().argmax() * SAMPLE_RATE / len(noise)
    assert float(peak) == pytest.approx(1000, abs=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"noise_paths: the folder .*empty holds no audio file"):
        ClipAugment(noise_paths=[str(tmp_path / "empty")])
    (noises / "hum.wav").write_bytes(b"hum")
    with pytest.raises(UserError, match=r"hum\.wav is not a readable audio file"):
        augment(clip, SAMPLE_RATE)


def test_noises_are_checked_before_the_training(
    small: list[str], tmp_path: Path, fail_cli: Callable[..., str]
) -> None:
    (tmp_path / "noises").mkdir()
    (tmp_path / "noises" / "z.wav").write_text("z")
    augment = "--data.init_args.augment"
    args = [f"{augment}=datamodules.ClipAugment", "--trainer.max_epochs=1"]
    args += [f"{augment}.init_args.noise_paths=[{tmp_path / 'noises'}]"]  # never drawn
    assert "z.wav is not a readable audio file" in fail_cli("fit", *small, *args)


def test_only_training_clips_are_augmented_and_a_resumed_epoch_hears_the_same(tones: Path) -> None:
    data = LJSpeechDataModule(
        str(tones), splits=(0.6, 0.2), batch_size=8, augment=ClipAugment([0.8], 0.5)
    )
    data.setup("fit")
    data.setup("test")
    assert data.datasets["val"].augment is data.datasets["test"].augment is None
    first, again = (list(data.train_dataloader()) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.waveforms, b.waveforms)
    clips = data.datasets["train"].clips
    for batch in first:
        for i, length in zip(batch.indices, batch.lengths, strict=True):
            assert int(length) == pytest.approx(clips[i].samples / 0.8, abs=2)
