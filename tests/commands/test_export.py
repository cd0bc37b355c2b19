"""``export``: the exported folder gives what ``predict`` gives."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

import cli
from tests.conftest import CONFIGS, SAMPLE_RATE, SMALL_MODEL, hear_tones, speak_tones

WORDS = ("abc def", "hgfe", "b a d", "a a b b")
DECODER = "--model.init_args.network.init_args.decoder"
RECURRENT = (
    f"{DECODER}=networks.TextDecoderRecurrent",
    f"{DECODER}.init_args.hidden_size=48",
    f"{DECODER}.init_args.mlp_size=96",
    f"{DECODER}.init_args.max_tokens=20",
)
JOINT = (
    "--model.init_args.test_decoding=networks.BeamSearch",
    "--model.init_args.test_decoding.init_args.width=4",
)
CTC = ("--model.init_args.test_decoding=networks.CTCGreedySearch",)


def train(folder: Path, tones: Path, *settings: str) -> Path:
    (folder / "small.yaml").write_text(SMALL_MODEL)
    handler = signal.getsignal(signal.SIGINT)
    where = ["--config", folder / "small.yaml", "--trainer.default_root_dir", folder / "runs"]
    where += ["--data.init_args.root", tones, "--trainer.max_epochs=15", *settings]
    try:
        cli.main(["fit", *map(str, where)])
    finally:
        signal.signal(signal.SIGINT, handler)
    return folder / "runs" / "small"


def execute(folder: Path, *files: Path) -> tuple[list[list[str]], str, int]:
    """Run the exported program, without this project on its path."""
    command = [sys.executable, "-I", str(folder / "run.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    separator = "," if (folder / "classifier.onnx").exists() else "\t"
    rows = [line.split(separator) for line in done.stdout.splitlines()]
    return rows, done.stderr, done.returncode


@pytest.mark.parametrize(
    "settings", [(), (*RECURRENT, *JOINT), CTC], ids=["greedy", "joint", "ctc"]
)
def test_transcripts_are_equal(
    settings: tuple[str, ...],
    tmp_path: Path,
    tones: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = train(tmp_path, tones, *settings)
    files = []
    for i, text in enumerate(WORDS):
        files.append(tmp_path / f"{i}.wav")
        sound = torch.from_numpy(speak_tones(text))
        rate = (SAMPLE_RATE, 16_000)[i % 2]
        soundfile.write(files[-1], resample(sound, SAMPLE_RATE, rate).numpy(), rate)
    hear_tones(monkeypatch)
    capsys.readouterr()
    cli.main(["predict", str(run), *map(str, files)])
    expected = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert any(text for _, text in expected)
    cli.main(["export", str(run)])
    rows, errors, status = execute(run / "exported", *files)
    assert (rows, errors, status) == (expected, "", 0)
    described = json.loads((run / "exported" / "model.json").read_text())
    assert described["sample_rate"] == SAMPLE_RATE
    archive = torch.export.load(run / "exported" / "encoder.pt2").module()
    assert archive(torch.zeros(1, 9_000), torch.tensor([9_000]))[0].dtype == torch.bool

    (tmp_path / "text.wav").write_text("no sound")
    rows, errors, status = execute(run / "exported", tmp_path / "text.wav", files[0])
    assert rows == expected[:1]
    assert "skipped" in errors
    assert status == 1
    with pytest.raises(SystemExit, match="already exists"):
        cli.main(["export", str(run)])
    if settings:
        cli.main(["export", str(run), "--output", str(tmp_path / "int8"), "--quantize", "int8"])
        rows, errors, status = execute(tmp_path / "int8", *files)
        assert (len(rows), errors, status) == (len(files), "", 0)
        sizes = [
            (folder / "encoder.onnx").stat().st_size
            for folder in (run / "exported", tmp_path / "int8")
        ]
        assert sizes[1] < 0.8 * sizes[0]


def test_long_recordings_are_cut(
    tmp_path: Path, tones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, tones, *CTC)
    cli.main(["export", str(run)])
    gap = np.zeros(SAMPLE_RATE // 5, np.float32)
    sounds = [speak_tones(text) for text in WORDS]
    soundfile.write(tmp_path / "one.wav", sounds[0], SAMPLE_RATE)
    pieces = [piece for sound in sounds * 3 for piece in (gap, sound)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(pieces), SAMPLE_RATE)
    rows, errors, status = execute(run / "exported", tmp_path / "one.wav", tmp_path / "long.wav")
    assert (errors, status) == ("", 0)
    assert len(rows[1][1]) > 4 * len(rows[0][1])


def test_probabilities_are_equal(
    tmp_path: Path,
    retinas: Path,
    run_cli: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = CONFIGS / "octmnist_cnn.yaml"
    short = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    run = run_cli("fit", "--config", config, f"--data.init_args.file={retinas}", *short)
    files = []
    for i, pixels in enumerate(np.load(retinas)["test_images"][:3]):
        image = Image.fromarray(pixels)
        if i:
            image = image.resize((64, 50)).convert(("RGB", "RGBA")[i - 1])
        files.append(tmp_path / f"{i}.png")
        image.save(files[-1])
    capsys.readouterr()
    cli.main(["predict", str(run), *map(str, files)])
    expected = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    cli.main(["export", str(run)])
    rows, errors, status = execute(run / "exported", *files)
    assert (errors, status) == ("", 0)
    assert [row[1] for row in rows[1:]] == [row[2] for row in expected[1:]]
    found = np.array([row[2:] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(found, np.array([r[3:] for r in expected[1:]], float), atol=1e-4)


def test_what_cannot_be_exported_is_refused(tmp_path: Path, run_cli: Callable[..., Path]) -> None:
    run = run_cli("fit", "--config", CONFIGS / "boolean_perceptron.yaml")
    with pytest.raises(SystemExit, match="run of BooleanClassifier: export takes"):
        cli.main(["export", str(run)])
    assert not list(run.glob("exported*"))
