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
