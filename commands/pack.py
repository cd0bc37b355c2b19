"""``pack``: a run directory small enough to share, for prediction and for fine-tuning."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from commands.predict import only_warnings
from commands.train import load
from engine import RunDirectory, find_weights, read_checkpoint
from errors import UserError

KEPT = ("epoch", "global_step", "pytorch-lightning_version")
"""What is kept of the trainer's part of a checkpoint."""
PATHS = ("root", "file")
"""Arguments of the data modules that are paths."""


def pack(path: Path, output: Path) -> None:
    """Copy a run's configuration, best weights in half precision, scores and card.

    What only resuming needs is left out: the optimizer's state, the trainer's progress, the
    training data's lengths. Of paths in the configuration, only the last part is kept.

    Args:
        path: run directory.
        output: run directory to create.

    Raises:
        UserError: if the run was not trained, or the output exists.
    """
    if output.exists():
        raise UserError(f"{output} already exists: delete it, or give another --output")
    run, packed = RunDirectory(path), RunDirectory(output)
    with only_warnings():
        model, _ = load(run)
    checkpoint = read_checkpoint(find_weights(str(path)))
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    config["trainer"]["default_root_dir"] = "runs"
    for part in config["data"], *config["data"]["init_args"].get("corpora", ()):
        for name in PATHS:
            if part["init_args"].get(name):
                part["init_args"][name] = f"data/{Path(part['init_args'][name]).name}"
    if config.get("init_from"):
        config["init_from"] = Path(config["init_from"]).name
    # What the module itself saves: the alphabet, the calibration, ….
    own: dict[str, Any] = {}
    model.on_save_checkpoint(own)
    own.pop("loss_sums", None)
    weights = dict(checkpoint["state_dict"])
    for name, _ in model.named_parameters():
        if weights[name].is_floating_point():
            weights[name] = weights[name].half()
    packed.checkpoints.mkdir(parents=True)
    torch.save(
        {name: checkpoint[name] for name in KEPT} | own | {"state_dict": weights},
        packed.checkpoints / "best.ckpt",
    )
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    packed.config.write_text(text, encoding="utf-8")
    if run.test_metrics.is_file():
        tested = json.loads(run.test_metrics.read_text(encoding="utf-8"))
        tested["checkpoint"] = "best.ckpt"
        packed.test_metrics.write_text(f"{json.dumps(tested, indent=2)}\n", encoding="utf-8")
    if (path / "README.md").is_file():
        shutil.copyfile(path / "README.md", output / "README.md")
    size = (packed.checkpoints / "best.ckpt").stat().st_size / 1e6
    Console().print(f"{output}: {size:.1f} MB of weights; python cli.py predict {output} FILE…")
