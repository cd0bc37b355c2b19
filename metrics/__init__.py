"""Metrics of transcripts, of classes and of losses, as torchmetrics subclasses."""

from metrics.classification import ClassRecalls, MacroAUROC, MacroRecall
from metrics.mean import WeightedMean
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
    "WeightedMean",
    "WordErrorRate",
    "normalize_transcript",
]
