"""Signals sent to runs as users start them, with a progress bar and all defaults."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import read_rows
from tests.conftest import CONFIGS, ROOT
from tests.engine.experiments import stop_at
from tests.outside import PLAIN


class Started:
    """A command line in its own session, with its output in a file.

    Args:
        args: arguments of ``cli.py``.
        folder: folder of the run directory ``runs/run``, as `run_cli`'s, and of the output.
        before: Python that runs before the command line.
    """

    def __init__(self, args: list[str], folder: Path, before: str = "") -> None:
        self.run = folder / "runs" / "run"
        self.log = folder / "output.txt"
        args = [*args, f"--trainer.default_root_dir={folder / 'runs'}", "--experiment=run"]
        command = [sys.executable, "cli.py", *args]
        if before:
            # as `python cli.py` has them
            names = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv[0] = 'cli.py'"
            command = [sys.executable, "-c", f"{names}\n{before}\nimport cli; cli.main()", *args]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {path}: {self.log.read_text()}"
            time.sleep(0.05)

    def end(self, timeout: float = 60) -> str:
        """Wait for the end and return the output; a run that hangs fails the test."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s: {self.log.read_text()}")
        return self.log.read_text()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


@pytest.fixture
def started() -> Iterator[list[Started]]:
    """Runs to be killed when the test is over."""
    runs: list[Started] = []
    yield runs
    for run in runs:
        run.kill()


def logistic_regression(retinas: Path, *extra: str) -> list[str]:
    config = CONFIGS / "octmnist_logistic_regression.yaml"
    return ["--config", str(config), f"--data.init_args.file={retinas}", *extra]


TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.mark.parametrize("task", ["images", "speech"])
def test_two_processes_with_all_defaults_finish(
    task: str, retinas: Path, small: list[str], tmp_path: Path, started: list[Started]
) -> None:
    """The progress bar asks for metrics in one process only, which must not communicate."""
    images = logistic_regression(retinas, "--trainer.max_epochs=2")
    images += ["--model=tests.outside.MeteredClassifier"]
    args = images if task == "images" else [*small, "--trainer.enable_progress_bar=true"]
    fit = Started(["fit", *args, *TWO], tmp_path)
    started.append(fit)
    output = fit.end(120)
    assert fit.process.returncode == 0, output
    assert "Epoch 1/1" in output  # the progress bar
    for noise in ("Warning", "Tip:", "sync_dist", "terminate called", "Traceback"):
        assert noise not in output
    rows = read_rows(fit.run / "metrics.csv")
    assert sum("train/loss" in row for row in rows) == 2


