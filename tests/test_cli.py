"""The command line: run directories, checkpoints, interruptions, bad input."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

import cli
from engine import RunDirectory, read_rows
from tests.conftest import CONFIGS, LETTERS, ROOT, write_corpus


def column(run: Path, name: str) -> dict[int, float]:
    """Step → value of one metric; fails if a step was logged twice."""
    rows = read_rows(run / "metrics.csv")
    found = [(int(row["step"]), float(row[name])) for row in rows if name in row]
    assert len(found) == len(dict(found)), f"{name}: a step is logged twice"
    return dict(found)


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["fit", "-h"], []])
def test_help_is_instant_because_it_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import cli\ntry: cli.main({args})\nexcept SystemExit: pass\n"
        "import sys; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: cli.py" in done.stdout
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_short_help_names_only_arguments_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    helps = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["fit", flag])
        assert stopped.value.code == 0
        helps.append(capsys.readouterr().out)
    assert "--trainer.gradient_clip_val" in helps[1]
    for argument in (
        "--config",
        "--experiment",
        "--ckpt_path",
        "--print_config",
        "--trainer.devices",
    ):
        assert argument in helps[0]
        assert argument in helps[1]


def test_a_run_goes_where_the_first_config_or_the_experiment_says(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fast = ["--config", str(CONFIGS / "debug" / "fast.yaml"), "--trainer.logger=false"]
    cli.main(["fit", *small, *fast])
    cli.main(["fit", *small, *fast, "--experiment", "other"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["other", "small"]
    for name in ("other", "small"):
        checkpoints = tmp_path / "runs" / name / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    # The saved configuration is one to run from, and knows its experiment.
    saved = tmp_path / "runs" / "other" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["experiment"] == "other"
    cli.main(["test", "--config", str(saved)])
    assert (tmp_path / "runs" / "other" / "test_metrics.json").exists()


class ThreadCounter(Callback):
    """Keep the number of threads that a fit uses."""

    threads: ClassVar[list[int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.threads.append(torch.get_num_threads())


def test_threads_are_set_for_a_run_and_not_for_what_follows(
    small: list[str], run_cli: Callable[..., Path]
) -> None:
    before = torch.get_num_threads()
    counter = f"--trainer.callbacks+={ThreadCounter.__module__}.{ThreadCounter.__qualname__}"
    run_cli("fit", *small, "--trainer.max_epochs=1", counter, f"--threads={before + 1}")
    assert ThreadCounter.threads == [before + 1]
    assert torch.get_num_threads() == before


def test_a_used_run_directory_is_left_alone(
    small: list[str], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    run = run_cli("fit", *small)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    message = fail_cli("fit", *small)
    assert str(run) in message
    assert "--ckpt_path last" in message
    assert "--experiment OTHER" in message
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_recognizer_learns_and_test_scores_the_best_checkpoint(
    small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Letters spoken as tones are easy, but cannot be learned if masks or decoding are wrong."""
    root = write_corpus(tmp_path / "many", 300)
    args = [*small, "--data.init_args.root", root, "--trainer.max_epochs=18"]
    args += ["--data.init_args.splits=[0.9,0.05]", "--trainer.check_val_every_n_epoch=6"]
    run = run_cli("fit", *args)
    errors = column(run, "val/cer")
    run_cli("test", *args)
    scores = yaml.safe_load((run / "test_metrics.json").read_text())["metrics"]
    assert scores["test/cer"] < 0.1, (errors, scores)
    assert scores["test/damerau_levenshtein"] > 0.9
    lines = (run / "test_transcripts.csv").read_text().splitlines()
    assert len(lines) == 15
    assert sum(a == b for _, a, b in (line.split("|") for line in lines)) >= 8


def test_the_configuration_is_saved_whatever_the_logger(
    small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir", tmp_path / "logs"]
    run = run_cli("fit", *small, "--trainer.max_epochs=1", *logger)
    assert list((tmp_path / "logs").rglob("metrics.csv"))
    run_cli("test", "--config", run / "config.yaml")


def test_the_learning_rate_follows_the_steps_of_the_whole_training_over_a_resume(
    small: list[str], run_cli: Callable[..., Path]
) -> None:
    # 24 clips in batches of 8: 3 steps an epoch, 12 in all.
    run_cli("fit", *small, "--trainer.max_epochs=2", "--lr_scheduler.init_args.total_steps=12")
    run = run_cli("fit", *small, "--trainer.max_epochs=4", "--ckpt_path", "last")
    rates = column(run, "lr-AdamW")
    assert list(rates) == list(range(12))
    progress = [step / 11 for step in range(12)]
    heights = [p / 0.15 if p < 0.15 else (1 - p) / 0.85 for p in progress]
    assert list(rates.values()) == pytest.approx([3e-3 * (0.01 + 0.99 * h) for h in heights])


def test_predict_transcribes_files_without_a_corpus(
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
    tones: Path,
) -> None:
    run_cli("fit", *small)
    folder = tmp_path / "recordings" / "deeper"
    folder.mkdir(parents=True)
    for name, clip in (("b.wav", "T-001"), ("a.wav", "T-002")):
        (folder / name).write_bytes((tones / "wavs" / f"{clip}.wav").read_bytes())
    paths = f"[{tmp_path / 'recordings'},{tones / 'wavs' / 'T-000.wav'}]"
    run = run_cli(
        "predict", *small, "--data.init_args.root=nowhere", "--data.init_args.predict_paths", paths
    )
    lines = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[0] for line in lines] == ["a", "b", "T-000"]
    assert all(
        set(line.split("|")[1]) <= set(LETTERS) | set(",.?-#ijklmnopqrstuvwxyz") for line in lines
    )
    (tmp_path / "recordings" / "b.flac").write_bytes((folder / "b.wav").read_bytes())
    message = fail_cli("predict", *small, "--data.init_args.predict_paths", paths)
    assert "would both be b in predictions.csv" in message


