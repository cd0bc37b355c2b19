"""Metrics of transcripts, as torchmetrics subclasses."""

from metrics.text import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
    normalize_transcript,
)

__all__ = [
    "CharErrorRate",
    "CosineSimilarity",
    "DamerauLevenshteinSimilarity",
    "JaccardSimilarity",
    "WordErrorRate",
    "normalize_transcript",
]
