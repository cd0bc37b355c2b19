"""``card``: a model card (Mitchell et al. 2019) of a run, in Hugging Face's format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from commands.folders import find_scores, make_console, refuse_existing, shorten_paths
from commands.scores import TestedClip, estimate_rates, read_test
from commands.settings import apply_changes, describe_changes, short_name
from commands.stages import load_run
from commands.tables import read_curves
from engine import RunDirectory
from errors import UserError, extra
from lightning_modules import SpeechRecognizer
from lightning_modules.classifier import Classifier
from lightning_modules.words import mark_correct, measure_confidence
from networks import get_number_trainable_params

with extra("report", "card"):
    import jinja2

TEMPLATE = Path(__file__).parent / "card.md"


class Task(NamedTuple):
    """Text shared by the cards of a task.

    Attributes:
        tag: Hugging Face's name of the task; None for others.
        summary: what the model does.
        command: how to use it, with braces for the run directory.
        limits: what its scores do not cover.
    """

    tag: str | None
    summary: str
    command: str
    limits: str


TASKS = {
    SpeechRecognizer: Task(
        "automatic-speech-recognition",
        "A recognizer that transcribes speech.",
        "python cli.py predict {} recording.wav",
        """\
The scores hold for speech like that of the test clips: their voices, style of reading and recording
conditions. Other voices, noise, music, other languages and several people at once were not tested.
A word may be wrong although its confidence is high.""",
    ),
    Classifier: Task(
        "image-classification",
        "A classifier of images.",
        "python cli.py predict {} image.png",
        """\
The scores hold for images like those of the test set: their devices, preparation and classes. The
model is not a medical device and must not be used to decide on patients.""",
    ),
}
"""Text by class of the model."""
OTHER = Task(None, "A model.", "python cli.py test --config {}/config.yaml", "Not stated.")


def card(path: Path, output: Path | None, licence: str | None, notes: Path | None) -> None:
    """Write a model card.

    Args:
        path: run directory.
        output: file to write; by default ``README.md`` in the run directory.
        licence: licence of the weights, such as ``cc-by-4.0``.
        notes: Markdown file to append, for what the run directory does not know.

    Raises:
        UserError: if the run was not trained, the card exists, or a file cannot be used.
    """
    run = RunDirectory(path)
    name = path.resolve().name
    output = output or path / "README.md"
    refuse_existing(output)
    if notes is not None and not notes.is_file():
        raise UserError(f"--notes {notes} does not exist")
    model, data, _, checkpoint = load_run(path)
    config = shorten_paths(run.read_config())
    task = next((task for kind, task in TASKS.items() if isinstance(model, kind)), OTHER)
    tested = find_scores(run, checkpoint["global_step"])
    tested_config = apply_changes(config, tested.changed if tested else {})
    found = sorted(tested.metrics.items()) if tested else []
    scores = {key.removeprefix("test/"): value for key, value in found}
    clips = read_clips(run) if scores else []
    intervals = {
        name: "{:.4f} – {:.4f}".format(*interval)
        for name, _, interval in (estimate_rates(clips) if clips else ())
        if interval
    }
    values = {
        "front": write_front(name, task.tag, licence, tested_config, scores),
        "name": name,
        "summary": task.summary,
        "model": describe_model(config, checkpoint, get_number_trainable_params(model)),
        "training": describe_training(run, config, checkpoint, data),
        "scores": [(key, f"{x:.4f}", intervals.get(key, "")) for key, x in scores.items()],
        "scored": describe_test(clips, tested.changed if tested else {}),
        "confidence": read_confidence(run, clips),
        "use": task.command.format(name if path.is_absolute() else path),
        "limits": task.limits,
        "notes": notes.read_text(encoding="utf-8").strip() if notes else "",
    }
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(template.render(values).strip() + "\n", encoding="utf-8")
    make_console().print(f"written to {output}")


def write_front(
    name: str,
    tag: str | None,
    licence: str | None,
    config: Mapping[str, Any],
    scores: Mapping[str, float],
) -> str:
    """Return the YAML block that Hugging Face reads."""
    front: dict[str, Any] = {"library_name": "pytorch-lightning", "tags": ["pytorch"]}
    if licence:
        front["license"] = licence
    if tag:
        front["pipeline_tag"] = tag
    if scores and tag:
        data = name_data(config)
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": tag},
                        "dataset": {"type": data.lower().replace(" ", "-"), "name": data},
                        "metrics": [{"type": k, "value": round(x, 4)} for k, x in scores.items()],
                    }
                ],
            }
        ]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def settings_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a part of a configuration."""
    return dict(part.get("init_args") or {})


