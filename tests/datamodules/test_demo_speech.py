from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules import DemoSpeechDataModule
from datamodules.demo_speech.__main__ import main
from datamodules.demo_speech.corpus import speak_corpus
from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak, speak_words
from datamodules.demo_speech.grammar import sentences
from datamodules.vocabulary import CharacterVocabulary
from errors import UserError

pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")


def test_sentences_are_all_different_and_in_the_courses_alphabet() -> None:
    found = sentences(3000, seed=0)
    assert len(set(found)) == 3000
    assert found == sentences(3000, seed=0) != sentences(3000, seed=1)
    vocabulary = CharacterVocabulary()
    for sentence in found:
        assert vocabulary.unknown not in vocabulary.encode(sentence)


def test_the_corpus_is_spoken_once_and_read_as_lj_speech(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    data = DemoSpeechDataModule(root=str(root), clips=20, batch_size=4, splits=(0.8, 0.1))
    data.prepare_data()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")}
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")} == times
    data.setup("fit")
    data.setup("test")
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [16, 2, 2]
    for batch in data.train_dataloader():
        assert (batch.waveforms.abs().amax(1) > 0.05).all()  # it speaks
        seconds, characters = batch.lengths / 22_050, batch.token_lengths - 2
        assert (seconds / characters).median().item() == pytest.approx(0.06, abs=0.03)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    with pytest.raises(UserError, match="demo holds 20 clips instead of 30"):
        DemoSpeechDataModule(root=str(root), clips=30).prepare_data()


@pytest.mark.parametrize("workers", [1, 2])
def test_any_metadata_can_be_spoken(workers: int, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("A-1|Mr. X|mister x\nA-2|It is 5.|it is five.\n", encoding="utf-8")
    arguments = ["--metadata", str(metadata), "--workers", str(workers)]
    main([*arguments, "--root", str(tmp_path / "root")])
    assert (tmp_path / "root" / "metadata.csv").read_text(encoding="utf-8").splitlines() == [
        "A-1|mister x|mister x",
        "A-2|it is five.|it is five.",
    ]
    for id in ("A-1", "A-2"):
        header = soundfile.info(tmp_path / "root" / "wavs" / f"{id}.wav")
        assert (header.samplerate, header.channels, header.subtype) == (22_050, 1, "PCM_16")
        assert 0.3 < header.duration < 3
    with pytest.raises(SystemExit, match="root exists already"):
        main([*arguments, "--root", str(tmp_path / "root")])


def test_a_clip_does_not_depend_on_what_was_spoken_before_it(tmp_path: Path) -> None:
    transcripts = [(f"A-{i}", text) for i, text in enumerate(sentences(40, seed=0))]
    speak_corpus(transcripts, tmp_path / "alone")
    speak_corpus(transcripts, tmp_path / "together", workers=2)
    speak_corpus(transcripts[::-1], tmp_path / "backwards")
    speak_corpus(transcripts, tmp_path / "other seed", seed=1)
    for id, _ in transcripts:
        alone, together, backwards, other_seed = (
            (tmp_path / name / "wavs" / f"{id}.wav").read_bytes()
            for name in ("alone", "together", "backwards", "other seed")
        )
        assert alone == together == backwards != other_seed


@pytest.mark.parametrize("variant", ["f2", "Reed"])  # the library's own generator, and C's
def test_noise_depends_on_the_voices_seed_alone(variant: str) -> None:
    with link_data() as data:
        first, again, other = (
            speak("who is she?", Voice(f"en-us+{variant}", seed=seed), data) for seed in (1, 1, 2)
        )
    assert (first == again).all()
    assert (first != other).any()


def test_an_interrupted_corpus_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.demo_speech.corpus.VOICES", ("no-such-voice",))
    with pytest.raises(UserError, match="no voice no-such-voice"):
        DemoSpeechDataModule(root=str(tmp_path / "demo"), clips=3).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_word_onsets_are_reported_where_the_words_begin() -> None:
    text = "silence, then a second word."
    with link_data() as data:
        samples, words = speak_words(text, Voice(), data)
        assert np.array_equal(samples, speak(text, Voice(), data))
    assert [text[position:].split(maxsplit=1)[0] for position, _ in words] == text.split()
    onsets = [onset for _, onset in words]
    assert onsets == sorted(onsets)
    assert onsets[0] == pytest.approx(0, abs=0.05)
    # The comma is a pause: little sound before the second word, much after it.
    second = int(onsets[1] * SAMPLE_RATE)
    loudness = [np.abs(part).mean() for part in (samples[second - 2000 : second - 500],
                                                 samples[second : second + 3000])]  # fmt: skip
    assert loudness[0] < loudness[1] / 10
