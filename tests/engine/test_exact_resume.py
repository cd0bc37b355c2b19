"""A run interrupted anywhere and resumed ends bit for bit as without the interruption."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.engine.experiments import (
    QUIET,
    TASKS,
    arguments,
    assert_equal,
    curves,
    fail_at,
    final_state,
    stop_at,
    stream_to,
)
from tests.stopping import FaultError


@pytest.fixture(params=TASKS)
def experiment(request: pytest.FixtureRequest, small: list[str], retinas: Path) -> list[str]:
    return arguments(request.param, small, retinas)


def test_a_run_interrupted_at_any_step_ends_as_without_the_interruption(
    experiment: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    stream = tmp_path / "whole"
    run = run_cli("fit", *experiment, *stream_to(stream))
    whole, order, logged = final_state(run), stream.read_text().splitlines(), curves(run)
    run.rename(tmp_path / "whole run")
    assert len(order) >= 4
    # Starting workers takes seconds.
    every = 3 if "--data.init_args.num_workers=2" in experiment else 1
    for batch in range(1, len(order) + 1, every):
        stream = tmp_path / f"stopped at {batch}"
        ends = batch == 7 == whole["global_step"]  # max_steps: it ends by itself
        with contextlib.nullcontext() if ends else pytest.raises(SystemExit, match="143"):
            run_cli("fit", *experiment, *stream_to(stream), *stop_at(batch))
        run_cli("fit", *experiment, *stream_to(stream), "--ckpt_path=last")
        assert stream.read_text().splitlines() == order, batch
        assert_equal(final_state(run), whole, f"stopped at {batch}: ")
        assert curves(run) == logged, batch
        run.rename(tmp_path / f"run {batch}")


@pytest.mark.parametrize("task", ["recognizer", "cnn, two steps at once", "best"])
def test_a_checkpoint_written_within_an_epoch_is_exact_too(
    task: str, small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Resume from what a kill after each step would have left: the state before it."""
    experiment = arguments(task, small, retinas)
    keep = ["--trainer.callbacks+=tests.stopping.KeepEachLast"]
    keep += [f"--trainer.callbacks.folder={tmp_path / 'kept'}"]
    run = run_cli("fit", *experiment, *keep, "--checkpoint.minutes=0")
    whole = final_state(run)
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) >= 3
    steps: list[int] = []
    for path in kept:
        run.rename(tmp_path / f"run before {path.stem}")
        steps.append(torch.load(path, weights_only=True)["global_step"])
        run_cli("fit", *experiment, f"--ckpt_path={path}")
        assert_equal(final_state(run), whole, f"{path.stem}: ")
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize("task", ["recognizer", "best", "cnn, validated within the epoch"])
def test_a_checkpoint_of_another_callback_is_exact_too(
    task: str, small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Lightning's ModelCheckpoint saves after a batch, before its last hooks and a validation."""
    experiment = arguments(task, small, retinas)
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    keep += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}"]
    keep += [f"--trainer.callbacks.dirpath={tmp_path / 'kept'}"]
    run = run_cli("fit", *experiment, *keep)
    whole, logged = final_state(run), curves(run)
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) >= 3
    for path in kept:
        if torch.load(path, weights_only=True)["global_step"] == whole["global_step"]:
            continue  # nothing is left to do but the last validation
        inside = run / "checkpoints" / path.name
        path.rename(inside)  # a checkpoint elsewhere would start another run
        run_cli("fit", *experiment, *keep, f"--ckpt_path={inside}")
        assert_equal(final_state(run), whole, f"{path.stem}: ")
        assert curves(run) == logged, path.stem
        inside.unlink()


