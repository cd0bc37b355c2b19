import random

import pytest
import textdistance
import torch
import torchmetrics.text
from torchmetrics import Metric, MetricCollection

from metrics import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
    normalize_transcript,
)

SIMILARITIES = [
    pytest.param(JaccardSimilarity, textdistance.Jaccard(), id="jaccard"),
    pytest.param(CosineSimilarity, textdistance.Cosine(), id="cosine"),
    pytest.param(
        DamerauLevenshteinSimilarity, textdistance.DamerauLevenshtein(), id="damerau_levenshtein"
    ),
]
RATES = [
    pytest.param(CharErrorRate, torchmetrics.text.CharErrorRate, id="cer"),
    pytest.param(WordErrorRate, torchmetrics.text.WordErrorRate, id="wer"),
]
ALL = [CharErrorRate, WordErrorRate, *(param.values[0] for param in SIMILARITIES)]


def random_text(choice: random.Random, shortest: int = 0) -> str:
    """Draw from few characters, of several Unicode planes, so that repetitions are frequent."""
    return "".join(choice.choices("aab  cß ж日🎈\u0301", k=choice.randint(shortest, 12)))


def random_pairs(count: int, shortest: int = 0) -> tuple[list[str], list[str]]:
    choice = random.Random(0)
    texts = [(random_text(choice), "x" * shortest + random_text(choice)) for _ in range(count)]
    return [a for a, _ in texts], [b for _, b in texts]


@pytest.mark.parametrize(("metric", "reference"), SIMILARITIES)
def test_similarity_equals_textdistance(
    metric: type[Metric], reference: textdistance.algorithms.base.Base
) -> None:
    predictions, references = random_pairs(500)
    for prediction, truth in zip(predictions, references, strict=True):
        ours = metric()([prediction], [truth]).item()
        assert ours == pytest.approx(reference.normalized_similarity(prediction, truth), abs=1e-6)


@pytest.mark.parametrize(("metric", "reference"), RATES)
def test_error_rate_equals_torchmetrics(metric: type[Metric], reference: type[Metric]) -> None:
    predictions, references = random_pairs(500, shortest=1)
    ours, theirs = metric(), reference()
    for batch in range(0, 500, 50):
        ours.update(predictions[batch : batch + 50], references[batch : batch + 50])
        theirs.update(predictions[batch : batch + 50], references[batch : batch + 50])
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), abs=1e-6)


@pytest.mark.parametrize("metric", ALL)
def test_states_of_two_processes_sum_to_those_of_one(metric: type[Metric]) -> None:
    predictions, references = random_pairs(100, shortest=1)
    whole, parts = metric(), [metric(), metric()]
    whole.update(predictions, references)
    parts[0].update(predictions[:70], references[:70])
    parts[1].update(predictions[70:], references[70:])
    for state, reduce in parts[0]._reductions.items():  # as torchmetrics does between processes
        assert callable(reduce)
        setattr(parts[0], state, reduce(torch.stack([getattr(part, state) for part in parts])))
    parts[0]._computed = None
    assert parts[0].compute().item() == pytest.approx(whole.compute().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "empty_both", "empty_reference", "empty_prediction"),
    [
        (JaccardSimilarity, 1, 0, 0),
        (CosineSimilarity, 1, 0, 0),
        (DamerauLevenshteinSimilarity, 1, 0, 0),
        (CharErrorRate, 0, float("inf"), 1),
        (WordErrorRate, 0, float("inf"), 1),
    ],
)
def test_empty_strings_have_the_documented_values(
    metric: type[Metric], empty_both: float, empty_reference: float, empty_prediction: float
) -> None:
    assert metric()([""], [""]) == empty_both
    assert metric()(["a"], [""]) == empty_reference
    assert metric()([""], ["a"]) == empty_prediction


@pytest.mark.parametrize("metric", ALL)
def test_lists_of_different_length_and_single_strings_are_rejected(metric: type[Metric]) -> None:
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        metric().update(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="lists of strings"):
        metric().update("abc", "abc")


def test_normalized_transcripts_keep_the_marks_of_letters() -> None:
    assert normalize_transcript("“It’s—Ok,” 2 she…") == "it's ok 2 she"
    assert (
        normalize_transcript("nai\u0308ve!") == normalize_transcript("na\u00efve") == "na\u00efve"
    )
    assert normalize_transcript("की, का") == "की का"
    assert normalize_transcript("İstanbul") == "istanbul"


def test_an_error_rate_is_a_ratio_of_totals_not_a_mean_over_pairs() -> None:
    metric = CharErrorRate()
    metric.update(["a", "bbbbbbbbb"], ["x", "bbbbbbbbb"])
    assert metric.compute().item() == pytest.approx(0.1)


def test_equal_first_scores_do_not_merge_the_metrics_of_a_collection() -> None:
    """The recognizer's collection needs compute_groups=False: groups are found by equal states."""
    metrics = MetricCollection([JaccardSimilarity(), CosineSimilarity()], compute_groups=False)
    metrics.update(["abc"], ["abc"])
    metrics.update(["abcd"], ["ab"])
    scores = metrics.compute()
    assert scores["JaccardSimilarity"].item() == pytest.approx(0.75)
    assert scores["CosineSimilarity"].item() == pytest.approx((1 + 2 / 8**0.5) / 2)
