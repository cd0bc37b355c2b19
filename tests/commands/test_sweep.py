import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch

import cli
from tests.conftest import CONFIGS, ROOT

SWEEP = """
configs: [{config}]
set: {{trainer.max_epochs: 1, trainer.enable_progress_bar: false, data.init_args.file: {file}}}
search:
  optimizer.init_args.lr: [{values}]
trials: {trials}
"""


def write_sweep(folder: Path, retinas: Path, values: str, trials: str = "grid") -> list[str]:
    config = CONFIGS / "octmnist_logistic_regression.yaml"
    text = SWEEP.format(config=config, file=retinas, values=values, trials=trials)
    (folder / "rates.yaml").write_text(text)
    root = f"--trainer.default_root_dir={folder / 'runs'}"
    return ["sweep", "--config", str(folder / "rates.yaml"), root]


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.1)


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder / 'runs' / 'rates' / 'study.db'}"
    return optuna.load_study(study_name="rates", storage=storage).trials


def test_two_processes_share_a_grid_and_a_failed_trial_is_only_recorded(
    retinas: Path, tmp_path: Path
) -> None:
    # A negative learning rate is refused by the optimizer.
    command = [sys.executable, "cli.py", *write_sweep(tmp_path, retinas, "0.1, 0.01, -1.0, 0.001")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    states = optuna.trial.TrialState
    taken = [trial for trial in trials_of(tmp_path) if trial.state != states.PRUNED]
    assert sorted(trial.params["optimizer.init_args.lr"] for trial in taken) == [
        -1,
        0.001,
        0.01,
        0.1,
    ]
    assert {trial.params["optimizer.init_args.lr"]: trial.state for trial in taken}[
        -1
    ] == states.FAIL
    assert sum(trial.state == states.COMPLETE for trial in taken) == 3
    folder = tmp_path / "runs" / "rates"
    table = (folder / "sweep.md").read_text(encoding="utf-8")
    assert "Invalid learning rate: -1.0" in table
    assert (folder / "curves.png").exists()
    # Only the winner was tested, and it won on validation.
    tested = list(folder.glob("*/test_metrics.json"))
    best = max((t for t in taken if t.value is not None), key=lambda t: t.value or 0)
    assert [path.parent.name for path in tested] == [f"lr={best.params['optimizer.init_args.lr']}"]
    accuracy = json.loads(tested[0].read_text())["metrics"]["test/accuracy"]
    assert f"test/accuracy {accuracy:.4f}" in table
    # Once more: nothing is left to do.
    before = len(trials_of(tmp_path))
    cli.main(command[2:])
    assert len(trials_of(tmp_path)) == before


@pytest.mark.parametrize(
    ("values", "trials", "extra", "message"),
    [
        ("0.1", "grid", ["--optimizer.init_args.lrr=3"], "lrr"),
        ("many", "grid", [], "many"),
        ("", "grid", [], "needs a list of values"),
        ("0.1", "some", [], "trials must be grid or a number above 0, not some"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_its_first_trial(
    values: str, trials: str, extra: list[str], message: str, retinas: Path, tmp_path: Path
) -> None:
    args = write_sweep(tmp_path, retinas, values, trials)
    with pytest.raises(SystemExit, match=message):
        cli.main([*args, *extra])
    assert not (tmp_path / "runs").exists()


def test_a_key_that_does_not_exist_is_named(retinas: Path, tmp_path: Path) -> None:
    args = write_sweep(tmp_path, retinas, "0.1")
    text = (tmp_path / "rates.yaml").read_text()
    (tmp_path / "rates.yaml").write_text(text.replace("init_args.lr:", "init_args.rate:"))
    with pytest.raises(SystemExit, match="Option 'rate' is not accepted"):
        cli.main(args)


def test_every_sweep_of_the_suite_searches_keys_that_exist() -> None:
    from commands.sweep import read_sweep

    sweeps = sorted((CONFIGS / "sweeps").glob("*.yaml"))
    assert len(sweeps) == 6
    os.chdir(ROOT)
    counts = {path.stem: len(read_sweep(path, []).search) for path in sweeps}
    assert counts["octmnist_mlp_search"] == 4


@pytest.mark.slow
def test_a_killed_sweeps_fit_goes_on_and_is_not_run_twice(retinas: Path, tmp_path: Path) -> None:
    args = write_sweep(tmp_path, retinas, "0.01, 0.1")
    args += ["--trainer.max_epochs=40"]
    process = subprocess.Popen([sys.executable, "cli.py", *args], cwd=ROOT)
    runs = tmp_path / "runs" / "rates"
    wait_for(runs, "*/checkpoints/best.ckpt")
    process.kill()
    process.wait()
    cli.main(args)  # beside the orphan
    done = [trial for trial in trials_of(tmp_path) if trial.value is not None]
    assert sorted(trial.params["optimizer.init_args.lr"] for trial in done) == [0.01, 0.1]
    for run in runs.glob("lr=*/"):
        with (run / "metrics.csv").open(newline="") as file:
            epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert epochs == list(range(40))  # each once: no two processes wrote it
    assert (runs / "sweep.md").exists()


def test_an_interrupted_sweep_goes_on_and_its_run_resumes(retinas: Path, tmp_path: Path) -> None:
    args = write_sweep(tmp_path, retinas, "0.01")
    long = [*args, "--trainer.max_epochs=100000"]
    process = subprocess.Popen([sys.executable, "cli.py", *long], cwd=ROOT)
    runs = tmp_path / "runs" / "rates"
    wait_for(runs, "*/checkpoints/best.ckpt")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (last,) = runs.glob("*/checkpoints/last.ckpt")
    epoch = torch.load(last, weights_only=True)["epoch"]
    cli.main([*args, f"--trainer.max_epochs={epoch + 2}"])
    done = [trial for trial in trials_of(tmp_path) if trial.value is not None]
    assert sorted(trial.params["optimizer.init_args.lr"] for trial in done) == [0.01]
    log = last.parent.parent.with_suffix(last.parent.parent.suffix + ".log").read_text()
    assert "Restored all states from the checkpoint" in log