@pytest.mark.parametrize("task", ["best", "cnn, validated within the epoch"])
def test_a_validation_that_is_cut_off_is_run_again(
    task: str,
    small: list[str],
    retinas: Path,
    run_cli: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with averaged weights, which replace the trained ones during validation."""
    monkeypatch.setattr("datamodules.medmnist.EVALUATION_BATCH", 16)  # of 60 images
    experiment = [*arguments(task, small, retinas), "--trainer.accumulate_grad_batches=3"]
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    run.rename(tmp_path / "whole run")
    for batch in (2, 4, 8):
        if batch == 2 and task == "best":  # no validation there
            continue
        # Gradients are being accumulated after the second batch: the signal waits.
        with pytest.raises(SystemExit):
            run_cli("fit", *experiment, *stop_at(batch, validation_batch=0))
        run_cli("fit", *experiment, "--ckpt_path=last")
        assert_equal(final_state(run), whole, f"{batch}: ")
        assert curves(run) == logged, batch
        run.rename(tmp_path / f"run {batch}")


@pytest.mark.parametrize("task", ["recognizer", "cnn, two steps at once", "best", "scratch"])
def test_a_run_that_fails_within_a_step_resumes_before_it(
    task: str, small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever moment `last.ckpt` captures, no batch is repeated or skipped."""
    experiment = arguments(task, small, retinas)
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    run.rename(tmp_path / "whole run")
    saved = 0
    for hook, step in (
        ("on_train_batch_start", 2),
        ("on_before_zero_grad", 3),  # after the forward pass, which has drawn random numbers
        ("on_after_backward", 4),  # the first of the second epoch, or its second
        ("on_before_optimizer_step", 2),
        ("on_train_batch_end", 2),  # after the step
        ("on_validation_start", 4),
        ("on_train_epoch_end", 4),
    )[:: 4 if task == "scratch" else 1]:
        with contextlib.suppress(FaultError):
            run_cli("fit", *experiment, *fail_at(hook, step))
        last = run / "checkpoints" / "last.ckpt"
        saved += last.exists()
        resume = ["--ckpt_path=last"] if last.exists() else []
        run_cli("fit", *experiment, *resume)
        assert_equal(final_state(run), whole, f"{hook} {step}: ")
        assert curves(run) == logged, (hook, step)
        run.rename(tmp_path / f"run {hook} {step}")
    assert saved >= (3 if task != "scratch" else 1)


def test_gradients_that_are_accumulated_are_not_lost(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = arguments("cnn", small, retinas)
    experiment += ["--trainer.accumulate_grad_batches=3", "--checkpoint.minutes=0"]
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    assert whole["global_step"] == 4  # of three batches and of one, in each epoch
    run.rename(tmp_path / "whole run")
    for batch in (1, 3, 4, 6):
        with pytest.raises(SystemExit):
            run_cli("fit", *experiment, *stop_at(batch))
        run_cli("fit", *experiment, "--ckpt_path=last")
        assert_equal(final_state(run), whole, f"stopped at {batch}: ")
        assert curves(run) == logged, batch
        run.rename(tmp_path / f"run {batch}")
    with pytest.raises(FaultError):
        run_cli("fit", *experiment, *fail_at("on_before_zero_grad", 1))
    run_cli("fit", *experiment, "--ckpt_path=last")
    assert_equal(final_state(run), whole)


def test_the_same_seed_twice_gives_the_same_losses(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    logged = []
    for seed in (1, 1, 2):
        experiment = arguments("recognizer", small, retinas)
        run = run_cli("fit", *experiment, f"--seed_everything={seed}")
        logged.append(curves(run))
        run.rename(tmp_path / f"run {len(logged)}")
    assert logged[0] == logged[1]
    assert logged[0] != logged[2]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_without_the_kills(tmp_path: Path) -> None:
    """SIGKILL 60 times, during saves too; temporary files on another file system."""
    command = [sys.executable, "cli.py", "fit", "--config", "configs/boolean_perceptron.yaml"]
    command += [*QUIET, "--data.init_args.dimension=6", "--data.init_args.batch_size=16"]
    command += ["--trainer.max_epochs=600", f"--trainer.default_root_dir={tmp_path}"]
    command += ["--checkpoint.minutes=0"]  # save at every step
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": "/dev/shm"}  # noqa: S108
    quiet: dict[str, Any] = {
        "cwd": ROOT,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    subprocess.run([*command, "--experiment=whole"], check=True, **quiet)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    moment = random.Random(0)
    kills = torn = 0
    while kills < 60:
        resume = ["--ckpt_path=last"] if last.exists() else []
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen([*command, "--experiment=killed", *resume], **quiet)
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.001)
        try:
            process.wait(timeout=moment.uniform(0, 0.3))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            torn += any(last.parent.glob("*.part"))
            torch.load(last, weights_only=True)  # whole
    assert kills == 60
    subprocess.run([*command, "--experiment=killed", "--ckpt_path=last"], check=True, **quiet)
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    print(f"{kills} kills, {torn} of them within a save")
