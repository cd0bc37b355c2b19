"""Beam search against exhaustive search, greedy search, and itself in other batches."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import (
    AudioEncoder,
    BeamSearch,
    CharacterLanguageModel,
    CTCGreedySearch,
    DecodingStrategy,
    GreedySearch,
    LogMelSpectrogram,
    SpeechToText,
    TextDecoder,
    TextDecoderRecurrent,
    TextDecoderTransformer,
)
from networks.ctc import PrefixScores

START, STOP, PAD, VOCABULARY, LONGEST = 0, 1, 2, 6, 5
SPECIAL: dict[str, Any] = {"start": START, "stop": STOP, "pad": PAD}


def make_network(
    decoder: Callable[..., TextDecoder], max_tokens: int = LONGEST, seed: int = 0
) -> SpeechToText:
    torch.manual_seed(seed)
    network = SpeechToText(
        AudioEncoder(hidden_size=8, mlp_size=8),
        decoder(vocabulary_size=VOCABULARY, hidden_size=8, mlp_size=8, max_tokens=max_tokens),
        LogMelSpectrogram(),
        ctc=True,
    ).eval()
    for parameter in network.parameters():  # far from uniform predictions
        torch.nn.init.normal_(parameter, std=0.7)
    return network


def make_memory(clips: int = 3, positions: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(clips, positions, 8, generator=generator)
    lengths = torch.tensor([positions - 2 * clip for clip in range(clips)])
    return memory, torch.arange(positions) < lengths[:, None]


def texts(found: Tensor) -> list[list[int]]:
    """Return the tokens of each row, with the stop token and without padding."""
    rows = found.tolist()
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in rows]


def score_by_ctc(logs: Tensor, real: Tensor, texts: Tensor, is_cut: bool) -> Tensor:
    """Return the log-probability that each clip's text is the given one, or starts with it."""
    count, length = texts.shape
    if not is_cut:
        lengths = torch.full((count,), length)
        return -F.ctc_loss(logs.transpose(0, 1), texts, real.sum(1), lengths, PAD, "none")
    prefixes = PrefixScores(logs, real, blank=PAD, width=1, stop=STOP)
    for tokens in texts.T:
        scores = prefixes.extend().gather(1, tokens[:, None])[:, 0]
        prefixes.append(torch.arange(count), tokens)
    return scores


@pytest.mark.parametrize("decoder", [TextDecoderTransformer, TextDecoderRecurrent])
@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize(
    ("ctc_weight", "exponent", "fused"),
    [(0.0, 0.0, False), (0.3, 0.0, False), (0.4, 0.7, True), (1.0, 0.0, False)],
)
def test_a_wide_beam_finds_the_best_of_all_texts(
    decoder: Callable[..., TextDecoder],
    ctc_weight: float,
    exponent: float,
    fused: bool,
    is_long: bool,
) -> None:
    network = make_network(decoder).requires_grad_(False)
    network.decoder.output.bias.data[STOP] += -8.0 if is_long else 3.0
    memory, mask = make_memory()
    model = CharacterLanguageModel(VOCABULARY, 8, layers=1).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    beam = BeamSearch(
        width=600,
        ctc_weight=ctc_weight,
        length_exponent=exponent,
        language_model=model if fused else None,
        language_model_weight=0.5,
        end_margin=float("inf"),
    )
    found = texts(beam.decode(network, memory, mask, **SPECIAL))
    letters = [t for t in range(VOCABULARY) if t not in (START, STOP, PAD)]
    ends = []
    for clip, text in enumerate(found):
        scores: dict[tuple[int, ...], float] = {}
        for length in range(LONGEST + 1):
            is_cut = length == LONGEST  # and has no stop token
            candidates = torch.tensor(
                [*itertools.product(letters, repeat=length)], dtype=torch.long
            )
            tokens = F.pad(F.pad(candidates, (1, 0), value=START), (0, 1 - is_cut), value=STOP)
            one = memory[clip].expand(len(tokens), -1, -1)
            real = mask[clip].expand(len(tokens), -1)
            attention = network.decoder(tokens[:, :-1], one, real).double().log_softmax(-1)
            score = attention.gather(2, tokens[:, 1:, None]).sum((1, 2)) * (1 - ctc_weight)
            if ctc_weight:
                logs = network.ctc_log_probabilities(one).double()
                score = score + ctc_weight * score_by_ctc(logs, real, candidates, is_cut)
            if fused:
                prior = model(tokens[:, :-1]).double().log_softmax(-1)
                score = score + 0.5 * prior.gather(2, tokens[:, 1:, None]).sum((1, 2))
            score = score / (tokens.shape[1] - 1) ** exponent
            scores |= zip(map(tuple, candidates.tolist()), score.tolist(), strict=True)
        spelled = tuple(token for token in text if token != STOP)
        assert scores[spelled] == pytest.approx(max(scores.values()), abs=1e-5)
        ends.append(len(spelled) == LONGEST)
    assert any(ends) == is_long or ctc_weight == 1.0  # then the decoder is not used


