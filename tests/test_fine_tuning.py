"""``fit --init_from`` starts from another run's weights; ``lr_factors`` by part of the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.vocabulary import CharacterVocabulary
from engine import read_rows
from tests.conftest import CONFIGS

DECODER = "--model.init_args.network.init_args.decoder.init_args"
ENCODER = "--model.init_args.network.init_args.encoder.init_args"
FROZEN = ["--optimizer.init_args.lr=0", "--optimizer.init_args.weight_decay=0"]


@pytest.fixture
def trained(small: list[str], run_cli: Callable[..., Path], tmp_path: Path) -> Path:
    run = run_cli("fit", *small, "--trainer.max_epochs=1")
    return run.rename(tmp_path / "trained")


def weights_of(run: Path, name: str = "best") -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / f"{name}.ckpt"
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def test_a_new_run_starts_from_a_runs_best_weights(
    trained: Path, small: list[str], run_cli: Callable[..., Path]
) -> None:
    once = [*small, *FROZEN, "--trainer.max_epochs=1"]
    run = run_cli("fit", *once, f"--init_from={trained}")
    before, after = weights_of(trained), weights_of(run, "last")
    assert all(torch.equal(before[name], value) for name, value in after.items())
    rows = read_rows(run / "metrics.csv")
    assert [row["step"] for row in rows if "train/loss_step" in row] == ["0", "1", "2"]
    # Resuming takes the run's own weights, although its configuration still names the other run.
    trained.rename(trained.with_name("gone"))
    longer = ["--trainer.max_epochs=2", "--lr_scheduler.init_args.total_steps=3"]
    run_cli("fit", *once[:-1], *longer, f"--init_from={trained}", "--ckpt_path=last")


def test_another_alphabet_longer_texts_and_a_deeper_encoder_keep_what_fits(
    trained: Path,
    small: list[str],
    run_cli: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed = [f"{DECODER}.max_tokens=30", f"{ENCODER}.layers=3"]
    changed += ["--data.init_args.alphabet= abcdefgh'"]
    path = trained / "checkpoints" / "last.ckpt"
    run = run_cli("fit", *small, *FROZEN, *changed, "--trainer.max_epochs=1", f"--init_from={path}")
    before, after = weights_of(trained, "last"), weights_of(run)
    old, new = CharacterVocabulary(), CharacterVocabulary(" abcdefgh'")
    shared = [symbol for symbol in new.symbols if symbol in old.symbols]
    assert set(new.symbols) - set(shared) == {"'"}
    for name in ("decoder.embedding.weight", "decoder.output.bias", "ctc_head.weight"):
        rows = [old.symbols.index(symbol) for symbol in shared]
        kept = [new.symbols.index(symbol) for symbol in shared]
        expected = before[f"network.{name}"][rows]
        assert torch.equal(after[f"network.{name}"][kept], expected), name
    positions = "network.decoder.positions"
    assert torch.equal(after[positions][:20], before[positions])
    assert after[positions][20:].abs().min() > 0  # drawn
    assert torch.equal(
        after["network.encoder.blocks.1.mlp.0.weight"],
        before["network.encoder.blocks.1.mlp.0.weight"],
    )
    told = caplog.text + "".join(capsys.readouterr())
    assert "20 of 30 positions kept; randomly initialized: the rest" in told
    assert f"Started from {path}: " in told
    assert "Randomly initialized: network.encoder.blocks.2.attention_norm.weight" in told
    assert """randomly initialized: "'\"""" in told


def test_a_network_with_batch_norm_keeps_its_statistics(
    retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    args = ["--config", str(CONFIGS / "octmnist_best.yaml"), f"--data.init_args.file={retinas}"]
    args += ["--model.init_args.network.init_args.widths=[4,8]"]
    args += ["--data.init_args.max_images=60", "--trainer.max_epochs=1"]
    first = run_cli("fit", *args).rename(tmp_path / "first")
    before = weights_of(first)
    run = run_cli("fit", *args, f"--init_from={first}", "--optimizer.init_args.lr=0")
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert all("running" in name or "num_batches" in name for name in changed)
    counts = [int(value) for name, value in after.items() if "num_batches" in name]
    assert set(counts) == {2}  # one batch in each run


def test_a_language_model_keeps_the_characters_it_knows(
    tones: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = "--data.init_args.corpus.init_args"
    args = ["--config", str(CONFIGS / "lm_character.yaml"), f"{corpus}.root={tones}"]
    args += [f"{corpus}.splits=[0.6,0.2]", "--trainer.max_epochs=1"]
    first = run_cli("fit", *args, f"{corpus}.alphabet= abcdefgh").rename(tmp_path / "first")
    run = run_cli("fit", *args, *FROZEN, f"{corpus}.alphabet=hg ", f"--init_from={first}")
    name = "network.embedding.weight"
    rows = [CharacterVocabulary(" abcdefgh").symbols.index(c) for c in "<>@#hg "]
    assert torch.equal(weights_of(run)[name], weights_of(first)[name][rows])


def test_what_cannot_be_started_from_is_named_in_one_line(
    trained: Path,
    small: list[str],
    retinas: Path,
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
) -> None:
    images = ["--config", str(CONFIGS / "octmnist_cnn.yaml"), f"--data.init_args.file={retinas}"]
    images += ["--trainer.max_epochs=1"]
    other = run_cli("fit", *images).rename(tmp_path / "images")
    assert "so it is of another task" in fail_cli("fit", *small, f"--init_from={other}")
    assert "it is of another task" in fail_cli("fit", *images, f"--init_from={trained}")
    message = fail_cli("fit", *small, f"--init_from={tmp_path / 'nowhere'}")
    assert "nowhere does not exist: name a checkpoint or a run directory" in message
    (tmp_path / "torn.ckpt").write_bytes(b"PK")
    message = fail_cli("fit", *small, f"--init_from={tmp_path / 'torn.ckpt'}")
    assert "torn.ckpt is not a whole checkpoint of a run" in message
    message = fail_cli("fit", *small, "--lr_factors={network.enkoder: 0.1}")
    assert "no part 'network.enkoder'; its parts are network.ctc_head, network.d" in message


def test_parts_of_the_model_learn_at_rates_of_their_own(
    small: list[str], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    factors = "--lr_factors={network.encoder: 0.0, network.decoder: 0.5}"
    args = [*small, factors, "--optimizer.init_args.weight_decay=0"]
    run = run_cli("fit", *args, "--trainer.max_epochs=1", "--lr_scheduler.init_args.total_steps=6")
    rows = [row for row in read_rows(run / "metrics.csv") if "lr-AdamW/others" in row]
    assert len(rows) == 3
    for row in rows:
        assert float(row["lr-AdamW/network.encoder"]) == 0
        half = float(row["lr-AdamW/others"]) / 2
        assert float(row["lr-AdamW/network.decoder"]) == pytest.approx(half)
    for other in ("{}", "{network.decoder: 0.5, network.encoder: 0.0}"):
        message = fail_cli("fit", *small, f"--lr_factors={other}", "--ckpt_path=last")
        assert "was trained with lr_factors for network.encoder, network.decoder, " in message
    start = weights_of(run, "last")
    run_cli("fit", *args, "--ckpt_path=last")
    end = weights_of(run, "last")
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert not [name for name in moved if ".encoder." in name]
    assert [name for name in moved if ".decoder." in name]
    assert "network.ctc_head.weight" in moved
