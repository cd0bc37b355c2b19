"""``export``: the exported folder gives what ``predict`` gives."""

import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from rapidfuzz.distance import Levenshtein
from torchaudio.functional import resample

import cli
from commands.stages import load_run
from datamodules.vocabulary import COURSE_ALPHABET
from tests.conftest import CONFIGS, ROOT, SAMPLE_RATE, SMALL_MODEL, hear_tones, speak_tones

WORDS = ("abc def", "hgfe", "b a d", "a a b b")
RUN = "run.py"
DECODER = "--model.init_args.network.init_args.decoder"
RECURRENT = (
    f"{DECODER}=networks.TextDecoderRecurrent",
    f"{DECODER}.init_args.hidden_size=48",
    f"{DECODER}.init_args.mlp_size=96",
    f"{DECODER}.init_args.max_tokens=20",
)
SEARCHES = {
    "joint": {"class_path": "networks.BeamSearch", "init_args": {"width": 4, "ctc_weight": 0.3}},
    "ctc": {"class_path": "networks.CTCGreedySearch"},
}


def train(folder: Path, tones: Path, *settings: str) -> Path:
    (folder / "small.yaml").write_text(SMALL_MODEL)
    handler = signal.getsignal(signal.SIGINT)
    where = ["--config", folder / "small.yaml", "--trainer.default_root_dir", folder / "runs"]
    try:
        cli.main(["fit", *map(str, where), "--data.init_args.root", str(tones), *settings])
    finally:
        signal.signal(signal.SIGINT, handler)
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory, tones: Path) -> Path:
    """A recognizer whose CTC head has learned something; tests must not change it."""
    return train(tmp_path_factory.mktemp("recurrent"), tones, "--trainer.max_epochs=40", *RECURRENT)