@pytest.mark.parametrize(
    ("decoder", "stop_bias"), [(TextDecoderTransformer, 3.0), (TextDecoderRecurrent, -0.5)]
)
def test_width_one_without_ctc_is_greedy(
    decoder: Callable[..., TextDecoder], stop_bias: float
) -> None:
    network = make_network(decoder, max_tokens=30)
    network.decoder.output.bias.data[STOP] += stop_bias
    memory, mask = make_memory(clips=4)
    greedy = GreedySearch().decode(network, memory, mask, **SPECIAL)
    beam = BeamSearch(width=1, ctc_weight=0.0).decode(network, memory, mask, **SPECIAL)
    assert texts(beam) == texts(greedy)
    assert len({len(text) for text in texts(beam)}) > 1  # they do not end together


@pytest.mark.parametrize(
    "strategy", [GreedySearch(), BeamSearch(width=3), BeamSearch(3, 1.0), CTCGreedySearch()]
)
@pytest.mark.parametrize("decoder", [TextDecoderTransformer, TextDecoderRecurrent])
def test_a_text_does_not_depend_on_its_batch(
    strategy: DecodingStrategy, decoder: Callable[..., TextDecoder]
) -> None:
    network = make_network(decoder, max_tokens=20)
    memory, mask = make_memory(clips=4)
    together = texts(strategy.decode(network, memory, mask, **SPECIAL))
    for clip in range(4):
        for padding in (0, 5):
            length = int(mask[clip].sum())
            one = F.pad(memory[clip : clip + 1, :length], (0, 0, 0, padding), value=7.0)
            real = torch.arange(length + padding)[None] < length
            assert texts(strategy.decode(network, one, real, **SPECIAL)) == [together[clip]]


def test_a_text_as_long_as_its_clip_is_found() -> None:
    """The stop token takes no position: with two positions a text may have three tokens."""
    for seed in range(30):
        network = make_network(TextDecoderTransformer, seed=seed).requires_grad_(False)
        memory, mask = make_memory(clips=1, positions=2)
        beam = BeamSearch(600, 0.5, length_exponent=1.0, end_margin=float("inf"))
        (found,) = texts(beam.decode(network, memory, mask, **SPECIAL))
        values = {}
        for n in range(3):
            for text in itertools.product(range(3, VOCABULARY), repeat=n):
                tokens = torch.tensor([[START, *text, STOP]])
                attention = network.decoder(tokens[:, :-1], memory, mask).double().log_softmax(-1)
                logs = network.ctc_log_probabilities(memory).double().transpose(0, 1)
                spelled = torch.tensor([text], dtype=torch.long)
                ctc = F.ctc_loss(logs, spelled, torch.tensor([2]), torch.tensor([n]), PAD, "sum")
                score = attention.gather(2, tokens[:, 1:, None]).sum() - ctc
                values[text] = float(score) / (n + 1)
        assert tuple(found[:-1]) == max(values, key=values.__getitem__)


def test_a_strategy_that_does_not_fit_the_network_is_refused() -> None:
    network = make_network(TextDecoderTransformer)
    with pytest.raises(ValueError, match="max_tokens 6 is larger than the decoder's 5"):
        BeamSearch(max_tokens=6).check(network)
    with pytest.raises(ValueError, match="max_tokens 6 is larger than the decoder's 5"):
        GreedySearch(6).check(network)
    network.ctc_head = None
    GreedySearch(5).check(network)
    BeamSearch(ctc_weight=0.0).check(network)
    for strategy in (BeamSearch(), CTCGreedySearch()):
        with pytest.raises(ValueError, match=r"needs network\.init_args\.ctc=true"):
            strategy.check(network)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="width 0 is less than 1"):
        BeamSearch(width=0)
    with pytest.raises(ValueError, match=r"ctc_weight 1\.5 is not in"):
        BeamSearch(ctc_weight=1.5)
    network = make_network(TextDecoderTransformer)
    network.ctc_head = None
    with pytest.raises(ValueError, match="no CTC head"):
        BeamSearch().decode(network, *make_memory(), **SPECIAL)
