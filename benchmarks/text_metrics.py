"""String similarities: rapidfuzz, as the suite uses it, against torchmetrics and textdistance.

    python -m benchmarks.text_metrics

300 pairs of 100 characters; the first half of each prediction is correct. textdistance's
Damerau-Levenshtein distance uses rapidfuzz where it is installed, as here.
"""

import argparse
import random
import string
from functools import partial

import textdistance
import torchmetrics.text

from benchmarks.harness import OURS, Section, report, take_turns
from metrics import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
)

PAIRS = 300


def make_texts() -> tuple[list[str], list[str]]:
    """Return predictions and references."""
    choice = random.Random(0)
    letters = string.ascii_lowercase + "    "
    references = ["".join(choice.choices(letters, k=100)) for _ in range(PAIRS)]
    predictions = [text[:50] + "".join(choice.choices(letters, k=50)) for text in references]
    return predictions, references


def measure(options: argparse.Namespace) -> Section:
    """Compare each metric with the peers that have it."""
    predictions, references = make_texts()
    pairs = list(zip(predictions, references, strict=True))
    distance = textdistance.DamerauLevenshtein()

    def score(function: object) -> list[float]:
        return [function.normalized_similarity(a, b) for a, b in pairs]  # type: ignore[attr-defined]

    comparisons = [
        take_turns(
            f"{name}, {PAIRS} pairs",
            {OURS: partial(ours.update, predictions, references), peer: function},
            options.rounds,
        )
        for name, ours, peer, function in (
            (
                "character error rate",
                CharErrorRate(),
                "torchmetrics",
                partial(torchmetrics.text.CharErrorRate().update, predictions, references),
            ),
            (
                "word error rate",
                WordErrorRate(),
                "torchmetrics",
                partial(torchmetrics.text.WordErrorRate().update, predictions, references),
            ),
            (
                "Damerau-Levenshtein",
                DamerauLevenshteinSimilarity(),
                "textdistance",
                partial(score, distance),
            ),
            (
                "Jaccard",
                JaccardSimilarity(),
                "textdistance",
                partial(score, textdistance.Jaccard()),
            ),
            ("cosine", CosineSimilarity(), "textdistance", partial(score, textdistance.Cosine())),
        )
    ]
    return Section("String similarities", f"{PAIRS} pairs of 100 characters.", comparisons)


if __name__ == "__main__":
    report(measure, __doc__)