def name_data(config: Mapping[str, Any]) -> str:
    """Return the names of the data module, of its file or folder, and what it took of them."""
    settings = settings_of(config["data"])
    where = Path(str(settings.get("file") or settings.get("root", ""))).name
    kinds = [str(settings[key]) for key in ("flag", "size", "test_protocol") if settings.get(key)]
    return " ".join(filter(None, [short_name(config["data"]), where, *kinds]))


def describe_model(
    config: Mapping[str, Any], checkpoint: Mapping[str, Any], parameters: int
) -> list[tuple[str, str]]:
    """Return the parts of the model, their settings and its size."""
    rows = [("task", short_name(config["model"]))]
    settings = settings_of(config["model"])
    for name in ("network", "decoding", "test_decoding"):
        if isinstance(settings.get(name), dict):
            rows += describe_part(name, settings[name])
    rows.append(("parameters", f"{parameters:,}"))
    if "alphabet" in checkpoint:
        rows.append(("alphabet", f"`{checkpoint['alphabet']}`"))
    return rows


def describe_part(name: str, part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a part of a configuration, and the parts in it: name, class and settings."""
    settings = settings_of(part)
    inner = {key: value for key, value in settings.items() if isinstance(value, dict)}
    plain = {
        key: value for key, value in settings.items() if value is not None and key not in inner
    }
    text = ", ".join(f"{key} {value}" for key, value in plain.items())
    rows = [(name, f"{short_name(part)}: {text}" if text else short_name(part))]
    for key, value in inner.items():
        rows += describe_part(key, value) if "class_path" in value else []
    return rows


def describe_training(
    run: RunDirectory,
    config: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    module: Any,
) -> list[tuple[str, str]]:
    """Return the data, the length and the settings of the training.

    Args:
        run: run directory.
        config: configuration of the training.
        checkpoint: what was trained.
        module: data module of the training.
    """
    data = settings_of(config["data"])
    rows = [("data", name_data(config))]
    samples = checkpoint.get(type(module).__qualname__, {}).get("samples")
    if samples is not None:  # of each training clip
        hours = float(samples.sum()) / module.sample_rate / 3600
        rows.append(("training clips", f"{len(samples):,}, {hours:.2f} hours"))
    for key in ("splits", "normalize_text", "augment", "batch_size", "max_batch_seconds"):
        value = data.get(key)
        if isinstance(value, dict):
            rows += describe_part(key, value)
        elif value is not None:
            rows.append((key, str(value)))
    if config.get("init_from"):
        rows.append(("initialized from", Path(config["init_from"]).name))
    for key in ("optimizer", "lr_scheduler"):
        if config.get(key):
            rows += describe_part(key, config[key])
    rows.append(("seed", str(config["seed_everything"])))
    step = f"epoch {checkpoint['epoch'] + 1}, step {checkpoint['global_step']:,}"
    rows.append(("checkpoint", step))
    curves = read_curves(run.metrics)
    seconds = curves.get("time/epoch", {}).values()
    if seconds:  # of epochs that were not interrupted
        epochs = 1 + max(epoch for curve in curves.values() for epoch in curve)
        mean = sum(seconds) / len(seconds)
        rows.append(("training time", f"{epochs} epochs of {mean:.0f} s on average"))
    return rows


def read_clips(run: RunDirectory) -> list[TestedClip]:
    """Return the test's transcripts; none if the run has none."""
    if not run.test_transcripts.is_file():
        return []
    return read_test(run)


def read_confidence(run: RunDirectory, clips: list[TestedClip]) -> dict[str, str] | None:
    """Return the calibration of the test's words; None without word confidence."""
    path = run.test_words
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if len(lines) != len(clips):
        return None
    confidence: list[float] = []
    correct: list[bool] = []
    for line, clip in zip(lines, clips, strict=True):
        words = json.loads(line)["words"]
        confidence += [word["confidence"] for word in words]
        correct += mark_correct([word["word"] for word in words], clip.reference.split())
    if not correct:
        return None
    error, share = measure_confidence(confidence, correct)
    return {"ece": f"{error:.3f}", "share": f"{share:.0%}"}


def describe_test(clips: list[TestedClip], changed: Mapping[str, Any]) -> str:
    """Return a sentence on what the scores were measured on."""
    with_changes = f", with {describe_changes(changed)}" if changed else ""
    if not clips:
        return f"On the test set{with_changes}."
    count = f"{len(clips):,} test clips{with_changes}"
    return f"On {count}. Intervals are bootstrap estimates over clips."
