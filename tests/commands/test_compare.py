import json
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from engine import RunDirectory, read_checkpoint, read_rows
from tests.conftest import CONFIGS
from tests.outside import PLAIN


def train(name: str, retinas: Path, runs: Path, experiment: str, *, test: bool = True) -> Path:
    args = ["--config", str(CONFIGS / f"octmnist_{name}.yaml"), "--experiment", experiment]
    args += [f"--data.init_args.file={retinas}", f"--trainer.default_root_dir={runs}"]
    args += ["--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"]
    cli.main(["fit", *args])
    if test:
        cli.main(["test", *args])
    return runs / experiment


def test_a_comparison_is_a_table_and_curves(
    retinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        train("perceptron", retinas, tmp_path, "first"),
        train("logistic_regression", retinas, tmp_path, "second"),
    ]
    cli.main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").splitlines()
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines[2:])}
    assert lines[0] == "|  | first | second |"
    assert rows["parameters"] == ["3,140", "3,140"]
    assert all(cell.endswith(" of 3") for cell in rows["best epoch"])
    for metric in ("train/loss", "val/loss", "test/accuracy", "test/auc", "seconds/epoch"):
        assert all(float(cell) >= 0 for cell in rows[metric])
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "test/accuracy" in capsys.readouterr().out


def test_runs_that_were_tested_on_other_data_are_told_apart(
    retinas: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train("perceptron", retinas, tmp_path, "first")
    second = train("perceptron", retinas, tmp_path, "second", test=False)
    config = ["--config", str(second / "config.yaml"), "--data.init_args.max_images=9"]
    cli.main(["test", *config])
    assert "data.init_args.max_images was None in training and is 9 now" in caplog.text
    cli.main(["compare", str(first), str(second), "--output", str(tmp_path / "out")])
    table = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| data: max_images | None | 9 |" in table
    assert "data: file" not in table
    for file in ("metrics.csv", "test_metrics.json"):
        (second / file).unlink()
    with pytest.raises(SystemExit, match=r"it has no metrics\.csv; it had other loggers"):
        cli.main(["compare", str(first), str(second)])


def test_missing_unfinished_and_incomparable_runs_are_named(
    retinas: Path, small: list[str], tmp_path: Path
) -> None:
    image = train("perceptron", retinas, tmp_path, "image")
    untested = train("perceptron", retinas, tmp_path, "untested", test=False)
    speech = [*small, "--experiment", "speech", f"--trainer.default_root_dir={tmp_path}"]
    cli.main(["fit", *speech])
    cli.main(["test", *speech])
    for other, message in (
        (tmp_path / "nowhere", "nowhere is no run directory"),
        (untested, "untested is not finished: it has no test_metrics.json"),
        (tmp_path / "speech", "are of different tasks"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["compare", str(image), str(other), "--output", str(tmp_path / "out")])
    scores = json.loads((image / "test_metrics.json").read_text())
    without = {key: value for key, value in scores.items() if key != "step"}  # version 0.1.0
    for stale in (scores | {"step": 1}, without):
        (image / "test_metrics.json").write_text(json.dumps(stale))
        with pytest.raises(SystemExit, match=r"test_metrics\.json is not of best\.ckpt: test the"):
            cli.main(["compare", str(image), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_other_peoples_modules_are_compared_too(
    run_cli: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*PLAIN, "--model.metric=val_loss", "--checkpoint.monitor=val_loss"]
    args += ["--model.training_metric=train_loss"]
    run = run_cli("fit", *args, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")
    run_cli("test", *args)
    capsys.readouterr()
    cli.main(["compare", str(run), "--output", str(tmp_path / "out")])
    assert "test/loss" in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").is_file()
    cli.main(["card", str(run)])
    assert "| training time | 2 epochs of" in (run / "README.md").read_text()
    cli.main(["pack", str(run), "--output", str(tmp_path / "packed")])
    assert "fit --init_from" in capsys.readouterr().out


def test_runs_are_compared_by_the_validation_that_chose_the_checkpoint(
    retinas: Path, tmp_path: Path
) -> None:
    """Not by the last of its epoch; settings of the test that differ are named, and equal names."""
    runs = []
    for folder, limit in (("a", []), ("b", ["--trainer.limit_test_batches=1"])):
        args = ["--config", str(CONFIGS / "octmnist_cnn.yaml"), "--experiment", "run"]
        args += [
            f"--data.init_args.file={retinas}",
            f"--trainer.default_root_dir={tmp_path / folder}",
        ]
        args += ["--data.init_args.steps_per_execution=1", "--data.init_args.batch_size=16"]
        args += ["--trainer.val_check_interval=1", "--trainer.max_epochs=2"]
        args += ["--trainer.enable_progress_bar=false", "--optimizer.init_args.lr=0.5"]
        cli.main(["fit", *args])
        cli.main(["test", *args, *limit])
        runs.append(tmp_path / folder / "run")
    cli.main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"|  | {runs[0]} | {runs[1]} |"
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines[2:])}
    assert rows["tested with"] == ["–", "limit_test_batches 1"]
    step = read_checkpoint(runs[0] / "checkpoints" / "best.ckpt")["global_step"]
    chosen = [
        row["val/loss"]
        for row in read_rows(runs[0] / "metrics.csv")
        if "val/loss" in row and int(row["step"]) == step - 1
    ]
    assert rows["val/loss"][0] == f"{float(chosen[-1]):.4f}"
    cli.main(["card", str(runs[1])])
    assert "On the test set, with limit_test_batches 1." in (runs[1] / "README.md").read_text()
    cli.main(["pack", str(runs[1]), "--output", str(tmp_path / "packed")])
    packed = RunDirectory(tmp_path / "packed").read_scores()
    assert packed is not None
    assert packed.changed == {"trainer.limit_test_batches": 1}
