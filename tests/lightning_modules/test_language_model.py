"""Character language model: training on transcripts, use in beam search."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import cli
from commands.stages import load_run
from datamodules import LJSpeechDataModule
from engine import RunDirectory
from lightning_modules import TrainedLanguageModel
from tests.conftest import CONFIGS

FUSION = "--model.init_args.test_decoding.init_args"
BEAM = ["--model.init_args.test_decoding=networks.BeamSearch", f"{FUSION}.width=2"]


@pytest.fixture
def model(tones: Path) -> list[str]:
    corpus = "--data.init_args.corpus"
    return [
        f"--config={CONFIGS / 'lm_character.yaml'}",
        f"{corpus}.init_args.root={tones}",
        f"{corpus}.init_args.alphabet= abcdefgh",
        f"{corpus}.init_args.splits=[0.6,0.2]",
        "--model.init_args.network.init_args.hidden_size=16",
        "--data.init_args.batch_size=8",
        "--trainer.enable_progress_bar=false",
    ]


def test_weights_of_other_characters_are_refused(
    model: list[str], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    """Also where the alphabets have the same length, so that the weights would fit."""
    run_cli("fit", *model, "--trainer.max_epochs=1")
    message = fail_cli("test", *model, "--data.init_args.corpus.init_args.alphabet= hgfedcba")
    assert "the checkpoint's alphabet is ' abcdefgh', this configuration's is ' hgf" in message


def test_a_trained_language_model_joins_the_beam_search(
    model: list[str],
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
) -> None:
    run = run_cli("fit", *model, "--trainer.max_epochs=2").rename(tmp_path / "lm")
    trained = TrainedLanguageModel(str(run))
    assert trained.alphabet == " abcdefgh"
    used = [*BEAM, f"{FUSION}.language_model=lightning_modules.TrainedLanguageModel"]
    used += [f"{FUSION}.language_model.init_args.run={run}"]
    fit = run_cli("fit", *small, "--data.init_args.alphabet= abcdefgh", "--trainer.max_epochs=1")
    texts = {}
    for weight in (0.0, 1000.0):  # none, and nothing else
        weighted = [*used, f"{FUSION}.language_model_weight={weight}", f"{FUSION}.width=1"]
        run_cli("test", *small, "--data.init_args.alphabet= abcdefgh", *weighted)
        lines = (fit / "test_transcripts.csv").read_text().splitlines()
        texts[weight] = [line.split("|")[2] for line in lines]
    assert texts[0.0] != texts[1000.0]
    # CTC limits the length, with some say in the last character; the model alone never ends.
    longest = max(texts[1000.0], key=len)
    assert all(longest.startswith(text[:-1]) for text in texts[1000.0])
    alphabet = "--data.init_args.alphabet= abcdefgh"
    other = ["--experiment=fused", f"--trainer.default_root_dir={tmp_path}"]
    cli.main(["fit", *small, *used, alphabet, "--trainer.max_epochs=1", *other])
    cli.main(["pack", str(tmp_path / "fused"), "--output", str(tmp_path / "packed")])
    shutil.move(run, tmp_path / "elsewhere")  # the packed one is complete, and may be moved too
    packed = RunDirectory(Path(shutil.move(tmp_path / "packed", tmp_path / "moved")))
    assert str(tmp_path) not in packed.config.read_text()
    fused = load_run(packed.path).model.test_decoding.language_model
    assert fused.alphabet == trained.alphabet
    for exact, rounded in zip(trained.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(rounded, exact, rtol=1e-3, atol=1e-6)
    run = tmp_path / "elsewhere"
    used[-1] = f"{FUSION}.language_model.init_args.run={run}"
    message = fail_cli("test", *small, *used)
    assert "the language model's alphabet ' abcdefgh' differs from the data's" in message
    used[-1] = f"{FUSION}.language_model.init_args.run={fit}"
    message = fail_cli("test", *small, *used)
    assert "best.ckpt is not a checkpoint of a language model" in message


def test_a_packed_run_needs_no_language_model_for_validation(
    model: list[str], small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_cli("fit", *model, "--trainer.max_epochs=1").rename(tmp_path / "lm")
    of_validation = [setting.replace("test_decoding", "decoding") for setting in BEAM]
    search = FUSION.replace("test_decoding", "decoding")
    of_validation += [f"{search}.language_model=lightning_modules.TrainedLanguageModel"]
    of_validation += [f"{search}.language_model.init_args.run={run}"]
    alphabet = "--data.init_args.alphabet= abcdefgh"
    fit = run_cli("fit", *small, *of_validation, alphabet, "--trainer.max_epochs=1")
    both = shutil.copytree(fit, tmp_path / "both")
    config = yaml.safe_load((fit / "config.yaml").read_text())
    settings = config["model"]["init_args"]
    assert settings["test_decoding"] is None
    settings["test_decoding"] = settings["decoding"] | {}
    (both / "config.yaml").write_text(yaml.safe_dump(config))
    for source in (fit, both):
        cli.main(["pack", str(source), "--output", str(tmp_path / f"packed_{source.name}")])
    shutil.rmtree(run)
    for source in (fit, both):
        packed = load_run(tmp_path / f"packed_{source.name}").model
        assert packed.test_decoding.width == 2
        assert packed.test_decoding.language_model.alphabet == " abcdefgh"
        assert not hasattr(packed.decoding, "language_model")


def test_its_loss_is_that_of_the_texts_one_by_one(
    model: list[str], run_cli: Callable[..., Path]
) -> None:
    run = run_cli("fit", *model, "--trainer.max_epochs=2")
    run_cli("test", *model)
    metrics = json.loads((run / "test_metrics.json").read_text())["metrics"]
    trained = TrainedLanguageModel(str(run)).eval()
    total = count = 0.0
    root = next(arg for arg in model if ".root=" in arg).partition("=")[2]
    corpus = LJSpeechDataModule(
        root, alphabet=" abcdefgh", splits=(0.6, 0.2), normalize_text="letters"
    )
    for transcript in corpus.split_transcripts()["test"]:
        tokens = torch.tensor([corpus.vocabulary.encode(transcript.text)])
        state = trained.start()
        for i in range(tokens.shape[1] - 1):
            logs = trained.step(tokens[:, i], state).log_softmax(-1)
            total -= float(logs[0, tokens[0, i + 1]])
            count += 1
    assert metrics["test/loss"] == pytest.approx(total / count, rel=1e-4)
    assert metrics["test/bits_per_character"] == pytest.approx(
        total / count / math.log(2), rel=1e-4
    )
