"""Metrics of transcripts and of classes, as torchmetrics subclasses."""

from metrics.classification import ClassRecalls, MacroAUROC, MacroRecall
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
    "ClassRecalls",
    "CosineSimilarity",
    "DamerauLevenshteinSimilarity",
    "JaccardSimilarity",
    "MacroAUROC",
    "MacroRecall",
    "WordErrorRate",
    "normalize_transcript",
]
