import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

import cli
from commands.sweep import Sweep
from tests.conftest import CONFIGS, ROOT

LR = "optimizer.init_args.lr"


def write_sweep(folder: Path, retinas: Path, rates: Any, epochs: int = 1, **more: Any) -> list[str]:
    """Write a sweep of learning rates; return the command line that runs it in ``folder``."""
    fixed = {
        "trainer.max_epochs": epochs,
        "trainer.enable_progress_bar": False,
        "data.init_args.file": str(retinas),
    }
    content = {
        "configs": [str(CONFIGS / "octmnist_logistic_regression.yaml")],
        "set": fixed,
        "search": {LR: rates},
        "trials": "grid",
        **more,
    }
    (folder / "rates.yaml").write_text(yaml.safe_dump(content))
    root = f"--trainer.default_root_dir={folder / 'runs'}"
    return ["sweep", "--config", str(folder / "rates.yaml"), root]


def start(args: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "cli.py", *args], cwd=ROOT, env=environment)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.1)


def trials_of(folder: Path, url: str | None = None) -> list[FrozenTrial]:
    journal = str(folder / "runs" / "rates" / "journal.log")
    storage = url or optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(journal)
    )
    return optuna.load_study(study_name="rates", storage=storage).trials


def trained_epochs(run: Path) -> list[int]:
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row["train/loss"]]


def rates(trials: list[FrozenTrial], state: TrialState) -> list[float]:
    return sorted(trial.params[LR] for trial in trials if trial.state == state)


def test_two_processes_share_a_grid_and_a_failed_trial_is_only_recorded(
    retinas: Path, tmp_path: Path
) -> None:
    # A negative learning rate is refused by the optimizer.
    command = write_sweep(tmp_path, retinas, [0.1, -1.0, 0.01])
    both = [start(command) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    trials = trials_of(tmp_path)
    assert rates(trials, TrialState.COMPLETE) == [0.01, 0.1]
    assert [t.params[LR] for t in trials if "error" in t.user_attrs] == [-1.0]
    folder = tmp_path / "runs" / "rates"
    table = (folder / "sweep.md").read_text(encoding="utf-8")
    assert "Invalid learning rate: -1.0" in table
    assert (folder / "curves.png").exists()
    # Only the winner was tested, and it won on validation.
    (tested,) = folder.glob("*/test_metrics.json")
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value or 0)
    assert tested.parent.name.endswith(f"lr={best.params[LR]}")
    accuracy = json.loads(tested.read_text())["metrics"]["test/accuracy"]
    assert f"test/accuracy {accuracy:.4f}" in table
    # Once more: nothing is left to do.
    written = tested.stat().st_mtime_ns
    cli.main(command)
    assert tested.stat().st_mtime_ns == written
    assert len(trials_of(tmp_path)) == len(trials)
    # Another search does not mix with this one.
    with pytest.raises(SystemExit, match="has other values"):
        cli.main(write_sweep(tmp_path, retinas, [0.1, 0.2]))


