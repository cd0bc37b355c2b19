"""Small experiments with every kind of randomness, and what must be equal after them."""

from pathlib import Path
from typing import Any

import torch

from engine import read_rows
from tests.conftest import CONFIGS

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
if torch.cuda.is_available():
    TASKS += ["recognizer, graphs", "best, graphs", "cnn, two steps at once, graphs"]


def arguments(task: str, small: list[str], retinas: Path) -> list[str]:
    """Return the arguments of a run: two epochs of a few steps, with every kind of randomness."""
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
    elif "best" in task:
        args = image_arguments("best", retinas)
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
    if torch.cuda.is_available():  # by default, sums on a GPU have no fixed order
        args.append("--trainer.deterministic=true")
    if "graphs" in task:
        args.append("--trainer.callbacks+=callbacks.CUDAGraphs")
    return [*args, *QUIET, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]


def stream_to(path: Path) -> list[str]:
    return ["--trainer.callbacks+=tests.stopping.Stream", f"--trainer.callbacks.path={path}"]


def stop_at(batch: int, rank: int = 0, validation_batch: int | None = None) -> list[str]:
    after = "null" if validation_batch is None else validation_batch
    return [
        "--trainer.callbacks+=tests.stopping.StopAt",
        f"--trainer.callbacks.batch={batch}",
        f"--trainer.callbacks.validation_batch={after}",
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
    """Return all logged rows, except times and what is logged once per start."""
    once = ("time/", "parameters")
    rows = [
        {name: value for name, value in row.items() if not name.startswith(once)}
        for row in read_rows(run / "metrics.csv")
    ]
    return [row for row in rows if set(row) - {"epoch", "step"}]
