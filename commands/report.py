"""``report``: one HTML page on a recognizer's test, or on two side by side."""

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console

from callbacks.speech_examples import inspect_batch
from commands.stages import load_run
from engine import RunDirectory
from errors import UserError
from metrics import CharErrorRate, WordErrorRate, normalize_transcript

try:
    import jinja2
    from kaldialign import align, bootstrap_wer_ci
except ImportError as error:
    raise UserError(f"report needs the package {error.name}: pip install '.[report]'") from error

TEMPLATE = Path(__file__).parent / "report.html"
GAP = "∅"
"""Placeholder in alignments for a missing word or character."""
SHOWN = 25
"""Maximum number of rows of each list of errors."""
REPLICATIONS = 10_000
SEED = 0
RATES: dict[str, Callable[[], CharErrorRate | WordErrorRate]] = {
    "wer": WordErrorRate,
    "cer": CharErrorRate,
    "wer_normalized": partial(WordErrorRate, normalize=True),
    "cer_normalized": partial(CharErrorRate, normalize=True),
}
EXACT = 1e-6
"""Maximum difference to the test's own scores, which are float32."""


@dataclass(frozen=True)
class TestedClip:
    """A test clip.

    Attributes:
        id: name of the clip.
        reference: reference transcript.
        prediction: predicted transcript.
    """

    id: str
    reference: str
    prediction: str

    def words(self) -> list[tuple[str, str]]:
        """Return the words of both texts, aligned."""
        return pair_up(self.reference.split(), self.prediction.split())

    def errors(self) -> int:
        """Return the number of wrong words."""
        return sum(reference != prediction for reference, prediction in self.words())


def report(paths: list[Path], worst: int, output: Path | None) -> None:
    """Write the page; the run's own folder is the default.

    Args:
        paths: one or two run directories that were tested on the same clips.
        worst: number of clips with the most errors to show with sound and alignment.
        output: file to write.

    Raises:
        UserError: if there are more than two runs, a run was not tested, or the runs' clips differ.
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
    Console().print(f"written to {output}")


def read_test(run: RunDirectory) -> list[TestedClip]:
    """Read a run's test transcripts.

    Raises:
        UserError: if the run was not tested, or the transcripts are not of the test that was
            scored.
    """
    path = run.path / "test_transcripts.csv"
    tested = run.read_scores()
    if tested is None or not path.is_file():
        file = path if tested else run.test_metrics
        raise UserError(f"{run.path} has no {file.name}: test a recognizer there first")
    lines = path.read_text(encoding="utf-8").splitlines()
    clips = [TestedClip(*line.split("|")) for line in lines]
    for name, metric in score(clips).items():
        if abs(tested.metrics.get(f"test/{name}", metric) - metric) > EXACT * max(1.0, metric):
            raise UserError(
                f"{path} does not have the {name} of {run.test_metrics}: test the run again"
            )
    return clips


def score(clips: list[TestedClip]) -> dict[str, float]:
    """Return the error rates as test computes them."""
    rates = {}
    for name, make in RATES.items():
        metric = make()
        metric.update([clip.prediction for clip in clips], [clip.reference for clip in clips])
        rates[name] = float(metric.compute())
    return rates


def units(text: str, name: str) -> list[str]:
    """Return the units that an error rate counts."""
    text = normalize_transcript(text) if name.endswith("normalized") else text
    return text.split() if name.startswith("wer") else list(text)


def summarize(run: RunDirectory, clips: list[TestedClip]) -> dict[str, Any]:
    """Return what the page says of one run."""
    rates = []
    for name, value in score(clips).items():
        pairs = [[units(text, name) for text in (c.reference, c.prediction)] for c in clips]
        interval = bootstrap_wer_ci(
            [reference for reference, _ in pairs],
            [prediction for _, prediction in pairs],
            replications=REPLICATIONS,
            seed=SEED,
        )
        rates.append((name, value, max(interval["ci95min"], 0.0), interval["ci95max"]))
    return {
        "name": run.path.name,
        "clips": len(clips),
        "rates": rates,
        "lengths": rate_by_length(clips),
        "words": count_errors([clip.words() for clip in clips]),
        "characters": count_errors(
            [pair_up(list(clip.reference), list(clip.prediction)) for clip in clips]
        ),
    }


def pair_up(reference: list[str], prediction: list[str]) -> list[tuple[str, str]]:
    """Align two sequences with the fewest edits; `GAP` stands where one has nothing."""
    pairs: list[tuple[str, str]] = align(reference, prediction, GAP)
    return pairs


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


def compare_tests(first: list[TestedClip], second: list[TestedClip]) -> list[tuple[str, float]]:
    """Return, for each error rate, the probability that the second run's is lower.

    It is the fraction of paired bootstrap samples of clips in which it is (Bisani and Ney 2004).
    """
    found = []
    for name in RATES:
        texts = [
            [units(text, name) for text in column]
            for column in (
                [clip.reference for clip in first],
                [clip.prediction for clip in first],
                [clip.prediction for clip in second],
            )
        ]
        result = bootstrap_wer_ci(*texts, replications=REPLICATIONS, seed=SEED)
        found.append((name, float(result["p_s2_improv_over_s1"])))
    return found


def show_worst(run: RunDirectory, clips: list[TestedClip], count: int) -> list[dict[str, Any]]:
    """Return the clips with the most wrong words: texts aligned, sound, alignment picture."""
    worst = sorted(clips, key=lambda clip: (-clip.errors(), clip.id))[:count]
    worst = [clip for clip in worst if clip.errors()]
    if not worst:
        return []
    tested = run.read_scores()
    recorded = tested and tested.checkpoint
    model, data = load_run(run, Path(recorded) if recorded and Path(recorded).is_file() else None)
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
