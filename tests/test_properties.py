"""Properties that hold for any text, corpus, number of processes and point of resume."""

from functools import partial

import numpy as np
import pytest
import textdistance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.sampling import LengthBucketBatchSampler, ShuffledBatchSampler
from datamodules.vocabulary import CharacterVocabulary
from engine import EpochSampler
from metrics import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
)
from networks import SpeechToText
from tests.networks.test_speech_to_text import DECODERS, PAD, Decoder, small_network

# The same examples every time, and no deadline: machines differ.
examples = partial(settings, deadline=None, derandomize=True)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SPECIAL = "<>@#|\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # such as line breaks
ALPHABET = st.text(st.characters(codec="utf-8", exclude_characters=SPECIAL), max_size=40).map(
    lambda text: "".join(dict.fromkeys(text))
)


# ------------------------------------------------------------------ vocabulary


@examples(max_examples=300)
@given(TEXT, ALPHABET)
def test_a_text_survives_the_vocabulary_but_for_unknown_characters(
    text: str, alphabet: str
) -> None:
    vocabulary = CharacterVocabulary(alphabet)
    tokens = vocabulary.encode(text)
    assert all(0 <= token < len(vocabulary) for token in tokens)
    spelled = text.lower() if alphabet == alphabet.lower() else text
    expected = "".join(c if c in alphabet else "#" for c in spelled)
    assert vocabulary.decode(tokens) == expected
    assert vocabulary.decode([*tokens, vocabulary.pad, 4 % len(vocabulary)]) == expected
    assert vocabulary.encode(expected) == tokens  # spelling again changes nothing


# ------------------------------------------------------------------ samplers


@st.composite
def samplers(draw: st.DrawFn) -> list[EpochSampler]:
    """One sampler for each process, all at one epoch."""
    world_size = draw(st.integers(1, 5))
    size = draw(st.integers(world_size, 60))
    batch_size, seed, shuffle = (
        draw(st.integers(1, 20)),
        draw(st.integers(0, 9)),
        draw(st.booleans()),
    )
    lengths = draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size))
    together = draw(st.integers(1, 4))
    bucket = draw(st.booleans())
    found: list[EpochSampler] = []
    for rank in range(world_size):
        sampler: EpochSampler = (
            LengthBucketBatchSampler(
                lengths, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size
            )
            if bucket
            else ShuffledBatchSampler(
                size,
                batch_size,
                shuffle=shuffle,
                steps_per_execution=together,
                seed=seed,
                rank=rank,
                world_size=world_size,
            )
        )
        sampler.set_epoch(draw(st.just(seed + 1)))
        found.append(sampler)
    return found


def flat(batch: object) -> list[int]:
    return np.concatenate(batch).tolist() if isinstance(batch, tuple) else list(batch)  # type: ignore[call-overload]


@examples(max_examples=300)
@given(samplers(), st.data())
def test_each_example_comes_once_an_epoch_wherever_it_was_resumed(
    processes: list[EpochSampler], data: st.DataObject
) -> None:
    whole = [list(sampler) for sampler in processes]
    counts = {len(batches) for batches in whole} | {len(sampler) for sampler in processes}
    assert len(counts) == 1
    seen = sorted(i for batches in whole for batch in batches for i in flat(batch))
    assert seen == list(range(len(seen)))
    assert len(seen) == len(processes[0].order(0))
    resumed_at = data.draw(st.integers(0, counts.pop()))
    for sampler, batches in zip(processes, whole, strict=True):
        sampler.start = resumed_at
        rest = list(sampler)
        assert [flat(batch) for batch in rest] == [flat(batch) for batch in batches[resumed_at:]]
        assert sampler.start == 0  # the next epoch is a whole one
        assert sampler.fingerprint() == processes[0].fingerprint()


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (JaccardSimilarity, textdistance.Jaccard()),
        (CosineSimilarity, textdistance.Cosine()),
        (DamerauLevenshteinSimilarity, textdistance.DamerauLevenshtein()),
    ],
)
@examples(max_examples=200)
@given(a=TEXT, b=TEXT)
def test_similarities_are_textdistances_symmetric_and_1_for_equal_texts(
    metric: type[JaccardSimilarity], reference: textdistance.algorithms.base.Base, a: str, b: str
) -> None:
    score = metric()([a], [b]).item()
    assert 0 <= score <= 1 + 1e-6
    assert score == pytest.approx(reference.normalized_similarity(a, b), abs=1e-6)
    assert score == pytest.approx(metric()([b], [a]).item(), abs=1e-6)
    assert metric()([a], [a]).item() == pytest.approx(1)


@pytest.mark.parametrize("metric", [CharErrorRate, WordErrorRate])
@examples(max_examples=100)
@given(pairs=st.lists(st.tuples(TEXT, TEXT.map(lambda t: f"x {t}")), min_size=2), cut=st.data())
def test_error_rates_do_not_depend_on_how_pairs_are_batched(
    metric: type[CharErrorRate], pairs: list[tuple[str, str]], cut: st.DataObject
) -> None:
    predictions, references = (list(texts) for texts in zip(*pairs, strict=True))
    place = cut.draw(st.integers(1, len(pairs) - 1))
    whole, parts = metric(), metric()
    whole.update(predictions, references)
    parts.update(predictions[:place], references[:place])
    parts.update(predictions[place:], references[place:])
    assert parts.compute() == whole.compute()
    assert metric()(references, references) == 0


# ------------------------------------------------------------------ padding

NETWORKS: dict[Decoder, SpeechToText] = {decoder: small_network(decoder) for decoder in DECODERS}


def logits(network: SpeechToText, clips: list[Tensor], texts: list[Tensor]) -> list[Tensor]:
    """Return each clip's (tokens, vocabulary), all computed in one batch."""
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    with torch.no_grad():
        found = network(waveforms, lengths, tokens).logits
    return [row[: len(text)] for row, text in zip(found, texts, strict=True)]


@pytest.mark.parametrize("decoder", DECODERS)
@examples(max_examples=25)
@given(
    clips=st.lists(st.tuples(st.integers(1, 12_000), st.integers(1, 12)), min_size=2, max_size=5),
    seed=st.integers(0, 100),
)
def test_a_clip_alone_equals_the_clip_in_any_batch(
    decoder: Decoder, clips: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(samples, generator=generator) for samples, _ in clips]
    texts = [torch.randint(3, 9, (tokens,), generator=generator) for _, tokens in clips]
    together = logits(NETWORKS[decoder], waveforms, texts)
    for waveform, text, batched in zip(waveforms, texts, together, strict=True):
        alone = logits(NETWORKS[decoder], [waveform], [text])[0]
        torch.testing.assert_close(batched, alone, rtol=1e-5, atol=1e-5 * alone.abs().max().item())
