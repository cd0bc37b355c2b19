"""Runs resumed with another configuration: what is adopted, what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch.optim import SGD, Adagrad, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import StepLR

import cli
from engine import OptimizerSettings, fuse_steps
from tests.engine.experiments import (
    QUIET,
    arguments,
    assert_equal,
    curves,
    final_state,
    image_arguments,
    stop_at,
)


def test_a_longer_training_continues_unless_its_schedule_would_jump(
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


def test_the_command_lines_optimizer_wins_over_the_checkpoints(
    retinas: Path, small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    """Halve the learning rate; the schedule scales it by the same fractions as before."""
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


def test_settings_that_are_resumed_otherwise_are_named(
    retinas: Path, small: list[str], run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    experiment = arguments("cnn", small, retinas)
    with pytest.raises(SystemExit):
        run_cli("fit", *experiment, "--model.init_args.label_smoothing=0.4", *stop_at(3))
    assert "label_smoothing was" not in caplog.text
    run_cli("fit", *experiment, "--trainer.gradient_clip_val=0.5", "--ckpt_path=last")
    named = [line for line in caplog.messages if " was " in line]
    assert sorted(named) == [
        "model.init_args.label_smoothing was 0.4 and is 0.0 now",
        "trainer.gradient_clip_val was None and is 0.5 now",
    ]


def test_a_training_that_stops_within_an_epoch_says_where_it_goes_on(
    retinas: Path, small: list[str], run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    experiment = arguments("cnn", small, retinas)
    run_cli("fit", *experiment, "--trainer.callbacks+=tests.stopping.StopEarly")
    assert "Stopped after batch 2 of 4 of an epoch: resuming starts with the next" in caplog.text


def test_a_run_whose_steps_were_not_fused_is_resumed_with_fused_steps(
    retinas: Path,
    small: list[str],
    run_cli: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps are fused unless the configuration says otherwise; rounding is all that differs."""
    experiment = [*arguments("cnn", small, retinas), "--optimizer=torch.optim.AdamW"]
    plain = "--optimizer.init_args.fused=false"
    run = run_cli("fit", *experiment, plain)
    whole = final_state(run)
    run.rename(tmp_path / "whole run")
    with pytest.raises(SystemExit):
        run_cli("fit", *experiment, plain, *stop_at(3))
    run_cli("fit", *experiment, "--ckpt_path=last")
    found = final_state(run)
    fused = [state["optimizer_states"][0]["param_groups"][0]["fused"] for state in (whole, found)]
    assert fused == [False, True]
    assert "fused of the optimizer was False and is True now" in caplog.text
    torch.testing.assert_close(found["state_dict"], whole["state_dict"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "is_fused"),
    [
        (SGD, {}, True),
        (AdamW, {}, True),
        (SGD, {"fused": False}, False),
        (SGD, {"foreach": True}, None),
        (SGD, {"differentiable": True}, None),
        (SGD, {"momentum": 0.9}, None),  # fails where a parameter has its first gradient later
        (Adagrad, {}, None),  # fails on a GPU
        (RMSprop, {}, None),  # has none
    ],
)
def test_steps_are_fused_unless_the_settings_say_how(
    kind: Callable[..., Optimizer], settings: dict[str, Any], is_fused: bool | None
) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    fuse_steps(optimizer, model)
    assert optimizer.param_groups[0].get("fused") is is_fused


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Embedding(3, 2, sparse=True),
        torch.nn.Linear(2, 2, dtype=torch.complex64),
        torch.nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    ],
)
def test_models_that_fused_steps_cannot_train_are_trained_as_before(model: torch.nn.Module) -> None:
    optimizer = SGD(model.parameters(), 0.1)
    fuse_steps(optimizer, model)
    assert optimizer.param_groups[0]["fused"] is None


