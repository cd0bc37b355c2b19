"""A run that is interrupted anywhere and resumed ends as if nothing had happened, bit for bit."""

import contextlib
import csv
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile
import torch

import cli
from networks.scratch import MultiLayerPerceptron
from tests.conftest import CONFIGS, ROOT, SAMPLE_RATE, write_corpus
from tests.processes import run_together
from tests.stopping import FaultError, Payload

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def image_arguments(name: str, retinas: Path, *extra: str) -> list[str]:
    args = ["--config", str(CONFIGS / f"octmnist_{name}.yaml"), f"--data.init_args.file={retinas}"]
    return [*args, "--data.init_args.max_images=60", "--data.init_args.batch_size=16", *extra]


TASKS = [
    "recognizer",
    "recognizer, two workers",
    "cnn, two steps at once",
    "cnn, validated within the epoch",
    "best",
    "scratch",
    "boolean",
]


@pytest.fixture(params=TASKS)
def experiment(request: pytest.FixtureRequest, small: list[str], retinas: Path) -> list[str]:
    return arguments(request.param, small, retinas)


def arguments(task: str, small: list[str], retinas: Path) -> list[str]:
    """Return those of a run of two epochs of a few steps each, with every kind of randomness."""
    if "recognizer" in task:
        network = "--model.init_args.network.init_args"
        args = [*small, f"{network}.encoder.init_args.dropout=0.1", "--data.init_args.batch_size=6"]
        args += [
            f"{network}.decoder.init_args.dropout=0.1",
            f"{network}.augment=networks.SpecAugment",
            f"--data.init_args.num_workers={2 if 'workers' in task else 0}",
        ]
    elif task == "boolean":
        args = ["--config", str(CONFIGS / "boolean_perceptron.yaml")]
        args += ["--data.init_args.dimension=4", "--data.init_args.batch_size=4"]
    elif task == "best":
        args = image_arguments("best", retinas, "--trainer.precision=32-true")
        network = "--model.init_args.network.init_args"
        args += [f"{network}.widths=[4,8]", f"{network}.blocks=1"]
    elif task == "scratch":
        args = image_arguments("mlp_scratch", retinas, "--data.init_args.batch_size=30")
    else:
        steps = 2 if "two" in task else 1
        args = image_arguments("cnn", retinas, f"--data.init_args.steps_per_execution={steps}")
        args += ["--lr_scheduler=lightning_modules.WarmupLinearDecay"]
        if "validated" in task:
            args += ["--trainer.val_check_interval=0.5", "--trainer.max_steps=7"]
    return [*args, *QUIET, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]


def stream_to(path: Path) -> list[str]:
    return ["--trainer.callbacks+=tests.stopping.Stream", f"--trainer.callbacks.path={path}"]


def stop_at(batch: int, rank: int = 0, validation_batch: int | None = None) -> list[str]:
    behind = "null" if validation_batch is None else validation_batch
    return [
        "--trainer.callbacks+=tests.stopping.StopAt",
        f"--trainer.callbacks.batch={batch}",
        f"--trainer.callbacks.validation_batch={behind}",
        f"--trainer.callbacks.rank={rank}",
    ]


def fail_at(hook: str, step: int) -> list[str]:
    return [
        "--trainer.callbacks+=tests.stopping.FailAt",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}",
    ]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Compare nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def final_state(run: Path) -> dict[str, Any]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers",
                                        "global_step", "epoch")}  # fmt: skip


