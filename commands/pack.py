"""``pack``: a run directory small enough to share, for prediction and for fine-tuning."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from commands.folders import find_scores, make_console, new_folder, shorten_paths
from commands.stages import load_run
from engine import RunDirectory
from errors import UserError
from lightning_modules import SpeechRecognizer, TrainedLanguageModel
from lightning_modules.classifier import Classifier
from networks import CharacterLanguageModel

KEPT = ("epoch", "global_step", "pytorch-lightning_version")
"""Trainer entries kept in the checkpoint."""


def pack(path: Path, output: Path) -> None:
    """Copy a run's configuration, best weights in half precision, scores and card.

    A language model of its test's beam search comes along.

    It leaves out what only resuming needs: the optimizer's state, the trainer's progress and the
    lengths of the training data. Absolute paths in the configuration become their last part.

    Args:
        path: run directory.
        output: run directory to create.

    Raises:
        UserError: if the run was not trained, its language model is of a class of yours, or the
            output exists.
    """
    run = RunDirectory(path)
    model, _, _, checkpoint = load_run(path)
    with new_folder(output) as folder:
        packed = RunDirectory(folder)
        config = shorten_paths(run.read_config())
        config["trainer"]["default_root_dir"] = "runs"
        config["experiment"] = config["init_from"] = None
        packed.checkpoints.mkdir()
        searches = [getattr(model, name, None) for name in ("decoding", "test_decoding")]
        of_validation, language_model = (getattr(s, "language_model", None) for s in searches)
        settings = config["model"]["init_args"]
        if language_model is not None:
            pack_language_model(language_model, packed.language_model)
            home = Path(output.name) if output.is_absolute() else output
            settings["test_decoding"] = settings["test_decoding"] or settings["decoding"]
            place = RunDirectory(home).language_model
            search = settings["test_decoding"]["init_args"]
            search["language_model"]["init_args"] = {"run": place.as_posix()}
        if of_validation is not None:
            settings["decoding"] = None  # a copy is not validated
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        packed.config.write_text(text, encoding="utf-8")

        own: dict[str, Any] = {}  # what the module itself saves: alphabet, calibration, …
        model.on_save_checkpoint(own)
        own.pop("loss_sums", None)
        weights = dict(checkpoint["state_dict"])
        for name, _ in model.named_parameters():
            weights[name] = weights[name].half()
        kept = {name: checkpoint[name] for name in KEPT} | own | {"state_dict": weights}
        torch.save(kept, packed.best)
        if tested := find_scores(run, checkpoint["global_step"]):
            changed = shorten_paths(tested.changed)
            tested = replace(tested, checkpoint="checkpoints/best.ckpt", changed=changed)
            packed.write_scores(tested)
        if (path / "README.md").is_file():
            shutil.copyfile(path / "README.md", folder / "README.md")
    size = sum(file.stat().st_size for file in RunDirectory(output).checkpoints.iterdir()) / 1e6
    is_for_files = isinstance(model, SpeechRecognizer | Classifier)
    use = f"predict {output} FILE…" if is_for_files else f"fit --init_from {output} …"
    message = f"{output}: {size:.1f} MB of weights; python cli.py {use}"
    make_console().print(message)


def pack_language_model(model: CharacterLanguageModel, path: Path) -> None:
    """Write a language model's weights in half precision, for `TrainedLanguageModel`.

    Raises:
        UserError: if it is of another class, whose settings are unknown.
    """
    if not isinstance(model, TrainedLanguageModel):
        raise UserError(
            f"pack: the language model of test_decoding is a {type(model).__name__}, and only "
            "TrainedLanguageModel can be packed: remove it from config.yaml"
        )
    weights = {f"network.{name}": weight.half() for name, weight in model.state_dict().items()}
    torch.save({"state_dict": weights, "alphabet": model.alphabet, "global_step": 0}, path)