def test_a_run_is_trained_by_one_process_at_a_time(
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.run_directory.GRACE_SECONDS", 0.0)
    run = RunDirectory(tmp_path / "runs" / "run")
    total = ["--lr_scheduler.init_args.total_steps=6"]
    with run.lock():
        assert "is being trained by another process" in fail_cli("fit", *small)
    run_cli("fit", *small, "--trainer.max_epochs=1", "--seed_everything=7", *total)
    with run.lock():
        assert "is being trained by another process" in fail_cli("fit", *small, "--ckpt_path=last")
    run_cli("fit", *small, "--trainer.max_epochs=2", *total, "--ckpt_path=last")
    assert run.read_config()["seed_everything"] == 7  # the run's own


@pytest.mark.parametrize(
    ("stage", "args", "parts"),
    [
        ("fit", ["--config", "nowhere.yaml"], ["nowhere.yaml", "not exist"]),
        ("fit", ["--modle=3"], ["--modle=3"]),
        ("fit", ["--data.init_args.rot=3"], ["rot", "not accepted"]),
        ("fit", ["--trainer.max_epochs=many"], ["max_epochs", "many"]),
        ("fit", ["--data.init_args.alphabet=aa"], ["'a' twice"]),
        ("fit", ["--data.init_args.alphabet=ab|"], ["alphabet must not have '|'"]),
        ("fit", ["--data.init_args.root=/dev/null/no"], ["/dev/null/no"]),
        ("fit", ["--data.init_args.sample_rate=16000"], ["16000 Hz", "22050 Hz"]),
        (
            "fit",
            ["--model.init_args.network.init_args.decoder.init_args.max_tokens=5"],
            ["metadata.csv line", "max_tokens 5", "max_characters=4"],
        ),
        ("fit", ["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        ("fit", ["--ckpt_path=last"], ["last.ckpt", "does not exist"]),
        ("test", [], ["best.ckpt", "does not exist", "--experiment"]),
        ("fit", ["--trainer.accelerator=gpu"], ["gpu"]),
        (
            "fit",
            ["--data.init_args.max_faulty_clips=2"],
            ["max_faulty_clips is now data.init_args.max_unreadable_clips"],
        ),
        (
            "fit",
            ["--model.init_args.augment=networks.SpecAugment"],
            ["augment is now model.init_args.network.init_args.augment"],
        ),
        ("fit", ["--model.init_args.ctc_weight=2"], ["ctc_weight 2"]),
        ("fit", ["--data.init_args.num_workers=-1"], ["num_workers -1 is negative"]),
        ("fit", ["--threads=0"], ["threads", "0"]),
        ("fit", ["--trainer.overfit_batches=1"], ["overfit_batches", "data.init_args.max_clips"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    stage: str,
    args: list[str],
    parts: list[str],
    small: list[str],
    fail_cli: Callable[..., str],
    tmp_path: Path,
) -> None:
    if "gpu" in parts and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = fail_cli(stage, *small, *args)
    for part in parts:
        assert part in message
    assert not list((tmp_path / "runs").rglob("*.*"))


def test_what_is_no_checkpoint_or_another_models_is_refused(
    small: list[str], run_cli: Callable[..., Path], fail_cli: Callable[..., str], tmp_path: Path
) -> None:
    run = run_cli("fit", *small)
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    truncated = run / "checkpoints" / "truncated.ckpt"
    truncated.write_bytes(whole[: len(whole) // 2])
    for stage in ("fit", "test"):
        assert "truncated.ckpt is not a whole checkpoint" in fail_cli(
            stage, *small, "--ckpt_path", truncated
        )
    wider = "--model.init_args.network.init_args.encoder.init_args.layers=3"
    assert "does not fit this configuration's model" in fail_cli("test", *small, wider)


@pytest.mark.parametrize("path", ["-d.wav", "--config.wav", "--help"])
@pytest.mark.parametrize(
    "args",
    [
        ["RUN", "--format", "txt", "a.wav", "--"],
        ["RUN", "a.wav", "--format", "txt", "--"],
        ["--format", "txt", "--", "RUN", "a.wav"],
    ],
)
def test_paths_of_predict_may_follow_two_dashes(args: list[str], path: str) -> None:
    assert not cli.is_stage(["predict", *args, path])
    options = cli.parse_own(["predict", *args, path])
    assert options.path == Path("RUN")
    assert options.inputs == [Path("a.wav"), Path(path)]
    assert options.format == "txt"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train"])
    assert stopped.value.code == 2
    assert "invalid choice: 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "--experiment is empty"), ("1e-3", "--experiment 1e-3 reads as a number")],
)
def test_names_that_a_run_cannot_have(name: str, message: str, small: list[str]) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(["fit", *small, f"--experiment={name}"])
