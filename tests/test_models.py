"""The recognizer in the repository: anyone can use it, and start from it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

import cli
from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak
from metrics import CharErrorRate
from tests.conftest import CONFIGS, ROOT

pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")

MODEL = ROOT / "models" / "asr_conformer_small"
SENTENCES = (
    "the prison was built by the river",
    "he said that it had been a long and cold winter",
    "in the morning they went to the town together",
)


def test_it_is_small_complete_and_from_no_machine() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    names = {str(path.relative_to(MODEL)) for path in files}
    weights = {"checkpoints/best.ckpt", "checkpoints/language_model.ckpt"}
    assert names == {"README.md", "config.yaml", "test_metrics.json"} | weights
    assert sum(path.stat().st_size for path in files) <= 7_000_000
    for path in files:
        text = path.read_bytes().decode("latin1")
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|mnt|Users)/", text), path
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for part in ("license: cc-by-4.0", "CC BY 4.0", "CC0", "public domain", "| cer |"):
        assert part in card, part


def test_it_transcribes_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A synthesizer speaks, because real recordings are not in the repository."""
    with link_data() as data:
        for i, sentence in enumerate(SENTENCES):
            soundfile.write(tmp_path / f"{i}.flac", speak(sentence, Voice(), data), SAMPLE_RATE)
    capsys.readouterr()
    cli.main(["predict", str(MODEL), *(str(tmp_path / f"{i}.flac") for i in range(3))])
    texts = [line.split("\t", 1)[-1] for line in capsys.readouterr().out.splitlines() if line]
    assert len(texts) == len(SENTENCES)
    cer = CharErrorRate()
    cer.update(texts, list(SENTENCES))
    assert cer.compute() < 0.4  # an untrained recognizer has 1


def test_a_run_starts_from_it(
    tones: Path, run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    args = ["--config", str(CONFIGS / "asr_conformer_small.yaml"), f"--init_from={MODEL}"]
    args += [f"--data.init_args.root={tones}", "--trainer.max_steps=1"]
    args += ["--trainer.limit_val_batches=1", "--optimizer.init_args.lr=0"]
    run = run_cli("fit", *args)
    assert re.search(r"2,887,696 of 2,887,696 weights taken", caplog.text)
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    given = torch.load(MODEL / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, weight in given.items():
        # The filter bank is computed anew, with other last digits on another processor.
        atol = 1e-6 if name.startswith("network.features.") else 0.0
        torch.testing.assert_close(found[name].float(), weight.float(), rtol=0, atol=atol, msg=name)
