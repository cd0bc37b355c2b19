"""Times and confidence of the words of a transcript."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.classification import binary_calibration_error

from datamodules.vocabulary import CharacterVocabulary
from networks import SpeechToText
from networks.ctc import align

RIDGE = 1e-3
"""L2 penalty on the distance from the identity map; keeps the fit finite if no word is wrong."""


class Word(NamedTuple):
    """A word of a transcript.

    Attributes:
        text: the word.
        start: when it begins, in seconds; NaN if the clip is too short for its text.
        end: when it ends, in seconds; NaN likewise.
        score: log-probability of its characters, mean of decoder and CTC head.
        confidence: probability that the word is correct.
    """

    text: str
    start: float
    end: float
    score: float
    confidence: float = math.nan

    def describe(self) -> dict[str, Any]:
        """Return ``word``, ``start``, ``end`` (None instead of NaN) and ``confidence``."""
        times = (None if math.isnan(t) else round(t, 3) for t in (self.start, self.end))
        values = (self.text, *times, round(self.confidence, 4))
        return dict(zip(("word", "start", "end", "confidence"), values, strict=True))


def find_words(
    network: SpeechToText,
    vocabulary: CharacterVocabulary,
    memory: Tensor,
    memory_mask: Tensor,
    texts: Sequence[str],
) -> list[list[Word]]:
    """Align transcripts with the audio and score their words.

    Args:
        network: network with a CTC head, in evaluation mode.
        vocabulary: vocabulary of the transcripts.
        memory: encodings (batch, positions, hidden).
        memory_mask: (batch, positions), true on real positions.
        texts: transcripts of the batch.

    Returns:
        The words of each transcript.
    """
    device = memory.device
    encoded = [torch.tensor(vocabulary.encode(text), device=device) for text in texts]
    tokens = pad_sequence(encoded, batch_first=True, padding_value=vocabulary.pad)
    lengths = torch.tensor([len(row) - 2 for row in encoded], device=device)
    spoken = tokens[:, 1:-1]  # without start; the last column can only be stop or padding
    logs = network.ctc_log_probabilities(memory)
    alignment = align(logs, memory_mask, spoken, lengths, blank=vocabulary.pad).numpy()
    ctc_logs, positions = logs.cpu().numpy(), memory_mask.sum(1).tolist()
    read = tokens[:, :-1][:, : network.decoder.max_tokens]  # a text that was cut has no stop token
    logs = network.decoder(read, memory, memory_mask).float().log_softmax(-1)
    decoder_logs = logs.gather(2, tokens[:, 1 : 1 + read.shape[1], None])[:, :, 0].cpu().numpy()
    rate = network.features.sample_rate / network.features.hop_length / network.encoder.subsampling
    found = []
    for clip, row in enumerate(encoded):
        count = len(row) - 2
        symbols = row[1:-1].tolist()
        text = "".join(vocabulary.symbols[symbol] for symbol in symbols)
        first, last, peak = locate(alignment[clip], ctc_logs[clip, : positions[clip]], symbols)
        scores = peak.copy()  # the CTC head alone, beyond what the decoder can read
        read_by_both = decoder_logs[clip, :count]
        scores[: len(read_by_both)] = (scores[: len(read_by_both)] + read_by_both) / 2
        found.append(
            [
                Word(
                    text[i:j],
                    max(float(first[i] - 0.5) / rate, 0.0),  # a position is centred on its frame
                    min(float(last[j - 1] + 0.5), positions[clip] - 1) / rate,
                    float(scores[i:j].sum()),
                )
                for i, j in (match.span() for match in re.finditer(r"\S+", text))
            ]
        )
    return found


def locate(
    alignment: NDArray[np.int64], logs: NDArray[np.float32], symbols: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the first and last position of each character, and its highest log-probability.

    Args:
        alignment: (positions,) index of the character spoken there, -1 for none.
        logs: (positions, vocabulary) log-probabilities of the CTC head.
        symbols: token of each character.
    """
    first, last, peak = (np.full(len(symbols), math.nan) for _ in range(3))
    for position in np.flatnonzero(alignment >= 0):
        i = alignment[position]
        value = logs[position, symbols[i]]
        if math.isnan(first[i]):
            first[i], peak[i] = position, value
        last[i], peak[i] = position, max(peak[i], value)
    # Without an alignment, use the highest log-probability of any position.
    missing = np.isnan(peak)
    peak[missing] = logs[:, np.array(symbols, dtype=int)[missing]].max(0, initial=-math.inf)
    return first, last, peak


def mark_correct(prediction: Sequence[str], reference: Sequence[str]) -> list[bool]:
    """Return whether each predicted word is correct, by an alignment with the fewest edits."""
    correct = [True] * len(prediction)
    for edit in Levenshtein.editops(reference, prediction):
        if edit.tag != "delete":
            correct[edit.dest_pos] = False
    return correct


def score_words(found: list[list[Word]], references: list[str]) -> list[tuple[float, bool]]:
    """Return the score of each word of transcripts, and whether the word is right."""
    scored: list[tuple[float, bool]] = []
    for words, reference in zip(found, references, strict=True):
        correct = mark_correct([word.text for word in words], reference.split())
        scored += zip([word.score for word in words], correct, strict=True)
    return scored


def measure_confidence(confidence: Sequence[float], correct: Sequence[bool]) -> tuple[float, float]:
    """Return how well the confidence of words predicts whether they are correct.

    Returns:
        Expected calibration error with 15 bins (Guo et al. 2017), and the fraction of the errors
        that is in the least confident fifth of the words; 0 if there is no error.
    """
    p, right = torch.tensor(confidence), torch.tensor(correct)
    error = binary_calibration_error(p, right.int(), n_bins=15)
    least = p.argsort(stable=True)[: len(p) // 5]
    share = (~right[least]).sum() / (~right).sum().clamp(min=1)
    return float(error), float(share)


class Calibration(NamedTuple):
    """Map from a word's score to the probability that it is correct (Platt 1999).

    The probability is σ(slope · log(p / (1 - p)) + offset), where p is exp(score): a temperature
    1 / slope and a shift.
    """

    slope: float = 1.0
    offset: float = 0.0

    def confidence(self, score: float) -> float:
        """Return the probability that a word with this score is correct."""
        return float(expit(self.slope * _logit(np.array(score)) + self.offset))

    @classmethod
    def fit(cls, scores: Sequence[float], right: Sequence[bool]) -> "Calibration":
        """Fit the map by maximum likelihood."""
        x = np.stack((_logit(np.array(scores)), np.ones(len(scores))))
        sign = np.where(right, 1.0, -1.0)
        prior = np.array([1.0, 0.0])

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            margin = sign * (weights @ x)
            away = weights - prior
            slope = -x @ (sign * expit(-margin)) / len(sign)
            value = np.logaddexp(0, -margin).mean() + RIDGE * (away @ away) / 2
            return float(value), slope + RIDGE * away

        weights = minimize(loss, prior, jac=True).x
        return cls(float(weights[0]), float(weights[1]))


def _logit(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of log p, between -20 and 20."""
    score = np.minimum(score, -1e-9)
    return np.clip(score - np.log(-np.expm1(score)), -20, 20)
