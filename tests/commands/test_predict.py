"""``predict RUN PATH…``, as users type it."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysubs2
import pytest
import soundfile

import cli
from commands import transcribe
from commands.inputs.audio_file import AudioFile
from commands.inputs.speech_activity import Span
from lightning_modules import SpeechRecognizer
from tests.conftest import CONFIGS, ROOT, SAMPLE_RATE, SMALL_MODEL, hear_tones, speak_tones

WORDS = ("abc def", "hgfe", "b a d")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tones: Path) -> Path:
    """A recognizer of tones, trained for a few seconds; tests must not change it."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "small.yaml").write_text(SMALL_MODEL)
    handler = signal.getsignal(signal.SIGINT)
    where = ["--config", folder / "small.yaml", "--trainer.default_root_dir", folder / "runs"]
    where += [
        "--data.init_args.root",
        tones,
        "--trainer.max_epochs=15",
        "--data.init_args.splits=[1.0,0.0]",
    ]
    where += ["--data.init_args.evaluate_on_train=true"]
    try:
        cli.main(["fit", *map(str, where)])
    finally:
        signal.signal(signal.SIGINT, handler)
    return folder / "runs" / "small"


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three recordings in a folder."""
    hear_tones(monkeypatch)
    folder = tmp_path / "recordings"
    folder.mkdir()
    for i, text in enumerate(WORDS):
        soundfile.write(folder / f"{i}.wav", speak_tones(text), SAMPLE_RATE)
    return folder


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``predict`` and return what it prints."""

    def run(*args: object) -> str:
        capsys.readouterr()
        cli.main(["predict", *map(str, args)])
        return capsys.readouterr().out

    return run


def read_without_ctc(model: SpeechRecognizer, *args: Any, **kwargs: Any) -> dict[str, list[Any]]:
    return {"transcripts": model.transcribe(*args, **kwargs)}


