"""Scores of a recognizer's test, computed again from its transcripts, with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engine import RunDirectory
from errors import UserError, extra
from metrics import CharErrorRate, WordErrorRate

with extra("report", "scoring by words and characters"):
    from kaldialign import align, bootstrap_wer_ci

GAP = "∅"
"""Placeholder in alignments for a missing word or character."""
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


def read_test(run: RunDirectory) -> list[TestedClip]:
    """Read a run's test transcripts.

    Raises:
        UserError: if the run was not tested, or the transcripts are not of the test that was
            scored.
    """
    path = run.test_transcripts
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


def estimate_rates(
    clips: list[TestedClip],
) -> list[tuple[str, float, tuple[float, float] | None]]:
    """Return each error rate with its 95 % bootstrap interval: name, rate, ends of the interval.

    There is no interval where some samples of the clips have no unit in their references.
    """
    rates: list[tuple[str, float, tuple[float, float] | None]] = []
    for name, value in score(clips).items():
        units = RATES[name]().units
        interval = bootstrap_wer_ci(
            [list(units(clip.reference)) for clip in clips],
            [list(units(clip.prediction)) for clip in clips],
            replications=REPLICATIONS,
            seed=SEED,
        )
        ends = max(interval["ci95min"], 0.0), interval["ci95max"]
        rates.append((name, value, ends if all(map(math.isfinite, ends)) else None))
    return rates


def compare_tests(first: list[TestedClip], second: list[TestedClip]) -> list[tuple[str, float]]:
    """Return, for each error rate, the probability that the second run's is lower.

    It is the fraction of paired bootstrap samples of clips in which it is (Bisani and Ney 2004).
    """
    found = []
    for name, make in RATES.items():
        units = make().units
        texts = [
            [list(units(text)) for text in column]
            for column in (
                [clip.reference for clip in first],
                [clip.prediction for clip in first],
                [clip.prediction for clip in second],
            )
        ]
        result = bootstrap_wer_ci(*texts, replications=REPLICATIONS, seed=SEED)
        found.append((name, float(result["p_s2_improv_over_s1"])))
    return found


def pair_up(reference: list[str], prediction: list[str]) -> list[tuple[str, str]]:
    """Align two sequences with the fewest edits; `GAP` stands where one has nothing."""
    pairs: list[tuple[str, str]] = align(reference, prediction, GAP)
    return pairs