def test_a_new_rate_goes_to_the_schedule_of_its_own_optimizer() -> None:
    def make(*rates: float) -> Any:
        optimizers = [SGD([torch.nn.Parameter(torch.zeros(1))], rate) for rate in rates]
        schedules = [StepLR(optimizer, 1, gamma=0.5) for optimizer in optimizers]
        configs = [SimpleNamespace(scheduler=schedule) for schedule in schedules]
        return SimpleNamespace(optimizers=optimizers, lr_scheduler_configs=configs, callbacks=[])

    for rates in ((0.3, 0.2), (0.1, 0.3)):
        trained, module, settings = make(0.1, 0.2), LightningModule(), OptimizerSettings()
        settings.on_fit_start(trained, module)
        before = settings.state_dict()
        trainer = make(*rates)
        settings.on_fit_start(trainer, module)
        for now, then in zip(trainer.optimizers, trained.optimizers, strict=True):
            now.load_state_dict(then.state_dict())
        for now, then in zip(
            trainer.lr_scheduler_configs, trained.lr_scheduler_configs, strict=True
        ):
            now.scheduler.load_state_dict(then.scheduler.state_dict())
        settings.load_state_dict(before)
        settings.on_train_start(trainer, module)
        for config, rate in zip(trainer.lr_scheduler_configs, rates, strict=True):
            config.scheduler.optimizer.step()
            config.scheduler.step()
            assert config.scheduler.get_last_lr() == pytest.approx([rate / 2])