def copy_with_search(run: Path, folder: Path, search: str) -> Path:
    """Return a copy of a run that searches in another way."""
    copy = folder / "runs" / search
    shutil.copytree(run, copy)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["test_decoding"] = SEARCHES[search]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def start(folder: Path, *files: Path) -> "subprocess.Popen[str]":
    """Start the exported program, without this project and without PyTorch."""
    program = (
        f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({RUN!r}, None, '__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-c", program, *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def execute(folder: Path, *files: Path) -> tuple[list[list[str]], str, int]:
    process = start(folder, *files)
    out, errors = process.communicate()
    separator = "," if (folder / "classifier.onnx").exists() else "\t"
    return [line.split(separator) for line in out.splitlines()], errors, process.returncode


def close_output(folder: Path, *files: Path) -> tuple[str, int]:
    """Run the exported program when the reader of its output has ended, as in ``| head -1``."""
    with start(folder, *files) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        errors = process.stderr.read()
    return errors, process.returncode


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Recordings of tones at two sample rates."""
    paths = []
    for i, text in enumerate(WORDS):
        paths.append(tmp_path / f"{i}.wav")
        rate = (SAMPLE_RATE, 16_000)[i % 2]
        sound = resample(torch.from_numpy(speak_tones(text)), SAMPLE_RATE, rate)
        soundfile.write(paths[-1], sound.numpy(), rate)
    return paths


def predict(
    run: Path,
    files: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> list[list[str]]:
    hear_tones(monkeypatch)
    capsys.readouterr()
    cli.main(["predict", str(run), *map(str, files)])
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert any(text for _, text in found)
    return found


def test_joint_search_gives_equal_transcripts(
    recurrent: Path,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copy_with_search(recurrent, tmp_path, "joint")
    expected = predict(run, files, capsys, monkeypatch)
    cli.main(["export", str(run)])
    exported = run / "exported"
    assert execute(exported, *files) == (expected, "", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export.load warns of its own buffers
        archive = torch.export.load(exported / "encoder.pt2").module()
    assert archive(torch.zeros(1, 9_000), torch.tensor([9_000]))[0].dtype == torch.bool

    for path in exported.iterdir():
        for place in (str(ROOT), str(tmp_path), sys.prefix):
            assert place.encode() not in path.read_bytes(), (path, place)

    assert close_output(exported, *files) == ("", 141)
    mp3 = tmp_path / "cut.mp3"
    soundfile.write(mp3, np.tile(speak_tones("abcdefgh"), 50), SAMPLE_RATE)
    mp3.write_bytes(mp3.read_bytes()[: mp3.stat().st_size // 2])
    rows, errors, status = execute(exported, mp3)
    assert (rows, status) == ([], 1)
    assert re.search(r"skipped: .*cut\.mp3 \(cut off: it ends after [0-9.]* of 20\.0 s\)", errors)
    (tmp_path / "text.wav").write_text("no sound")
    rows, errors, status = execute(exported, tmp_path / "text.wav", files[0])
    assert rows == expected[:1]
    assert "skipped" in errors
    assert status == 1
    silence = np.zeros(SAMPLE_RATE // 10, np.float32)
    pieces = [piece for text in WORDS * 3 for piece in (speak_tones(text), silence)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(pieces), SAMPLE_RATE)
    rows, errors, status = execute(exported, tmp_path / "long.wav")  # it is cut
    assert (errors, status) == ("", 0)
    assert len(rows[0][1]) > 4 * max(len(text) for _, text in expected)
    with pytest.raises(SystemExit, match="already exists"):
        cli.main(["export", str(run)])


def test_a_language_model_joins_the_exported_search(
    recurrent: Path,
    files: list[Path],
    tones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., Path],
) -> None:
    settings = [f"--config={CONFIGS / 'lm_character.yaml'}", "--trainer.max_epochs=20"]
    settings += [f"--data.init_args.corpus.init_args.root={tones}", "--data.init_args.batch_size=8"]
    settings += [f"--data.init_args.corpus.init_args.alphabet={COURSE_ALPHABET}"]
    settings += ["--model.init_args.network.init_args.hidden_size=16"]
    model = run_cli("fit", *settings, "--trainer.enable_progress_bar=false")
    run = copy_with_search(recurrent, tmp_path, "joint")
    alone = predict(run, files, capsys, monkeypatch)
    config = yaml.safe_load((run / "config.yaml").read_text())
    fusion = config["model"]["init_args"]["test_decoding"]["init_args"]
    fusion["language_model"] = {
        "class_path": "lightning_modules.TrainedLanguageModel",
        "init_args": {"run": str(model)},
    }
    fusion["language_model_weight"] = 3.0
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    expected = predict(run, files, capsys, monkeypatch)
    assert expected != alone
    cli.main(["export", str(run)])
    assert execute(run / "exported", *files) == (expected, "", 0)


def test_eight_bits_are_smaller_and_nearly_equal(
    recurrent: Path,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copy_with_search(recurrent, tmp_path, "ctc")
    expected = predict(run, files, capsys, monkeypatch)
    cli.main(["export", str(run), "--quantize", "int8"])
    rows, errors, status = execute(run / "exported", *files)
    assert (errors, status) == ("", 0)
    distance = sum(
        Levenshtein.distance(a, b) for (_, a), (_, b) in zip(rows, expected, strict=True)
    )
    assert distance <= 0.2 * sum(len(text) for _, text in expected)
    weights = sum(w.numel() for w in load_run(run).model.network.decoder.parameters())
    assert (run / "exported" / "decoder.onnx").stat().st_size < 3 * weights  # 4 bytes each before


def test_the_transformer_s_cache_is_explicit(
    files: list[Path],
    tones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A greedy search without CTC, which has long texts after little training."""
    run = train(tmp_path, tones, "--trainer.max_epochs=5")
    expected = predict(run, files, capsys, monkeypatch)
    cli.main(["export", str(run)])
    assert execute(run / "exported", *files) == (expected, "", 0)


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
    assert close_output(run / "exported", *files) == ("", 141)
    Image.fromarray(pixels.astype(np.int32)).save(tmp_path / "deep.tiff")
    rows, errors, status = execute(run / "exported", tmp_path / "deep.tiff")
    assert (len(rows), status) == (1, 1)
    assert (
        "deep.tiff (its depth is unclear: save it with 8 bits, or with values up to 65,535)"
        in errors
    )


def test_what_cannot_be_exported_is_refused(tmp_path: Path, run_cli: Callable[..., Path]) -> None:
    run = run_cli("fit", "--config", CONFIGS / "boolean_perceptron.yaml")
    with pytest.raises(SystemExit, match="run of BooleanClassifier: export takes"):
        cli.main(["export", str(run)])
    assert not list(run.glob("*exported*"))
