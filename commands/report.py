"""``report``: one HTML page on a recognizer's test, or on two side by side."""

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import soundfile

from callbacks.speech_examples import inspect_batch
from commands.folders import make_console, refuse_missing_data
from commands.scores import (
    GAP,
    REPLICATIONS,
    TestedClip,
    compare_tests,
    estimate_rates,
    pair_up,
    read_test,
)
from commands.stages import load_run
from engine import RunDirectory
from errors import UserError, extra

with extra("report", "report"):
    import jinja2

TEMPLATE = Path(__file__).parent / "report.html"
SHOWN = 25
"""Maximum number of rows of each list of errors."""


def report(paths: list[Path], worst: int, output: Path | None) -> None:
    """Write the page; the run's own folder is the default.

    Args:
        paths: one or two run directories that were tested on the same clips.
        worst: number of clips with the most errors to show with sound and alignment.
        output: file to write.

    Raises:
        UserError: if there are more than two runs, a run was not tested, the runs' clips differ, or
            the data of the clips to show is not there.
    """
    if len(paths) > 2:
        raise UserError(f"report compares at most two runs, not {len(paths)}: use compare")
    runs = [RunDirectory(path) for path in paths]
    tests = [read_test(run) for run in runs]
    if len(tests) == 2 and [(c.id, c.reference) for c in tests[0]] != [
        (c.id, c.reference) for c in tests[1]
    ]:
        raise UserError(
            f"{paths[0]} and {paths[1]} were tested on different clips or references: "
            "test both on the same data, alphabet and normalize_text"
        )
    page = {
        "title": " and ".join(run.path.name for run in runs),
        "runs": [summarize(run, clips) for run, clips in zip(runs, tests, strict=True)],
        "comparison": compare_tests(*tests) if len(tests) == 2 else None,
        "replications": REPLICATIONS,
        "worst": show_worst(runs[0], tests[0], worst),
    }
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    output = output or paths[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(template.render(page), encoding="utf-8")
    make_console().print(f"written to {output}")


def summarize(run: RunDirectory, clips: list[TestedClip]) -> dict[str, Any]:
    """Return what the page says of one run."""
    return {
        "name": run.path.name,
        "clips": len(clips),
        "rates": estimate_rates(clips),
        "lengths": rate_by_length(clips),
        "words": count_errors([clip.words() for clip in clips]),
        "characters": count_errors(
            [pair_up(list(clip.reference), list(clip.prediction)) for clip in clips]
        ),
    }


def rate_by_length(clips: list[TestedClip]) -> list[tuple[str, int, float]]:
    """Return word error rates by the number of words: range, clips, rate; four groups."""
    clips = sorted(clips, key=lambda clip: len(clip.reference.split()))
    rows = []
    for i in range(4):
        group = clips[len(clips) * i // 4 : len(clips) * (i + 1) // 4]
        if group:
            lengths = [len(clip.reference.split()) for clip in group]
            rate = sum(clip.errors() for clip in group) / max(sum(lengths), 1)
            rows.append((f"{lengths[0]} – {lengths[-1]}", len(group), rate))
    return rows


def count_errors(aligned: list[list[tuple[str, str]]]) -> dict[str, Any]:
    """Return totals and the most frequent substitutions, deletions and insertions."""
    pairs = Counter(pair for text in aligned for pair in text if pair[0] != pair[1])
    kinds: dict[str, list[tuple[str, str, int]]] = {
        "substitutions": [(a, b, n) for (a, b), n in pairs.items() if GAP not in (a, b)],
        "deletions": [(a, b, n) for (a, b), n in pairs.items() if b == GAP],
        "insertions": [(a, b, n) for (a, b), n in pairs.items() if a == GAP],
    }
    return {
        kind: {
            "total": sum(n for _, _, n in found),
            "frequent": sorted(found, key=lambda row: (-row[2], row[:2]))[:SHOWN],
        }
        for kind, found in kinds.items()
    }


def show_worst(run: RunDirectory, clips: list[TestedClip], count: int) -> list[dict[str, Any]]:
    """Return the clips with the most wrong words: texts aligned, sound, alignment picture."""
    if count < 0:
        raise UserError(f"--worst {count} is negative")
    worst = sorted(clips, key=lambda clip: (-clip.errors(), clip.id))[:count]
    worst = [clip for clip in worst if clip.errors()]
    if not worst:
        return []
    tested = run.read_scores()
    tested_file = Path(tested.checkpoint) if tested and tested.checkpoint else None
    is_there = tested_file is not None and tested_file.is_file()
    changed = {} if tested is None else tested.changed
    of_data = {key: value for key, value in changed.items() if key.partition(".")[0] == "data"}
    model, data, *_ = load_run(run.path, tested_file if is_there else None, of_data)
    refuse_missing_data(data, run.path)
    data.prepare_data()
    data.setup("test")
    dataset = data.datasets["test"]
    index = {clip.id: i for i, clip in enumerate(dataset.clips)}
    shown = []
    for clip in worst:
        if clip.id not in index:
            raise UserError(f"{run.path}: the data no longer has the test clip {clip.id}")
        batch = dataset[[index[clip.id]]]
        (view,) = inspect_batch(model, batch, [clip.prediction])
        picture = io.BytesIO()
        view.image().save(picture, format="png")
        sound = io.BytesIO()
        soundfile.write(sound, batch.waveforms[0].numpy(), data.sample_rate, format="OGG")
        shown.append(
            {
                "id": clip.id,
                "errors": clip.errors(),
                "words": clip.words(),
                "sound": base64.b64encode(sound.getvalue()).decode(),
                "picture": base64.b64encode(picture.getvalue()).decode(),
            }
        )
    return shown
