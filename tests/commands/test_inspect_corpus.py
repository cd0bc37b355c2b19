"""``inspect``: what it finds in a corpus with one of each fault."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import cli
from tests.conftest import CONFIGS, SAMPLE_RATE


@pytest.fixture
def data(own_tones: Path, tmp_path: Path) -> list[str]:
    """Arguments for a corpus with a repeated text, a silent, a clipped and a torn clip."""
    lines = (own_tones / "metadata.csv").read_text().splitlines()
    lines[7] = "T-007|x|" + lines[0].split("|")[2]
    lines[1] += "éİs"  # the lower case of İ is i and an accent
    (own_tones / "metadata.csv").write_text("\n".join(lines) + "\n")
    wavs = own_tones / "wavs"
    soundfile.write(wavs / "T-002.wav", np.zeros(10_000), SAMPLE_RATE)
    soundfile.write(wavs / "T-003.wav", np.ones(10_000), SAMPLE_RATE)
    (wavs / "T-004.wav").write_bytes(b"RIFF")
    config = tmp_path / "data.yaml"
    init = {"root": str(own_tones), "splits": [0.5, 0.25]}
    data = {"class_path": "datamodules.LJSpeechDataModule", "init_args": init}
    config.write_text(yaml.safe_dump({"data": data}))
    return ["inspect", str(CONFIGS / "asr_transformer.yaml"), str(config)]


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_a_corpus_is_described_and_its_oddities_are_named(data: list[str], tmp_path: Path) -> None:
    cli.main([*data, "--output", str(tmp_path / "found")])
    table = (tmp_path / "found" / "corpus.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in table.splitlines() if line.startswith("|"))
    }
    assert rows[""] == ["train", "val", "test"]
    assert rows["clips"] == ["4", "1", "2"]
    assert rows["characters not in the alphabet"] == ["'é' 1, '\u0307' 1", "none", "none"]
    assert rows["clipped clips"] == ["1", "0", "0"]
    assert "1 clip(s) cannot be read: " in table
    assert "T-004.wav" in table
    assert "1 transcript(s) occur in several splits: T-000 = T-007." in table
    assert "0 recording(s) occur in several splits." in table
    assert "1 clip(s) are silent for over 90 %: T-002." in table
    assert (tmp_path / "found" / "corpus.png").stat().st_size > 10_000


def test_a_corpus_without_a_readable_clip_is_refused_with_a_reason(
    data: list[str], own_tones: Path
) -> None:
    for path in (own_tones / "wavs").iterdir():
        path.unlink()
    with (
        pytest.warns(UserWarning, match="skipped clip"),
        pytest.raises(SystemExit, match=r"error: no clip can be read: .*T-000\.wav .*not exist"),
    ):
        cli.main(data)


def test_what_is_no_speech_corpus_is_named(data: list[str], tmp_path: Path) -> None:
    for configs in ([str(CONFIGS / "octmnist_cnn.yaml")], ["missing.yaml"]):
        with pytest.raises(
            SystemExit,
            match=rf"error: cannot build a speech corpus from .*{Path(configs[0]).name}: ",
        ):
            cli.main(["inspect", *configs])
    with pytest.raises(SystemExit, match=r"error: .*batch_sizes"):
        cli.main([*data, "--data.init_args.batch_sizes=3"])
    empty = tmp_path / "empty.yaml"
    empty.write_text(json.dumps({}))
    with pytest.raises(SystemExit, match=r"error: cannot build .* from .*empty\.yaml: "):
        cli.main(["inspect", str(empty)])
