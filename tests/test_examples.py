"""The examples of the documents, executed in order on generated data."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak
from tests.conftest import ROOT
from tests.test_docs import FENCE, commands_in

FAST = ["--config", "configs/debug/fast.yaml"]
SMALL = "configs/asr_conformer_small.yaml"
SPEAK = "-m datamodules.demo_speech --metadata metadata.csv --root".split()
CLIPS = {"train": 16, "val": 4, "test": 4}
RUN_ALL = """
import json, os, runpy, sys
sys.path[0] = os.getcwd()  # as `python cli.py` has it
import cli
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__")
    else:
        cli.main(words)
"""


def examples(text: str) -> list[list[str]]:
    """Return the arguments of a text's commands that train, test or use a run, in order."""
    commands = [words for words in commands_in(text) if words[:1] == ["python"]]
    found = [words[2:] if words[1] == "cli.py" else words[1:] for words in commands]
    return [words for words in found if words[0] != "serve" and "--print_config" not in words]


def shorten(words: list[str]) -> list[str]:
    """Add the overlay of a few batches to a stage's configs; speak a small demo corpus."""
    if words[0] not in {"fit", "test"}:
        return words
    last = max(i for i, word in enumerate(words) if word == "--config")
    demo = "configs/demo/speech.yaml" in words
    clips = ["--data.init_args.clips=100", "--data.init_args.splits=[0.8,0.1]"] if demo else []
    return [*words[: last + 2], *FAST, *words[last + 2 :], *clips]


def run_all(commands: list[list[str]], folder: Path) -> str:
    """Run commands in one process; return what they print."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([shorten(words) for words in commands])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def say(text: str) -> np.ndarray:
    """Speak a text; return samples at `SAMPLE_RATE`."""
    with link_data() as data:
        samples: np.ndarray = speak(text, Voice("en-us", 170, 50, 50, seed=1), data)
    return samples


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with transcripts, recordings and images, named as in the documents."""
    root = tmp_path / "project"
    root.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for item in ("cli.py", "errors.py", "configs", "models"):
        (root / item).symlink_to(ROOT / item)
    for room in "callbacks commands datamodules engine lightning_modules metrics networks".split():
        shutil.copytree(ROOT / room, root / room, ignore=ignored)
    words = "the old river carried seven small boats past a quiet green valley".split()
    texts = [" ".join(itertools.islice(itertools.cycle(words), i, i + 5)) for i in range(12)]
    lines = (f"{i:02d}|{texts[i % 12]} {i}\n" for i in range(sum(CLIPS.values())))
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    (root / "noise").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    soundfile.write(root / "noise" / "fan.wav", noise, SAMPLE_RATE)
    (root / "recordings").mkdir()
    speech = say("a quiet green valley")
    stereo = np.stack((speech, speech[::-1]), axis=1)
    soundfile.write(root / "recording.wav", speech, SAMPLE_RATE)
    soundfile.write(root / "recordings" / "first.flac", speech, SAMPLE_RATE)
    soundfile.write(root / "recordings" / "second.ogg", stereo, SAMPLE_RATE)
    soundfile.write(root / "call.wav", stereo, SAMPLE_RATE)
    with av.open(root / "interview.m4a", "w") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(speech[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (root / "scans").mkdir()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 40)).astype(np.uint8))
    image.save(root / "scan.png")
    image.save(root / "scans" / "left.jpg")
    return root


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_tutorial_works_as_written(project: Path) -> None:
    output = run_all(examples(document("docs/tutorial.md")), project)
    assert (project / "runs" / "comparison").is_dir()
    assert (project / "runs" / "demo" / "report.html").is_file()
    assert (project / "transcripts.jsonl").read_text().count("\n") == 2
    assert (project / "runs" / "demo" / "exported" / "run.py").is_file()
    assert "runs/demo_lstm" in output


def test_training_on_recordings_of_ones_own_works_as_written(project: Path) -> None:
    """Corpora, manifests, augmentation and fine-tuning."""
    guide = document("docs/how_to/corpus.md")
    run_all([[*SPEAK, "my_clips"]], project)
    metadata = project / "metadata.csv"
    (project / "data").mkdir(exist_ok=True)
    (project / "data" / "LJSpeech-1.1").symlink_to(project / "my_clips")
    splits = [split for split, count in CLIPS.items() for _ in range(count)]
    (manifest,) = [block for language, block in FENCE.findall(guide) if language == "json"]
    with (project / "my_clips" / "manifest.jsonl").open("w") as file:
        for line, split in zip(metadata.read_text().splitlines(), splits, strict=True):
            id, text = line.split("|")
            path = f"wavs/{id}.wav"
            record = {"id": f"mine-{id}", "audio_filepath": path, "text": text, "split": split}
            assert record.keys() - {"id"} == json.loads(manifest).keys()
            file.write(json.dumps(record) + "\n")
    overlays = [block for language, block in FENCE.findall(guide) if language == "yaml"]
    fits = []
    for name, overlay in zip(("manifest", "several", "augment"), overlays, strict=True):
        (project / f"{name}.yaml").write_text(overlay)
        fits.append(["fit", "--config", SMALL, "--config", f"{name}.yaml", "--experiment", name])
    fine_tune = examples(document("docs/how_to/fine_tune.md"))
    for words in fine_tune:  # the other page has a run `mine` too
        words[words.index("--experiment") + 1] += "_tuned"
    run_all([*examples(guide), *fits, ["fit", "--config", SMALL], *fine_tune], project)
    for name in ("mine", "manifest", "several", "augment", "mine_tuned", "slower_tuned"):
        assert (project / "runs" / name / "checkpoints" / "best.ckpt").is_file(), name
    assert (project / "runs" / "inspect").is_dir()


def test_using_a_trained_model_works_as_written(project: Path) -> None:
    commands = examples(document("docs/how_to/use.md"))
    assert len(commands) > 8
    recognizer = ["fit", "--config", SMALL, "--experiment", "asr_conformer"]
    recognizer += ["--data.init_args.root", "my_clips"]
    retinas = ["--config", "configs/octmnist_cnn.yaml", "--config", "configs/demo/oct.yaml"]
    run_all([[*SPEAK, "my_clips"], recognizer, ["fit", *retinas]], project)
    run_all([words for words in commands if "run.py" not in words[0]], project)
    lines = (project / "transcripts.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["file"]).name for line in lines} == {"first.flac", "second.ogg"}
    for path in ("texts", "scans.html", "small/run.py", "shared/asr_conformer/config.yaml"):
        assert (project / path).exists(), path
    done = subprocess.run(
        [sys.executable, "runs/asr_conformer/exported/run.py", "recording.wav"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recording.wav\t")