def test_pruning_stops_a_bad_trial_early(retinas: Path, tmp_path: Path) -> None:
    write_sweep(tmp_path, retinas, [0.1, 0.2, 0.3, 0.01], 1000, pruning="median")
    sweep = Sweep(tmp_path / "rates.yaml", [f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    sweep.folder.mkdir(parents=True)
    sweep.open_study(None)
    for _ in range(3):  # as if three trials had reached an accuracy of 1 in their first epoch
        trial = sweep.study.ask()
        sweep.suggest(trial, LR)
        trial.report(1.0, 0)
        sweep.study.tell(trial, 1.0)
    sweep.work()
    pruned = trials_of(tmp_path)[3]
    assert pruned.state == TrialState.PRUNED
    assert pruned.intermediate_values[0] < 1
    run = sweep.run(pruned)
    assert (run.checkpoints / "last.ckpt").exists()
    assert len(trained_epochs(run.path)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {LR: ["many"]}}, "many"),
        ({"search": {LR: []}}, "lr needs a list of values"),
        ({"search": {LR: {"low": 0.1, "high": 1.0}}}, "lr needs a list of values"),
        ({"search": {LR: {"low": 1.0, "high": 0.1}}, "trials": 3}, "low"),
        ({"search": {LR: {"low": 1.0}}, "trials": 3}, "high"),
        ({"search": {"optimizer.init_args.rate": [1]}}, "Option 'rate' is not accepted"),
        ({"search": [0.1]}, "search"),
        ({"search": {}, "trials": 2}, "search is empty"),
        ({"search": {"optimizer": [{"class_path": "SGD"}]}}, r"search optimizer\.class_path and"),
        ({"trials": "some"}, "trials.*some"),
        ({"trials": 0}, "trials.*0"),
        ({"pruning": "mean"}, "pruning.*mean"),
        ({"prunning": "median"}, "prunning"),
        ({"configs": ["missing.yaml"]}, "missing.yaml"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_its_first_trial(
    change: dict[str, Any], message: str, retinas: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
        cli.main(write_sweep(tmp_path, retinas, [0.1], **change))
    assert "\n" not in str(stopped.value.code)
    assert not (tmp_path / "runs").exists()


def test_unreadable_files_and_urls_are_refused_in_one_line(retinas: Path, tmp_path: Path) -> None:
    command = write_sweep(tmp_path, retinas, [0.1])
    (tmp_path / "rates.yaml").write_text("configs: [")
    for extra, message in (([], "rates.yaml"), (["--config", "missing.yaml"], "missing.yaml")):
        with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
            cli.main([*command, *extra])
        assert "\n" not in str(stopped.value.code)
    command = write_sweep(tmp_path, retinas, [0.1])
    for url in ("nonsense", "postgresql+nodriver://127.0.0.1/sweeps"):
        with pytest.raises(SystemExit, match="error: cannot open the study") as stopped:
            cli.main([*command, "--storage", url])
        assert "\n" not in str(stopped.value.code)


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_of_the_suite_searches_keys_that_exist(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = Sweep(path, [])  # raises if a key does not exist
    assert sweep.monitor.startswith("val/")  # never chosen on test
    assert sweep.folder == Path("runs") / path.stem


def test_null_can_be_searched(retinas: Path, tmp_path: Path) -> None:
    search = {"trainer.gradient_clip_val": [None, 1.0], "trainer.max_time": [None]}
    write_sweep(tmp_path, retinas, [], search=search)
    sweep = Sweep(tmp_path / "rates.yaml", [])
    assert sweep.arguments({"trainer.max_time": None})[-1] == "--trainer.max_time=null"


def test_trials_of_other_arguments_are_not_taken_for_these(retinas: Path, tmp_path: Path) -> None:
    args = write_sweep(tmp_path, retinas, [0.01])
    cli.main(args)
    cli.main(args)
    with pytest.raises(SystemExit, match="has trials with other configs, set or arguments"):
        cli.main([*args, "--data.init_args.balanced=true"])


def test_draws_depend_on_the_run_and_not_on_the_process(
    retinas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"low": 0.001, "high": 0.1, "log": True}
    write_sweep(tmp_path, retinas, bounds, trials=14)  # TPE begins after ten random draws
    monkeypatch.setattr(Sweep, "follow_fit", lambda self, trial, locked: trial.params[LR])
    drawn = []
    for processes in (1, 3):
        sweeps = [Sweep(tmp_path / "rates.yaml", []) for _ in range(processes)]
        for sweep in sweeps:
            sweep.folder = tmp_path / f"by {processes}"
            sweep.folder.mkdir(exist_ok=True)
            sweep.open_study(None)
        for sweep in itertools.islice(itertools.cycle(sweeps), 14):
            with contextlib.ExitStack() as sweep.locks:
                sweep.study.optimize(sweep.fit, n_trials=1)
        drawn.append([trial.params[LR] for trial in sweeps[0].study.trials])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 14


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_killed_sweeps_fit_continues_and_is_not_run_twice(
    storage: str, retinas: Path, tmp_path: Path
) -> None:
    epochs = 200
    args = write_sweep(tmp_path, retinas, [0.01, 0.1], epochs)
    url = f"sqlite:///{tmp_path}/sweep.db" if storage == "sqlite" else None
    args += ["--storage", url] if url else []
    process = start(args)
    runs = tmp_path / "runs" / "rates"
    wait_until(lambda: list(runs.glob("*/checkpoints/best.ckpt")))
    process.kill()
    process.wait(timeout=60)
    assert start(args).wait(timeout=600) == 0  # beside the orphan
    trials = trials_of(tmp_path, url)
    assert (runs / "journal.log").exists() == (storage == "journal")
    assert rates(trials, TrialState.COMPLETE) == [0.01, 0.1]
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 1  # the killed one
    for run in runs.glob("*,lr=*/"):
        assert trained_epochs(run) == list(range(epochs))  # no two processes trained it
    assert (runs / "sweep.md").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_sweep_continues_and_its_run_resumes(
    number: signal.Signals, retinas: Path, tmp_path: Path
) -> None:
    args = write_sweep(tmp_path, retinas, [0.01], 100_000)
    run = tmp_path / "runs" / "rates" / "00,lr=0.01"
    process = start(args)
    wait_until((run / "checkpoints" / "best.ckpt").exists)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    stopped = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    cli.main([*args, f"--trainer.max_epochs={stopped['epoch'] + 2}"])
    assert [t.state for t in trials_of(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "Restored all states from the checkpoint" in Path(f"{run}.log").read_text()
    assert trained_epochs(run) == list(range(stopped["epoch"] + 2))


def test_a_signal_while_the_study_is_written_loses_nothing(
    retinas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = write_sweep(tmp_path, retinas, [0.01], 100_000)
    best = tmp_path / "runs" / "rates" / "00,lr=0.01" / "checkpoints" / "best.ckpt"
    unlink = os.unlink

    def unlink_and_interrupt(path: str | Path, **kwargs: Any) -> None:
        unlink(path, **kwargs)
        if "journal.log.lock" in str(path) and best.exists():
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_interrupt)
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
    assert stop.value.code == 128 + signal.SIGINT
    assert [t.state for t in trials_of(tmp_path)] == [TrialState.FAIL, TrialState.WAITING]
    stopped = torch.load(best.with_name("last.ckpt"), weights_only=True)
    cli.main([*args, f"--trainer.max_epochs={stopped['epoch'] + 1}"])
    assert [t.state for t in trials_of(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]