@pytest.mark.parametrize(
    ("how", "devices"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)],
    ids=["SIGTERM", "SIGINT", "SIGTERM, two processes"],
)
def test_an_interrupted_run_resumes_in_its_directory(
    how: signal.Signals,
    devices: int,
    small: list[str],
    tmp_path: Path,
    started: list[Started],
    run_cli: Callable[..., Path],
) -> None:
    args = [*small, "--trainer.enable_progress_bar=true"]
    args += ["--lr_scheduler.init_args.total_steps=100000"]
    if devices > 1:
        args += [*TWO, "--data.init_args.batch_size=4"]
    else:
        args += ["--data.init_args.num_workers=1"]
    fit = Started(["fit", *args, "--trainer.max_epochs=100000"], tmp_path)
    started.append(fit)
    best, last = (fit.run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    fit.wait_for(best)
    if devices > 1:
        fit.process.send_signal(how)
    else:
        os.killpg(fit.process.pid, how)  # loader workers too, as terminals and schedulers do
    output = fit.end()
    assert fit.process.returncode == 128 + how, output
    for noise in ("Traceback", "Tip:", "litlogger", "LeafSpec", "deprecated", "terminate called"):
        assert noise not in output
    # The interrupted state is last, not best: best is of the end of an epoch.
    reached = torch.load(last, weights_only=True)
    steps = torch.load(best, weights_only=True)["global_step"]
    assert steps % 3 == 0
    assert steps <= reached["global_step"]
    if devices > 1:
        return  # how they resume: test_two_processes.py
    epochs = reached["epoch"] + 2
    run_cli("fit", *args, f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
    assert torch.load(last, weights_only=True)["global_step"] == 3 * epochs
    rows = read_rows(fit.run / "metrics.csv")
    logged = [int(row["step"]) for row in rows if "train/loss_step" in row]
    assert logged == list(range(3 * epochs))
    assert sum("val/cer" in row for row in rows) == epochs


def test_ordinary_lightning_classes_are_stopped_resume_test_and_predict(
    tmp_path: Path, started: list[Started], run_cli: Callable[..., Path]
) -> None:
    """The log says once what is not exact."""
    args = [*PLAIN, f"--model.init_args.stream={tmp_path / 'stream'}"]
    fit = Started(["fit", *args, "--trainer.max_epochs=100000"], tmp_path)
    started.append(fit)
    fit.wait_for(fit.run / "checkpoints" / "best.ckpt")
    fit.process.send_signal(signal.SIGTERM)
    output = fit.end()
    assert fit.process.returncode == 143, output
    assert output.count("Not exact: an epoch that is resumed") == 1
    assert "DataLoader is not an engine loader" in output
    assert "PlainModule is no TrainingModule" in output
    assert "Traceback" not in output
    last = fit.run / "checkpoints" / "last.ckpt"
    epochs = torch.load(last, weights_only=True)["epoch"] + 2
    for stage in ("fit", "test", "predict"):
        run_cli(stage, *args, f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
    assert torch.load(last, weights_only=True)["global_step"] == 8 * epochs
    steps = [int(line.split()[0]) for line in (tmp_path / "stream").read_text().splitlines()]
    assert steps == list(range(8 * epochs))


def test_an_error_of_ordinary_classes_is_not_hidden(run_cli: Callable[..., Path]) -> None:
    with pytest.raises(RuntimeError, match="the user's own error"):
        run_cli("fit", *PLAIN, "--trainer.max_epochs=2", "--model.init_args.fail_at=9")
    run = run_cli("fit", *PLAIN, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 16


def test_a_mistake_in_a_constructor_is_not_hidden(run_cli: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match="NoneType"):
        run_cli("fit", "--model=tests.outside.BrokenModule", PLAIN[1])


def test_a_metric_of_another_name_is_missed_before_training_and_can_be_monitored(
    run_cli: Callable[..., Path],
) -> None:
    args = [*PLAIN, "--model.init_args.metric=val_loss", "--trainer.max_epochs=1"]
    with pytest.raises(SystemExit, match=r"PlainModule logs no val/loss, .*one of: val_loss$"):
        run_cli("fit", *args)
    single = "--trainer.callbacks=pytorch_lightning.callbacks.ModelSummary"  # not in a list
    run = run_cli("fit", *args, "--checkpoint.monitor=val_loss", single)
    assert (run / "checkpoints" / "best.ckpt").is_file()
    shutil.rmtree(run)
    with pytest.raises(SystemExit, match="could not find the monitored key"):  # later
        run_cli("fit", *args, "--trainer.num_sanity_val_steps=0")


def test_a_second_sigterm_ends_a_run_that_hangs_in_a_collective(
    retinas: Path, tmp_path: Path, started: list[Started]
) -> None:
    """The first process waits in C for the second, where Python runs no signal handler."""
    hang = ["--trainer.callbacks+=tests.stopping.HangAt", "--trainer.callbacks.rank=1"]
    hang += [f"--trainer.callbacks.file={tmp_path / 'hangs'}"]
    fit = Started(["fit", *logistic_regression(retinas, *hang), *TWO], tmp_path)
    started.append(fit)
    fit.wait_for(tmp_path / "hangs")
    time.sleep(1)  # until the first process waits for it
    fit.process.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert fit.process.poll() is None
    fit.process.send_signal(signal.SIGTERM)
    output = fit.end(10)
    assert fit.process.returncode == 143
    assert "error: stopped by a second SIGTERM within a batch" in output


def test_a_run_that_does_not_finish_its_batch_ends_after_the_grace_period(
    retinas: Path, tmp_path: Path, started: list[Started]
) -> None:
    hang = ["--trainer.callbacks+=tests.stopping.HangAt"]
    hang += [f"--trainer.callbacks.file={tmp_path / 'hangs'}"]
    grace = "import engine.signals; engine.signals.GRACE_SECONDS = 2"
    fit = Started(["fit", *logistic_regression(retinas, *hang)], tmp_path, before=grace)
    started.append(fit)
    fit.wait_for(tmp_path / "hangs")
    fit.process.send_signal(signal.SIGTERM)
    output = fit.end(20)
    assert fit.process.returncode == 143
    assert "error: stopped by SIGTERM, 2 s ago, within a batch" in output


def test_the_grace_period_is_for_each_batch_while_gradients_accumulate(
    tmp_path: Path, started: list[Started]
) -> None:
    """The run stops after the optimizer step, which may come later than the grace period."""
    slow = ["--trainer.callbacks+=tests.stopping.Slow", "--trainer.callbacks.seconds=0.5"]
    slow += ["--trainer.accumulate_grad_batches=16", "--trainer.max_epochs=100"]
    grace = "import engine.signals; engine.signals.GRACE_SECONDS = 5"
    fit = Started(["fit", *PLAIN, *slow, *stop_at(1)], tmp_path, before=grace)
    started.append(fit)
    output = fit.end()
    assert fit.process.returncode == 143, output
    assert "stopped by" not in output
    last = torch.load(fit.run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 1


def test_a_second_ctrl_c_stops_at_once(
    retinas: Path, tmp_path: Path, started: list[Started]
) -> None:
    hang = ["--trainer.callbacks+=tests.stopping.HangAt"]
    hang += [f"--trainer.callbacks.file={tmp_path / 'hangs'}"]
    fit = Started(["fit", *logistic_regression(retinas, *hang)], tmp_path)
    started.append(fit)
    fit.wait_for(tmp_path / "hangs")
    for _ in range(2):
        fit.process.send_signal(signal.SIGINT)
        time.sleep(1)
    output = fit.end(20)
    assert fit.process.returncode == 130, output
    assert "press Ctrl-C again" in output


def test_a_signal_to_a_loaders_worker_does_not_stop_the_run(
    small: list[str], tmp_path: Path, started: list[Started]
) -> None:
    args = [*small, "--data.init_args.num_workers=1", "--trainer.max_epochs=100000"]
    args += ["--lr_scheduler.init_args.total_steps=100000"]
    grace = "import engine.signals; engine.signals.GRACE_SECONDS = 2"
    fit = Started(["fit", *args], tmp_path, before=grace)
    started.append(fit)
    fit.wait_for(fit.run / "checkpoints" / "best.ckpt")
    children = Path(f"/proc/{fit.process.pid}/task/{fit.process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGTERM)
    time.sleep(4)
    assert fit.process.poll() is None, fit.log.read_text()
    fit.process.send_signal(signal.SIGTERM)
    output = fit.end(30)  # with the workers, although they ignore SIGTERM
    assert fit.process.returncode == 143
    assert "stopped by" not in output


def test_sigterm_ends_a_test_at_once(retinas: Path, tmp_path: Path, started: list[Started]) -> None:
    hang = ["--trainer.callbacks+=tests.stopping.HangAt"]
    hang += [f"--trainer.callbacks.file={tmp_path / 'hangs'}"]
    test = Started(["test", *logistic_regression(retinas, *hang), "--ckpt_path=none"], tmp_path)
    started.append(test)
    test.wait_for(tmp_path / "hangs")
    test.process.send_signal(signal.SIGTERM)
    test.end(10)
    assert test.process.returncode == -signal.SIGTERM  # 143 in a shell


def test_an_error_in_one_of_two_processes_ends_both_with_one_line(
    tmp_path: Path, started: list[Started]
) -> None:
    fail = "--model.init_args.fail_rank=1"
    # The first process needs longer to report than Lightning to notice that the other has failed.
    slow = (
        "import time\n"
        "from commands.suite_cli import SuiteCLI\n"
        "from lightning_fabric.strategies.launchers import subprocess_script\n"
        "subprocess_script._ChildProcessObserver.__init__.__defaults__ = (0.01,)\n"
        "report = SuiteCLI._report\n"
        "SuiteCLI._report = lambda cli, error: time.sleep(2) or report(cli, error)"
    )
    args = ["fit", *PLAIN, *TWO, "--model.init_args.fail_at=3", fail]
    fit = Started(args, tmp_path, slow)
    started.append(fit)
    output = fit.end(180)
    assert fit.process.returncode == 1, output
    assert "RuntimeError: the user's own error" in output
    assert re.search(r"^error: another process of this run has ended", output, re.MULTILINE)
    assert "terminate called" not in output
