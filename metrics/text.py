"""Metrics of predicted and reference transcripts: torchmetrics around rapidfuzz."""

import math
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import torch
from rapidfuzz.distance import OSA, Levenshtein
from torch import Tensor
from torchmetrics import Metric


def normalize_transcript(text: str) -> str:
    """Return a transcript in lower case with only letters, digits, apostrophes and single spaces.

    Published error rates are usually of such texts. Marks belong to their letters: accents that are
    characters of their own, the vowel signs of Hindi.
    """
    text = text.lower().replace("i\u0307", "i").replace("’", "'")  # Python's lower case of İ is i̇
    text = unicodedata.normalize("NFC", text)
    return " ".join("".join(c if is_of_word(c) else " " for c in text).split())


def is_of_word(character: str) -> bool:
    """Return whether a character is a letter, a digit, a mark of a letter or an apostrophe."""
    is_mark = unicodedata.category(character).startswith("M")
    return character.isalnum() or is_mark or character == "'"


class _PairwiseMetric(Metric, ABC):
    """Ratio of two sums over pairs of strings; sums are added over processes."""

    is_differentiable = False
    full_state_update = False

    numerator: Tensor
    denominator: Tensor

    def __init__(self, numerator_dtype: torch.dtype) -> None:
        super().__init__()
        self.add_state("numerator", torch.zeros((), dtype=numerator_dtype), dist_reduce_fx="sum")
        self.add_state("denominator", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, prediction: str, reference: str) -> tuple[float, int]:
        """Return a pair's terms of the numerator and of the denominator."""

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add pairs of strings.

        Args:
            predictions: predicted transcripts.
            references: reference transcripts, as many.

        Raises:
            ValueError: if the lists differ in length, or an argument is a single string.
        """
        if isinstance(predictions, str) or isinstance(references, str):
            raise ValueError("predictions and references must be lists of strings, not one string")
        if len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions and {len(references)} references cannot be paired"
            )
        scores = [self.score(*pair) for pair in zip(predictions, references, strict=True)]
        # Summed in Python first: one addition on the device per batch, and one rounding.
        self.numerator += sum(numerator for numerator, _ in scores)
        self.denominator += sum(denominator for _, denominator in scores)

    def compute(self) -> Tensor:
        """Return the ratio as a scalar; NaN without any pair."""
        return self.numerator / self.denominator


class _Similarity(_PairwiseMetric):
    """Mean over pairs of a similarity in [0, 1], which is 1 for two empty strings."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(torch.float32)

    @abstractmethod
    def similarity(self, prediction: str, reference: str) -> float:
        """Return the similarity of two strings; at least one is not empty."""

    def score(self, prediction: str, reference: str) -> tuple[float, int]:
        return (self.similarity(prediction, reference) if prediction or reference else 1.0), 1


class JaccardSimilarity(_Similarity):
    """Mean Jaccard similarity of the two bags of characters, Σ min / Σ max of their counts.

    It ignores order, so wrong text can have a high value.
    """

    def similarity(self, prediction: str, reference: str) -> float:
        left, right = Counter(prediction), Counter(reference)
        return (left & right).total() / (left | right).total()


class CosineSimilarity(_Similarity):
    """Mean Ochiai coefficient of the two bags of characters, Σ min of counts / √(|a|·|b|).

    It ignores order, so wrong text can have a high value. It is 0 if exactly one string is empty.
    """

    def similarity(self, prediction: str, reference: str) -> float:
        if not prediction or not reference:
            return 0.0
        shared = (Counter(prediction) & Counter(reference)).total()
        return shared / math.sqrt(len(prediction) * len(reference))


class DamerauLevenshteinSimilarity(_Similarity):
    """Mean of 1 − d(a, b) / max(|a|, |b|), d the optimal string alignment distance.

    This is the restricted Damerau–Levenshtein distance, the default of ``textdistance``: the
    number of insertions, deletions, substitutions and transpositions of adjacent characters, with
    no substring edited twice.
    """

    def similarity(self, prediction: str, reference: str) -> float:
        return OSA.normalized_similarity(prediction, reference)


class _ErrorRate(_PairwiseMetric):
    """Edits of all pairs divided by the units, characters or words, of all references.

    For an empty reference, the prediction's units count as edits. If all references are empty, the
    rate is 0 without edits and infinite with any.
    """

    higher_is_better = False

    def __init__(self, *, normalize: bool = False) -> None:
        super().__init__(torch.int64)  # counts: exact
        self.normalize = normalize

    @abstractmethod
    def split(self, text: str) -> Sequence[str]:
        """Return the units of a text."""

    def units(self, text: str) -> Sequence[str]:
        """Return the units that are compared."""
        return self.split(normalize_transcript(text) if self.normalize else text)

    def score(self, prediction: str, reference: str) -> tuple[int, int]:
        units = self.units(reference)
        return Levenshtein.distance(self.units(prediction), units), len(units)

    def compute(self) -> Tensor:
        """Return the rate as a scalar; NaN without any pair."""
        if self.update_called and self.numerator == 0:
            return torch.zeros((), device=self.numerator.device)
        return super().compute()


class CharErrorRate(_ErrorRate):
    """Levenshtein distance in characters, divided by the references' characters.

    If all references are empty, it is 0 without edits and infinite with any.

    Args:
        normalize: whether to compare texts as `normalize_transcript` writes them.
    """

    def split(self, text: str) -> str:
        return text


class WordErrorRate(_ErrorRate):
    """Levenshtein distance in words, separated by white space, divided by the references' words.

    If all references are empty, it is 0 without edits and infinite with any.

    Args:
        normalize: whether to compare texts as `normalize_transcript` writes them.
    """

    def split(self, text: str) -> list[str]:
        return text.split()
