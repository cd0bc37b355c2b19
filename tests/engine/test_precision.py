from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import RunDirectory
from tests.conftest import CONFIGS


def precision_of(run: Path) -> str:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return str(checkpoint["reproducibility"]["precision"])


def test_fit_uses_bfloat16_where_the_cpu_computes_it_and_a_resumed_run_keeps_its_precision(
    small: list[str],
    retinas: Path,
    run_cli: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    on_cpu = [*small, "--trainer.accelerator=cpu", "--lr_scheduler.init_args.total_steps=9"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    run = run_cli("fit", *on_cpu, "--trainer.max_epochs=1")
    assert precision_of(run) == "bf16-mixed"
    assert "Precision: bf16-mixed (change it with --trainer.precision)" in caplog.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    run_cli("fit", *on_cpu, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert precision_of(run) == "bf16-mixed"
    half = ["--trainer.precision=bf16-mixed", "--trainer.max_epochs=1"]
    run.rename(tmp_path / "zeroth")
    run_cli("fit", *on_cpu, *half)
    run_cli("fit", *on_cpu, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert "trainer.precision was" not in caplog.text
    assert RunDirectory(run).read_config()["trainer"]["precision"] == "bf16-mixed"

    run.rename(tmp_path / "first")
    assert precision_of(run_cli("fit", *on_cpu, "--trainer.max_epochs=1")) == "32-true"
    run.rename(tmp_path / "second")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    course = ["--config", str(CONFIGS / "octmnist_mlp.yaml"), f"--data.init_args.file={retinas}"]
    run = run_cli("fit", *course, "--trainer.accelerator=cpu", "--trainer.max_epochs=1")
    assert precision_of(run) == "32-true"


def test_weights_of_another_precision_are_refused(
    small: list[str], fail_cli: Callable[..., str]
) -> None:
    for precision in ("bf16-true", "64"):
        message = fail_cli("fit", *small, f"--trainer.precision={precision}")
        assert f"trainer.precision={precision} is not supported" in message