def curves(run: Path) -> list[dict[str, str]]:
    """All that was logged, but for times and what is logged once a start."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {k: v for k, v in row.items() if v and not k.startswith(("time/", "parameters"))}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if set(row) - {"epoch", "step"}]


def test_a_run_interrupted_at_any_step_ends_as_if_it_was_not(
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
    """Resume from what a kill behind each step would have left: the state of before it."""
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


@pytest.mark.parametrize("task", ["best", "cnn, validated within the epoch"])
def test_a_validation_that_is_cut_off_is_made_anew(
    task: str,
    small: list[str],
    retinas: Path,
    run_cli: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With averaged weights, which the validation has put in the place of the trained ones, too."""
    monkeypatch.setattr("datamodules.medmnist.EVALUATION_BATCH", 16)  # of 60 images
    experiment = [*arguments(task, small, retinas), "--trainer.accumulate_grad_batches=3"]
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    run.rename(tmp_path / "whole run")
    for batch in (2, 4, 8):
        if batch == 2 and task == "best":  # no validation there
            continue
        # Behind the second batch gradients are being accumulated: the signal waits.
        with pytest.raises(SystemExit):
            run_cli("fit", *experiment, *stop_at(batch, validation_batch=0))
        run_cli("fit", *experiment, "--ckpt_path=last")
        assert_equal(final_state(run), whole, f"{batch}: ")
        assert curves(run) == logged, batch
        run.rename(tmp_path / f"run {batch}")


