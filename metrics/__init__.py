"""Metrics of transcripts, as torchmetrics subclasses."""

from metrics.text import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
)

__all__ = [
    "CharErrorRate",
    "CosineSimilarity",
    "DamerauLevenshteinSimilarity",
    "JaccardSimilarity",
    "WordErrorRate",
]