def fail(*args: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", *map(str, args)])
    message = stopped.value.code
    assert isinstance(message, str)
    assert "\n" not in message
    return message


def test_texts_are_those_of_the_stage_and_bad_files_are_skipped(
    run: Path, recordings: Path, predict: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [recordings / f"{i}.wav" for i in range(3)]
    alone = [predict(run, file) for file in files]
    assert all(text.strip() for text in alone)
    listed = ",".join(map(str, files))
    where = [f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={run.parent}"]
    where.append("--experiment=small")
    handler = signal.getsignal(signal.SIGINT)
    try:
        cli.main(["predict", *where, f"--data.init_args.predict_paths=[{listed}]"])
    finally:
        signal.signal(signal.SIGINT, handler)
    by_stage = (run / "predictions.csv").read_text().splitlines()
    assert [f"{text}" for text in alone] == [f"{row.split('|')[1].strip()}\n" for row in by_stage]

    (recordings / "1b.wav").write_bytes(b"not audio at all")
    (recordings / "notes.txt").write_text("no recording either")
    capsys.readouterr()
    assert "1 of 4 files could not be predicted" in fail(run, recordings)
    printed = capsys.readouterr()
    expected = [f"{file}\t{text}" for file, text in zip(files, alone, strict=True)]
    assert printed.out == "".join(expected)
    assert f"skipped: {recordings / '1b.wav'} is not an audio file" in printed.err


def test_formats(run: Path, recordings: Path, predict: Callable[..., str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    predict(run, recordings, "--output", output)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["file"] for record in found] == [str(recordings / f"{i}.wav") for i in range(3)]
    for record in found:
        (segment,) = record["segments"]
        assert segment["text"] == record["text"]
        assert segment["start"] == segment["words"][0]["start"]
        assert segment["end"] == segment["words"][-1]["end"]
        assert [word["word"] for word in segment["words"]] == record["text"].split()
        times = [t for word in segment["words"] for t in (word["start"], word["end"])]
        assert times == sorted(times)
        assert times[-1] <= record["seconds"] + 0.03
        assert all(0 < word["confidence"] < 1 for word in segment["words"])
    predict(run, recordings, "--output", tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["text"] for row in rows] == [record["text"] for record in found]
    assert predict(run, "--format", "csv", recordings) == (tmp_path / "out.csv").read_text()
    for format in ("srt", "vtt"):
        predict(run, recordings, "--format", format, "--output", tmp_path / "subtitles")
        for record in found:
            path = tmp_path / "subtitles" / f"{Path(record['file']).stem}.{format}"
            cues = pysubs2.load(str(path))
            assert " ".join(cue.text for cue in cues) == record["text"]
            assert cues[0].start == pytest.approx(1000 * record["segments"][0]["words"][0]["start"])
    assert "give --output a folder" in fail(run, recordings, "--format", "srt")
    assert "not one of this task's formats" in fail(run, recordings, "--output", tmp_path / "a.doc")


def test_a_long_recording_is_cut_and_its_times_shifted(
    run: Path,
    recordings: Path,
    predict: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans, parts, position = [], [], 0
    for text in WORDS * 3:
        gap, sound = np.zeros(SAMPLE_RATE // 2, np.float32), speak_tones(text)
        start = position + len(gap)
        position = start + len(sound)
        spans.append(Span(start / SAMPLE_RATE, position / SAMPLE_RATE))
        parts += [gap, sound]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate(parts), SAMPLE_RATE)
    with monkeypatch.context() as patch:
        hear_tones(patch, spans)
        patch.setattr(transcribe, "WINDOW_SECONDS", 1.5)  # batches of several windows
        patch.setattr(transcribe, "BATCH_SECONDS", 1.0)
        record = json.loads(predict(run, path, "--format", "jsonl"))
        patch.setattr(SpeechRecognizer, "_read", read_without_ctc)
        without = json.loads(predict(run, path, "--format", "jsonl"))
    assert [(segment["start"], segment["end"]) for segment in without["segments"]] == [
        pytest.approx(span, abs=1e-3) for span in spans
    ]
    lines = predict(run, recordings, "--format", "jsonl").splitlines()
    alone = [json.loads(line)["segments"][0] for line in lines]
    assert len(record["segments"]) == len(spans)
    for i, (segment, span) in enumerate(zip(record["segments"], spans, strict=True)):
        expected = alone[i % 3]
        assert segment["text"] == expected["text"]
        assert segment["start"] == segment["words"][0]["start"]
        assert segment["end"] == segment["words"][-1]["end"]
        for word, first in zip(segment["words"], expected["words"], strict=True):
            assert word["start"] == pytest.approx(first["start"] + span.start, abs=2e-3)
            assert word["confidence"] == pytest.approx(first["confidence"], abs=1e-3)
    assert record["text"] == " ".join(segment["text"] for segment in record["segments"])


def test_every_channel_is_transcribed(
    run: Path, predict: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear_tones(monkeypatch)
    sounds = [speak_tones("aaaabbbb"), speak_tones("hg hg hg")]
    for i, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{i}.wav", sound, SAMPLE_RATE)
    soundfile.write(tmp_path / "both.wav", np.stack(sounds, 1), SAMPLE_RATE)
    alone = [predict(run, tmp_path / f"{i}.wav").strip() for i in range(2)]
    assert alone[0] != alone[1]
    path = tmp_path / "both.wav"
    printed = predict(run, path, "--channels", "each")
    assert printed == f"{path}\t0\t{alone[0]}\n{path}\t1\t{alone[1]}\n"
    assert "give --channels mix" in fail(run, path, "--channels", "each", "--format", "srt")


def test_silence_gives_no_text(run: Path, predict: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    for seconds in (5.0, 0.5):  # longer and shorter than the training clips
        soundfile.write(path, np.zeros(int(seconds * SAMPLE_RATE)), SAMPLE_RATE)
        record = json.loads(predict(run, path, "--format", "jsonl"))
        assert record == {"file": str(path), "seconds": seconds, "text": "", "segments": []}
    assert predict(run, path, "--format", "csv") == "file,start,end,text\n"
    assert predict(run, path, "--format", "srt").strip() == ""


def test_an_interrupted_command_continues(
    run: Path,
    recordings: Path,
    predict: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = predict(run, recordings, "--format", "jsonl")
    output = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    cut = transcribe.Transcriber._cut
    read = []

    def interrupt(
        self: transcribe.Transcriber,
        recording: transcribe.Recording,
        file: AudioFile,
        advance: Callable[[float], None],
    ) -> Iterator[transcribe.Piece]:
        read.append(recording.path.name)
        if read == ["0.wav", "1.wav", "2.wav"]:
            raise KeyboardInterrupt
        return cut(self, recording, file, advance)

    monkeypatch.setattr(transcribe.Transcriber, "_cut", interrupt)
    monkeypatch.setattr(transcribe, "WINDOW_SECONDS", 0.01)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(run), str(recordings), "--output", str(output)])
    assert stopped.value.code == 130
    assert not output.exists()
    assert len(partial.read_text().splitlines()) == 3  # what it depends on, and two files
    with partial.open("a") as file:
        file.write('{"file": "half a li')
    command = [run, recordings, "--channels", "each", "--output", output]
    assert "started by another command" in fail(*command)
    predict(run, recordings, "--output", output)
    assert read == ["0.wav", "1.wav", "2.wav", "2.wav"]
    assert output.read_text() == whole
    assert not partial.exists()
    assert "already exists" in fail(run, recordings, "--output", output)

    folder = tmp_path / "folder"
    predict(run, recordings, "--output", folder)
    (folder / "1.txt").write_text("corrected by hand\n")
    (folder / "2.txt").unlink()
    predict(run, recordings, "--output", folder)
    texts = [(folder / f"{i}.txt").read_text() for i in range(3)]
    first, _, last = (f"{json.loads(line)['text']}\n" for line in whole.splitlines())
    assert texts == [first, "corrected by hand\n", last]
    assert "holds predictions of another run" in fail(*command[:-1], folder)
    with (folder / ".predictions.json").open("a") as note:
        note.write('\n{"output": "half a li')
    (folder / "2.txt").unlink()
    predict(run, recordings, "--output", folder)
    predict(run, recordings, "--output", folder)
    assert [(folder / f"{i}.txt").read_text() for i in range(3)] == texts
    other = tmp_path / "other day" / "0.wav"
    other.parent.mkdir()
    soundfile.write(other, speak_tones("abc"), SAMPLE_RATE)
    message = fail(run, other, "--output", folder)
    assert f"0.txt exists, and is not of {other} as it is now" in message
    (folder / "mine.txt").write_text("my own notes\n")
    other = other.rename(other.with_stem("mine"))
    assert "mine.txt exists" in fail(run, other, "--output", folder)


def test_equal_names_do_not_overwrite_each_other(
    run: Path, recordings: Path, predict: Callable[..., str], tmp_path: Path
) -> None:
    soundfile.write(recordings / "0.flac", speak_tones("abc"), SAMPLE_RATE)
    predict(run, recordings, "--output", tmp_path / "folder")
    names = {path.name for path in (tmp_path / "folder").glob("[!.]*")}
    assert names == {"0.flac.txt", "0.wav.txt", "1.txt", "2.txt"}
    (recordings / "more").mkdir()
    soundfile.write(recordings / "more" / "1.wav", speak_tones("abc"), SAMPLE_RATE)
    assert "named 1.wav" in fail(run, recordings, "--output", tmp_path / "folder")


def test_unusable_runs_and_paths_are_refused(
    run: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not a run directory" in fail(tmp_path, recordings)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "nothing was trained in" in fail(unfinished, recordings)
    last = unfinished / "checkpoints" / "last.ckpt"  # stopped before its first validation
    last.parent.mkdir()
    last.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    cli.main(["predict", str(unfinished), str(recordings), "--ckpt_path", "last"])
    (tmp_path / "empty").mkdir()
    assert "holds no file of .wav" in fail(run, tmp_path / "empty")
    assert "nowhere.wav does not exist" in fail(run, recordings, tmp_path / "nowhere.wav")
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    assert "pipe.wav is a pipe or a device: save its content" in fail(run, recordings, pipe)
    message = fail(run, recordings, "--output", pipe, "--format", "txt")
    assert "pipe.wav is no regular file: leave out --output to print" in message
    soundfile.write(tmp_path / "[b]one[final].wav", np.zeros(1), SAMPLE_RATE)
    output = tmp_path / "out.txt"
    assert "1 of 1 files" in fail(run, tmp_path / "[b]one[final].wav", "--output", output)
    assert "[b]one[final].wav lasts 0.000 s" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.txt*"))
    output.touch()
    assert "cannot be used" in fail(run, recordings, "--output", output / "out.txt")
    assert "--ckpt_path none" in fail(run, recordings, "--ckpt_path", "none")
    assert "nine.ckpt does not exist" in fail(run, recordings, "--ckpt_path", "nine.ckpt")
    packed = tmp_path / "packed"
    cli.main(["pack", str(run), "--output", str(packed)])
    message = fail(packed, recordings, "--ckpt_path", "last")
    assert "last.ckpt does not exist: the run was packed; there is" in message
    fitted = str(tmp_path / "runs")
    config = str(CONFIGS / "boolean_perceptron.yaml")
    cli.main(["fit", "--config", config, "--trainer.default_root_dir", fitted])
    message = fail(tmp_path / "runs" / "boolean_perceptron", recordings)
    assert "is a run of BooleanClassifier: files are for" in message
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(run)])
    assert stopped.value.code == 2
    assert "at least one PATH" in capsys.readouterr().err


def test_redirected_output_is_not_on_the_terminal(run: Path, tmp_path: Path) -> None:
    """The progress bar is on a terminal, the transcript goes to a file."""
    soundfile.write(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    master, terminal = pty.openpty()
    command = [sys.executable, str(ROOT / "cli.py"), "predict", str(run), "--format", "jsonl"]
    with (tmp_path / "out.jsonl").open("w") as output:
        subprocess.run(
            [*command, str(tmp_path / "silence.wav")], stdout=output, stderr=terminal, check=True
        )
    os.close(terminal)
    os.close(master)
    assert json.loads((tmp_path / "out.jsonl").read_text())["seconds"] == 1.0