def test_a_schedule_by_a_metric_steps_at_the_end_of_a_resumed_epoch_too(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = [a for a in arguments("cnn", small, retinas) if not a.startswith("--lr_scheduler")]
    experiment += ["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"]
    experiment += ["--lr_scheduler.patience=0", "--lr_scheduler.threshold=100"]  # never better
    run = run_cli("fit", *experiment)
    whole, logged = final_state(run), curves(run)
    assert whole["optimizer_states"][0]["param_groups"][0]["lr"] < 0.01  # it has stepped
    run.rename(tmp_path / "whole run")
    for batch in (3, 4):
        with pytest.raises(SystemExit, match="143"):
            run_cli("fit", *experiment, *stop_at(batch))
        run_cli("fit", *experiment, "--ckpt_path=last")
        assert_equal(final_state(run), whole, f"stopped at {batch}: ")
        assert curves(run) == logged
        run.rename(tmp_path / f"run {batch}")


def test_another_runs_checkpoint_does_not_replace_a_run(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    run = run_cli("fit", *arguments("cnn", small, retinas))
    config = (run / "config.yaml").read_text()
    other = run.parent / "other.ckpt"
    other.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    message = fail_cli("fit", *arguments("cnn", small, retinas), f"--ckpt_path={other}")
    assert "already holds a run" in message
    fail_cli(
        "fit",
        *arguments("cnn", small, retinas),
        "--trainer.max_epochs=4",
        "--ckpt_path=last",
    )
    assert (run / "config.yaml").read_text() == config  # a refused resume changes nothing


def test_a_run_directory_that_was_moved_keeps_its_best_checkpoint(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = [a for a in arguments("cnn", small, retinas) if not a.startswith("--lr_scheduler")]
    run = run_cli("fit", *experiment, "--trainer.max_epochs=1")
    best = (run / "checkpoints" / "best.ckpt").read_bytes()
    run.rename(tmp_path / "moved")
    moved = [f"--trainer.default_root_dir={tmp_path}", "--experiment=moved"]
    frozen = ["--optimizer.init_args.lr=0", "--ckpt_path=last"]  # no epoch is better
    cli.main(["fit", *experiment, *moved, *frozen])
    assert (tmp_path / "moved" / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not run.exists()


def test_a_run_of_another_kind_of_device_is_resumed_but_not_called_exact(
    retinas: Path, run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    args = [*image_arguments("cnn", retinas), *QUIET]
    run = run_cli("fit", *args, "--trainer.max_epochs=1")
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["reproducibility"]["device"] = "tpu"
    torch.save(checkpoint, last)
    run_cli("fit", *args, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert "Not exact: another kind of device" in caplog.text


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_averaged_weights_are_not_resumed_as_trained_ones(
    small: list[str], retinas: Path, run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    experiment = arguments("best", small, retinas)
    with pytest.raises(SystemExit):
        run_cli("fit", *experiment, *stop_at(2))
    message = fail_cli("fit", *experiment, "--trainer.callbacks=null", "--ckpt_path=last")
    assert "the run was trained with averaged weights: resume it with the callback" in message


def test_accumulation_that_a_callback_schedules_goes_on_in_a_resumed_epoch(
    retinas: Path, run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    one = "--data.init_args.steps_per_execution=1"
    args = [*image_arguments("cnn", retinas, one), *QUIET, "--trainer.max_epochs=2"]
    args += ["--trainer.callbacks+=GradientAccumulationScheduler"]
    args += ["--trainer.callbacks.scheduling={0: 2}"]
    args += ["--lr_scheduler=lightning_modules.WarmupLinearDecay", "--optimizer.init_args.lr=0.01"]
    run = run_cli("fit", *args)
    whole = final_state(run)
    assert whole["global_step"] == 4  # which the schedule spans
    assert whole["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    run.rename(tmp_path / "whole run")
    with pytest.raises(SystemExit):
        run_cli("fit", *args, *stop_at(2))  # of four batches
    run_cli("fit", *args, "--ckpt_path=last")
    assert_equal(final_state(run), whole)


@pytest.mark.filterwarnings("ignore::jsonargparse._util.JsonargparseWarning")  # its device
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_a_run_with_stochastic_weight_averaging_resumes_and_says_what_is_not_exact(
    retinas: Path, run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    one = "--data.init_args.steps_per_execution=1"
    args = [*image_arguments("cnn", retinas, one), *QUIET, "--trainer.max_epochs=4"]
    args += ["--lr_scheduler=CosineAnnealingLR", "--lr_scheduler.T_max=16"]
    args += ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    args += ["--trainer.callbacks.device=null"]  # which its type allows
    args += ["--trainer.callbacks.swa_epoch_start=2"]
    with pytest.raises(SystemExit):
        run_cli("fit", *args, *stop_at(14))
    run = run_cli("fit", *args, "--ckpt_path=last")
    assert "Not exact: a resumed run with StochasticWeightAveraging" in caplog.text
    assert final_state(run)["global_step"] == 16


def test_a_recognizer_of_other_characters_is_refused(
    small: list[str], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    """Also where the alphabets have the same length, so that the weights would fit."""
    run_cli("fit", *small, *QUIET, "--trainer.max_epochs=1", "--data.init_args.alphabet=abcdefgh ")
    other = "--data.init_args.alphabet=hgfedcba "
    for stage in ("test", "fit"):
        args = ["--trainer.max_epochs=2", "--ckpt_path=last"] if stage == "fit" else []
        message = fail_cli(stage, *small, *QUIET, other, *args)
        assert "the checkpoint's alphabet is 'abcdefgh ', this configuration's is 'hgf" in message


def test_a_checkpoint_amid_accumulated_gradients_is_not_exact(
    retinas: Path, run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Such as best.ckpt, chosen by a validation within the epoch."""
    one = "--data.init_args.steps_per_execution=1"
    args = [*image_arguments("cnn", retinas, one), *QUIET, "--trainer.accumulate_grad_batches=2"]
    args += ["--trainer.val_check_interval=3", "--trainer.max_epochs=1"]
    args += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=other"]
    args += [f"--trainer.callbacks.dirpath={tmp_path}"]
    run = run_cli("fit", *args)
    assert "gradients were being accumulated" not in caplog.text
    (tmp_path / "other.ckpt").rename(run / "checkpoints" / "other.ckpt")
    run_cli("fit", *args, f"--ckpt_path={run / 'checkpoints' / 'other.ckpt'}")
    assert "Not exact: gradients were being accumulated" in caplog.text