@pytest.mark.parametrize("task", ["recognizer", "cnn, two steps at once", "best", "scratch"])
def test_a_run_that_fails_within_a_step_goes_on_before_it(
    task: str, small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever `last.ckpt` is of: nothing is trained on twice, nothing is left out."""
    experiment = arguments(task, small, retinas)
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    run.rename(tmp_path / "whole run")
    saved = 0
    for hook, step in (
        ("on_train_batch_start", 2),
        ("on_before_zero_grad", 3),  # behind the forward pass, which has drawn random numbers
        ("on_after_backward", 4),  # the first of the second epoch, or its second
        ("on_before_optimizer_step", 2),
        ("on_train_batch_end", 2),  # behind the step
        ("on_validation_start", 4),
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


def test_two_processes_share_an_epoch_resume_exactly_and_score_as_one(
    small: list[str], retinas: Path, tmp_path: Path, fail_cli: Callable[..., str]
) -> None:
    """Either of them may be the one that is asked to stop."""
    together = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    together += [f"--trainer.default_root_dir={tmp_path}"]
    commands = []
    tasks = ("recognizer", "cnn, two steps at once", "best", "boolean", "scratch")
    for task in tasks:
        experiment = ["fit", *arguments(task, small, retinas), *together]
        first = 3 if task == "best" else 1  # of the 2 to 8 batches
        for name, stop in (
            ("whole", []),
            ("first stopped", stop_at(first, rank=0)),
            ("second stopped", stop_at(first + 1, rank=1)),
        ):
            where = ["--experiment", f"{task} {name}", *stream_to(tmp_path / f"{task} {name}.txt")]
            commands.append([*experiment, *where, *stop])
            if stop:
                commands.append([*experiment, *where, "--ckpt_path=last"])
    scored = ("cnn, two steps at once", "boolean")
    here = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    tests = [
        ["test", *arguments(task, small, retinas), *here, "--experiment", f"{task} whole"]
        for task in scored
    ]
    shared = [[*test, "--trainer.strategy=ddp", "--trainer.devices=2"] for test in tests]
    poisoned = write_corpus(tmp_path / "poisoned", 40)
    silence = np.full(20_000, np.nan, np.float32)
    soundfile.write(poisoned / "wavs" / "T-007.wav", silence, SAMPLE_RATE, subtype="FLOAT")
    fails = ["fit", *arguments("recognizer", small, retinas), *together, "--experiment=poisoned"]
    fails += [f"--data.init_args.root={poisoned}"]
    statuses = run_together([*commands, *shared, fails], tmp_path)
    assert set(statuses[1]) == {0}  # the first process reports what stops both
    message = statuses[0].pop()
    assert message.startswith("error: the loss of step ")
    assert "T-007" in message
    assert statuses[0] == [0, 143, 0, 143, 0] * len(tasks) + [0] * len(scored)
    for task in tasks:
        whole = tmp_path / f"{task} whole"
        for name in ("first stopped", "second stopped"):
            run = tmp_path / f"{task} {name}"
            assert_equal(final_state(run), final_state(whole), f"{run.name}: ")
            assert curves(run) == curves(whole), run.name
            for rank in range(2):
                streams = [tmp_path / f"{path.name}.txt.{rank}" for path in (run, whole)]
                assert streams[0].read_text() == streams[1].read_text(), run.name
    for task, examples in (("recognizer", 24), ("cnn, two steps at once", 60)):
        files = [tmp_path / f"{task} whole.txt.{rank}" for rank in range(2)]
        lines = [line for file in files for line in file.read_text().splitlines()]
        seen = sorted(i for line in lines for i in json.loads(line.partition(" ")[2]))
        assert seen == sorted([*range(examples)] * 2)  # in two epochs
    for test in tests:
        record = tmp_path / test[-1] / "test_metrics.json"
        together = json.loads(record.read_text())["metrics"]
        cli.main(test)
        assert together == pytest.approx(json.loads(record.read_text())["metrics"], rel=1e-4)
    check_mixing(tmp_path / "scratch whole", retinas)
    last = tmp_path / "recognizer whole" / "checkpoints" / "last.ckpt"
    longer = ["--trainer.max_epochs=3", "--lr_scheduler.init_args.total_steps=4"]
    resume = [*longer, f"--ckpt_path={last}"]
    message = fail_cli("fit", *arguments("recognizer", small, retinas), *resume)
    assert "written by 2 processes and cannot be resumed exactly by 1" in message


def check_mixing(run: Path, retinas: Path) -> None:
    """Two processes by hand: each learns from its share, then their parameters are averaged."""
    arrays = np.load(retinas)
    images = arrays["train_images"].reshape(200, -1) / 256
    labels = arrays["train_labels"][:, 0].astype(np.int64)
    files = [run.with_name(f"{run.name}.txt.{rank}") for rank in range(2)]
    streams = [file.read_text().splitlines() for file in files]
    networks = [MultiLayerPerceptron(), MultiLayerPerceptron()]
    for lines in zip(*streams, strict=True):
        for network, line in zip(networks, lines, strict=True):
            indices = json.loads(line.partition(" ")[2])
            network.update(images[indices], labels[indices])
        for name in networks[0].parameters:
            mean = sum(network.parameters[name] for network in networks) / 2
            for network in networks:
                network.parameters[name][:] = mean
    found = final_state(run)["state_dict"]
    for name, value in networks[0].parameters.items():
        expected = torch.from_numpy(value)
        torch.testing.assert_close(found[f"parameters_.{name}"], expected, rtol=1e-9, atol=1e-9)


def test_a_longer_training_goes_on_unless_its_schedule_would_jump(
    small: list[str],
    retinas: Path,
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
) -> None:
    """With a constant learning rate two epochs and one more are three."""
    constant = [a for a in arguments("cnn", small, retinas) if not a.startswith("--lr_scheduler")]
    longer = "--trainer.max_epochs=3"
    run = run_cli("fit", *constant, longer)
    whole, logged = final_state(run), curves(run)
    run.rename(tmp_path / "whole run")
    run_cli("fit", *constant)
    run_cli("fit", *constant, longer, "--ckpt_path=last")
    assert_equal(final_state(run), whole)
    assert curves(run) == logged
    run.rename(tmp_path / "constant run")
    scheduled = arguments("cnn", small, retinas)
    run_cli("fit", *scheduled)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    message = fail_cli("fit", *scheduled, longer, "--ckpt_path=last")
    assert "schedule has total_steps 8, this configuration's 12" in message
    assert "--lr_scheduler.init_args.total_steps=8" in message
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    follow = "--lr_scheduler.init_args.total_steps=8"
    run_cli("fit", *scheduled, longer, follow, "--ckpt_path=last")
    assert final_state(run)["global_step"] == 12
    message = fail_cli("fit", *constant, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert "the run was trained with the learning-rate schedule WarmupLinearDecay" in message


def test_a_longer_training_of_averaged_weights_is_a_long_one(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = [*arguments("best", small, retinas), "--lr_scheduler.init_args.total_steps=12"]
    run = run_cli("fit", *experiment, "--trainer.max_epochs=2")
    whole = final_state(run)
    run.rename(tmp_path / "whole run")
    run_cli("fit", *experiment, "--trainer.max_epochs=1")
    run_cli("fit", *experiment, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert_equal(final_state(run), whole)


def test_a_full_disk_keeps_the_previous_checkpoint(
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = ["--lr_scheduler.init_args.total_steps=6"]
    run = run_cli("fit", *small, "--trainer.max_epochs=1", *total)
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    save = torch.save

    def fill_up(checkpoint: Any, file: BinaryIO) -> None:
        save(checkpoint, file)
        file.truncate(1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", fill_up)
    message = fail_cli("fit", *small, "--trainer.max_epochs=2", "--ckpt_path=last", *total)
    assert "could not be written ([Errno 28] No space left on device)" in message
    assert "the previous one is kept" in message
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    monkeypatch.undo()
    run_cli("fit", *small, "--trainer.max_epochs=2", "--ckpt_path=last", *total)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_was_not(tmp_path: Path) -> None:
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


def test_resuming_with_other_batches_is_refused_and_harms_nothing(
    retinas: Path, run_cli: Callable[..., Path], fail_cli: Callable[..., str], tmp_path: Path
) -> None:
    args = [*image_arguments("cnn", retinas, "--data.init_args.steps_per_execution=1"), *QUIET]
    with pytest.raises(SystemExit):
        run_cli("fit", *args, *stop_at(2))
    last = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    for change in ("steps_per_execution=4", "batch_size=8", "max_images=59", "seed=1"):
        message = fail_cli("fit", *args, f"--data.init_args.{change}", "--ckpt_path=last")
        assert "the checkpoint's epochs have 4 batches, this configuration's " in message
        assert last.read_bytes() == before


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_no_code_of_a_checkpoint_runs(
    stage: str,
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = [*small, "--lr_scheduler.init_args.total_steps=6"]
    run = run_cli("fit", *small, "--trainer.max_epochs=1")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    effect = tmp_path / "effect"
    torch.save({**state, "payload": Payload(effect)}, tmp_path / "pickled.ckpt")
    message = fail_cli(stage, *small, f"--ckpt_path={tmp_path / 'pickled.ckpt'}")
    assert "pickled.ckpt is not a whole checkpoint" in message
    (tmp_path / "bystander.py").write_text(f"open({str(effect)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    named = {"_class_path": "bystander.Model", "_instantiator": "bystander.build"}
    torch.save({**state, "hyper_parameters": named}, tmp_path / "named.ckpt")
    run_cli(stage, *small, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'named.ckpt'}")
    assert not effect.exists()
    assert "bystander" not in sys.modules


def test_the_command_lines_optimizer_wins_over_the_checkpoints(
    retinas: Path, small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Half the learning rate, over a schedule that is the same fraction of it as before."""
    experiment = arguments("cnn", small, retinas)
    run = run_cli("fit", *experiment)
    rates = [float(row["lr-SGD"]) for row in curves(run) if "lr-SGD" in row]
    peak = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    before = peak["optimizer_states"][0]["param_groups"][0]["initial_lr"]
    run.rename(tmp_path / "whole run")
    with pytest.raises(SystemExit):
        run_cli("fit", *experiment, *stop_at(3))
    new = [f"--optimizer.init_args.lr={before / 2}", "--optimizer.init_args.weight_decay=0.1"]
    run_cli("fit", *experiment, *new, "--ckpt_path=last")
    found = [float(row["lr-SGD"]) for row in curves(run) if "lr-SGD" in row]
    assert found == pytest.approx(rates[:3] + [rate / 2 for rate in rates[3:]])
    group = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert group["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1
