"""Damaged and moved files of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from tests.conftest import CONFIGS
from tests.engine.experiments import QUIET, image_arguments


@pytest.fixture
def trained(retinas: Path, run_cli: Callable[..., Path]) -> tuple[Path, list[str]]:
    args = [*image_arguments("cnn", retinas), *QUIET, "--trainer.max_epochs=1"]
    return run_cli("fit", *args), args


@pytest.mark.parametrize("text", ["", "model: [", "- a\n"])
def test_a_damaged_configuration_is_named_before_a_test_or_a_resume(
    text: str, trained: tuple[Path, list[str]], fail_cli: Callable[..., str]
) -> None:
    run, args = trained
    (run / "config.yaml").write_text(text)
    for command in (["test", *args], ["fit", *args, "--ckpt_path=last"]):
        assert "config.yaml is damaged: delete it" in fail_cli(*command)


@pytest.mark.parametrize("text", ["", '{"checkpoint": ', '{"unknown": 1}'])
def test_damaged_scores_are_named_and_made_anew(
    text: str,
    trained: tuple[Path, list[str]],
    run_cli: Callable[..., Path],
) -> None:
    run, args = trained
    run_cli("test", *args)
    scores = (run / "test_metrics.json").read_text()
    (run / "test_metrics.json").write_text(text)
    with pytest.raises(SystemExit, match=r"test_metrics\.json is damaged: test the run again"):
        cli.main(["compare", str(run)])
    run_cli("test", *args)
    assert (run / "test_metrics.json").read_text() == scores


def test_damaged_rows_of_metrics_are_left_out(
    trained: tuple[Path, list[str]], run_cli: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, args = trained
    rows = (run / "metrics.csv").read_bytes()
    damaged = b"1,2" + b",3" * 100 + b"\n" + b"0,x,1\n" + b"0,\xff\xfe,1\n"
    (run / "metrics.csv").write_bytes(rows + damaged)
    run_cli("fit", *args, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert "metrics.csv: 3 damaged row(s) are left out" in caplog.text
    assert b"x" not in (run / "metrics.csv").read_bytes().partition(b"\n")[2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--trainer.val_check_interval=5000", "val_check_interval"),
        (
            "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: v}}",
            "metric `v`",
        ),
        ("--seed_everything=-1", "seed_everything -1 is not between 0 and 4294967295"),
        ("--data.init_args.max_images=-1", "max_images -1 is less than 1"),
        ("--data.init_args.seed=-1", "seed -1 is negative"),
        ("--model.init_args.label_smoothing=2", "label_smoothing 2.0 is not in [0, 1]"),
        ("--trainer.devices=foo", "`devices` selected with `CPUAccelerator` should be an int"),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches 0 is less than 1"),
        ("--trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch 0 is less than 1"),
        ("--trainer.limit_train_batches=0", "leaves nothing to train"),
        ("--trainer.callbacks+=LearningRateFinder", "LearningRateFinder is not supported"),
        ("--trainer.barebones=true", "runs always keep checkpoints"),
        ("--data.init_args.batch_size=null", "data.init_args.batch_size is null: give it"),
        ("--optimizer.init_args.lr=null", "optimizer.init_args.lr is null: give it a value"),
        (
            (
                "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/loss, "
                "patience: null}}]"
            ),
            "trainer.callbacks[0].init_args.patience is null",
        ),
        ("--data=datamodules.BooleanDataModule", "needs class_names, which BooleanDataModule"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    setting: str, message: str, retinas: Path, fail_cli: Callable[..., str]
) -> None:
    assert message in fail_cli("fit", *image_arguments("cnn", retinas), *QUIET, setting)


@pytest.mark.parametrize(
    ("setting", "value"), [("warmup", "2.0"), ("floor", "-1.0"), ("total_steps", "0")]
)
def test_a_schedule_that_cannot_be_is_refused(
    setting: str, value: str, retinas: Path, fail_cli: Callable[..., str]
) -> None:
    schedule = ["--lr_scheduler=lightning_modules.WarmupLinearDecay"]
    schedule += [f"--lr_scheduler.init_args.{setting}={value}"]
    message = fail_cli("fit", *image_arguments("cnn", retinas), *QUIET, *schedule)
    assert f"lr_scheduler: {setting} {value} is" in message


def test_a_test_of_nothing_keeps_the_scores(
    trained: tuple[Path, list[str]], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    run, args = trained
    run_cli("test", *args)
    scores = (run / "test_metrics.json").read_text()
    message = fail_cli("test", *args, "--trainer.limit_test_batches=0")
    assert "nothing was tested: trainer.limit_test_batches is 0" in message
    assert (run / "test_metrics.json").read_text() == scores


TWO_LOADERS = {"model": "Module", "data": "DataModule"}


def test_a_module_with_two_validation_loaders_is_trained(run_cli: Callable[..., Path]) -> None:
    classes = [f"--{kind}=tests.outside.TwoLoaders{name}" for kind, name in TWO_LOADERS.items()]
    monitor = "--checkpoint.monitor=val/loss/dataloader_idx_1"
    run = run_cli("fit", *classes, *QUIET, "--trainer.max_epochs=1", monitor)
    assert (run / "checkpoints" / "best.ckpt").exists()


def test_a_moved_configuration_does_not_score_the_run_that_took_its_place(
    trained: tuple[Path, list[str]], run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    run, args = trained
    other = run.parent / "other"
    shutil.move(run, other)
    run_cli("fit", *args)  # another run where the first was
    config = ["--config", str(other / "config.yaml")]
    message = fail_cli("test", *config, *QUIET)
    assert f"{other / 'config.yaml'} was moved or copied" in message
    assert not (run / "test_metrics.json").exists()


def test_a_name_too_long_for_a_folder_is_refused() -> None:
    config = ["--config", str(CONFIGS / "octmnist_cnn.yaml")]
    with pytest.raises(SystemExit, match="is too long for the name of a folder"):
        cli.main(["fit", *config, "--experiment", "a" * 300])


def test_a_full_disk_is_named_when_a_test_cannot_write(
    trained: tuple[Path, list[str]], fail_cli: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write)
    run, args = trained
    assert "a file of the run cannot be written (No space left" in fail_cli("test", *args)
    assert not (run / "test_metrics.json").exists()
