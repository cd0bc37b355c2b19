"""Tiny generated data sets, and the command line as a function."""

import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import cli
from commands.inputs.speech_activity import DETECTOR_RATE, Span
from datamodules.demo_oct import write_file

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
REAL_DATA = ROOT.parent / "shared" / "data"
SAMPLE_RATE = 22_050
LETTERS = "abcdefgh "
SMALL_MODEL = """
model:
  class_path: lightning_modules.SpeechRecognizer
  init_args:
    network:
      class_path: networks.SpeechToText
      init_args:
        features: {class_path: networks.LogMelSpectrogram}
        encoder:
          class_path: networks.AudioEncoder
          init_args: {hidden_size: 48, mlp_size: 96, strides: [2, 2]}
        decoder:
          class_path: networks.TextDecoderTransformer
          init_args: {hidden_size: 48, mlp_size: 96, max_tokens: 20}
        ctc: true
    ctc_weight: 0.3
data:
  class_path: datamodules.LJSpeechDataModule
  init_args: {batch_size: 8, splits: [0.6, 0.2]}
optimizer:
  class_path: torch.optim.AdamW
  init_args: {lr: 3.0e-3}
lr_scheduler: {class_path: lightning_modules.WarmupLinearDecay}
checkpoint: {monitor: val/cer}
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: callbacks.TranscriptWriter}
"""


def speak_tones(text: str, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Speak a text of `LETTERS`: each letter is 50 ms of its own tone."""
    time = np.arange(int(0.05 * sample_rate)) / sample_rate
    tones = [np.sin(2 * np.pi * (300 + 250 * LETTERS.index(letter)) * time) for letter in text]
    return (0.3 * np.concatenate(tones)).astype(np.float32)


def write_corpus(root: Path, clips: int, seed: int = 0) -> Path:
    """Write ``clips`` clips of 4 … 12 letters in LJ Speech's layout, all texts different."""
    choice = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < clips:
        text = "".join(choice.choices(LETTERS, k=choice.randint(4, 12))).strip()
        if text:
            texts[text] = None
    (root / "wavs").mkdir(parents=True)
    for i, text in enumerate(texts):
        soundfile.write(root / "wavs" / f"T-{i:03d}.wav", speak_tones(text), SAMPLE_RATE)
    lines = (f"T-{i:03d}|{text.upper()}|{text}\n" for i, text in enumerate(texts))
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return root


def hear_tones(patch: pytest.MonkeyPatch, spans: list[Span] | None = None) -> None:
    """Replace the detector of speech, which does not take tones for it.

    Without ``spans``, a recording that is not silent is one span.
    """

    def find(blocks: Iterable[Tensor], longest: float) -> tuple[list[Span], float]:
        sound = torch.cat(list(blocks))
        seconds = len(sound) / DETECTOR_RATE
        whole = [Span(0.0, seconds)] if sound.abs().max() > 0 else []
        return (whole if spans is None else spans), seconds

    patch.setattr("commands.transcribe.find_speech", find)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared corpus of 40 clips; tests must not change it."""
    return write_corpus(tmp_path_factory.mktemp("data") / "tones", 40)


@pytest.fixture(scope="session")
def retinas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared file of 200 training and 200 test images; tests must not change it."""
    path = tmp_path_factory.mktemp("data") / "retinas.npz"
    write_file(path, 200, 28)
    arrays = np.load(path)
    np.savez(path, **{k: v[::5] if k.startswith("test") else v for k, v in arrays.items()})
    return path


@pytest.fixture
def own_tones(tmp_path: Path) -> Path:
    """A corpus of 8 clips that the test may change."""
    return write_corpus(tmp_path / "tones", 8)


@pytest.fixture
def small(tmp_path: Path, tones: Path) -> list[str]:
    """Arguments of a small model on the tones."""
    config = tmp_path / "small.yaml"
    config.write_text(SMALL_MODEL)
    return ["--config", str(config), "--data.init_args.root", str(tones)]


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., Path]:
    """Run a stage with runs below the test's folder; return the run directory ``run``."""

    handler = signal.getsignal(signal.SIGINT)

    def run(stage: str, *args: object) -> Path:
        runs = tmp_path / "runs"
        here = ["--trainer.default_root_dir", str(runs), "--experiment", "run"]
        try:
            cli.main([stage, *map(str, args), *here])
        finally:
            signal.signal(signal.SIGINT, handler)
        return runs / "run"

    return run


@pytest.fixture
def fail_cli(run_cli: Callable[..., Path]) -> Callable[..., str]:
    """Run a stage that must fail with a one-line message; return the message."""

    def fail(stage: str, *args: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run_cli(stage, *args)
        message = stopped.value.code
        assert isinstance(message, str), message  # sys.exit prints it and exits with 1
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return fail
