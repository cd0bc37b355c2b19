"""``card``: a model card (Mitchell et al. 2019) of a run, in Hugging Face's format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console

from commands.report import TestedClip, read_test, summarize
from engine import RunDirectory, find_weights, read_checkpoint, read_rows
from errors import UserError
from lightning_modules.words import mark_correct, measure_confidence

try:
    import jinja2
except ImportError as error:
    raise UserError("card needs the package jinja2: pip install '.[report]'") from error

TEMPLATE = Path(__file__).parent / "card.md"


class Task(NamedTuple):
    """What a card says of all runs of a task.

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
    "SpeechRecognizer": Task(
        "automatic-speech-recognition",
        "A recognizer that transcribes English speech.",
        "python cli.py predict {} recording.wav",
        """\
The scores hold for speech like that of the test clips: their voices, style of reading and recording
conditions. Other voices, noise, music, other languages and several people at once were not tested.
A word may be wrong although its confidence is high.""",
    ),
    "ImageClassifier": Task(
        "image-classification",
        "A classifier of images.",
        "python cli.py predict {} image.png",
        """\
The scores hold for images like those of the test set: their devices, preparation and classes. The
model is not a medical device and must not be used to decide on patients.""",
    ),
}
OTHER = Task(None, "A model.", "python cli.py test --config {}/config.yaml", "Not stated.")


def card(path: Path, output: Path | None, licence: str | None, notes: Path | None) -> None:
    """Write a model card.

    Args:
        path: run directory.
        output: file to write; by default ``README.md`` in the run directory.
        licence: licence of the weights, such as ``cc-by-4.0``.
        notes: Markdown file to append, for what the run directory does not know.

    Raises:
        UserError: if the run was not trained, or the card exists.
    """
    run = RunDirectory(path)
    output = output or path / "README.md"
    if output.exists():
        raise UserError(f"{output} already exists: delete it, or give another --output")
    if not run.config.is_file():
        raise UserError(f"{path} is not a run directory: it has no {run.config.name}")
    if notes is not None and not notes.is_file():
        raise UserError(f"--notes {notes} does not exist")
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(find_weights(str(path)))
    kind = config["model"]["class_path"].rpartition(".")[2]
    task = TASKS.get(kind, OTHER)
    scores, confidence = read_scores(run, kind)
    values = {
        "front": write_front(path.name, task.tag, licence, scores),
        "name": path.name,
        "summary": task.summary,
        "model": describe_model(config, checkpoint),
        "training": describe_training(run, config, checkpoint),
        "scores": scores,
        "scored": describe_test(run, kind),
        "confidence": confidence,
        "use": task.command.format(path.name),
        "limits": task.limits,
        "notes": notes.read_text(encoding="utf-8").strip() if notes else "",
    }
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(template.render(values).strip() + "\n", encoding="utf-8")
    Console().print(f"written to {output}")


def write_front(
    name: str, tag: str | None, licence: str | None, scores: list[tuple[str, str, str]]
) -> str:
    """Return the YAML block that Hugging Face reads."""
    front: dict[str, Any] = {"library_name": "pytorch-lightning", "tags": ["pytorch"]}
    if licence:
        front["license"] = licence
    if tag:
        front["pipeline_tag"] = tag
    if tag == "automatic-speech-recognition":
        front["language"] = "en"
    known = [{"type": key, "value": float(value)} for key, value, _ in scores]
    if known and tag:
        result = {"task": {"type": tag}, "metrics": known}
        front["model-index"] = [{"name": name, "results": [result]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def describe_model(
    config: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the parts of the model, their settings and its size."""
    rows = [("task", short_name(config["model"]))]
    settings = config["model"]["init_args"]
    for name in ("network", "decoding", "test_decoding"):
        if isinstance(settings.get(name), dict):
            rows += describe_part(name, settings[name])
    weights = checkpoint["state_dict"]
    count = sum(weight.numel() for name, weight in weights.items() if name.startswith("network."))
    rows.append(("weights", f"{count:,}"))
    if "alphabet" in checkpoint:
        rows.append(("alphabet", f"`{checkpoint['alphabet']}`"))
    return rows


def describe_part(name: str, part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a part of a configuration, and the parts in it: name, class and settings."""
    settings = part.get("init_args") or {}
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
    run: RunDirectory, config: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the data, the length and the settings of the training."""
    data = config["data"]["init_args"]
    # Only the last part of a path: the rest is about the machine.
    where = [Path(str(data[key])).name for key in ("root", "file") if data.get(key)]
    rows = [("data", f"{short_name(config['data'])} {', '.join(where)}".strip())]
    lengths = next(
        (v["samples"] for v in checkpoint.values() if isinstance(v, dict) and "samples" in v), None
    )
    if lengths is not None:
        hours = float(lengths.sum()) / data["sample_rate"] / 3600
        rows.append(("training clips", f"{len(lengths):,}, {hours:.2f} hours"))
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
    logged = read_rows(run.metrics) if run.metrics.is_file() else []
    seconds = [float(row["time/epoch"]) for row in logged if row.get("time/epoch")]
    if seconds:
        mean = sum(seconds) / len(seconds)
        rows.append(("training time", f"{len(seconds)} epochs of {mean:.0f} s on average"))
    return rows


def read_scores(
    run: RunDirectory, kind: str
) -> tuple[list[tuple[str, str, str]], dict[str, str] | None]:
    """Return the test's scores with intervals where they can be computed, and the confidence's."""
    if not run.test_metrics.is_file():
        return [], None
    found = json.loads(run.test_metrics.read_text(encoding="utf-8"))["metrics"]
    metrics = {name.removeprefix("test/"): value for name, value in found.items()}
    intervals = {}
    confidence = None
    if kind == "SpeechRecognizer":
        clips = read_test(run)
        for name, _, low, high in summarize(run, clips)["rates"]:
            intervals[name] = f"{low:.4f} – {high:.4f}"
        confidence = read_confidence(run, clips)
    rows = [(name, f"{x:.4f}", intervals.get(name, "")) for name, x in sorted(metrics.items())]
    return rows, confidence


def read_confidence(run: RunDirectory, clips: list[TestedClip]) -> dict[str, str] | None:
    """Return how well the confidence of the test's words is calibrated; None without a CTC head."""
    path = run.path / "test_words.jsonl"
    if not path.is_file():
        return None
    confidence: list[float] = []
    correct: list[bool] = []
    for line, clip in zip(path.read_text(encoding="utf-8").splitlines(), clips, strict=True):
        words = json.loads(line)["words"]
        confidence += [word["confidence"] for word in words]
        correct += mark_correct([word["word"] for word in words], clip.reference.split())
    if not correct:
        return None
    error, share = measure_confidence(confidence, correct)
    return {"ece": f"{error:.3f}", "share": f"{share:.0%}"}


def describe_test(run: RunDirectory, kind: str) -> str:
    """Return a sentence on what the scores were measured on."""
    if kind != "SpeechRecognizer" or not run.test_metrics.is_file():
        return "On the test set."
    count = len(read_test(run))
    return f"On {count:,} test clips. Intervals are bootstrap estimates over clips."


def short_name(part: Mapping[str, Any]) -> str:
    """Return the name of a part's class."""
    return str(part["class_path"]).rpartition(".")[2]
