"""CTC against sums and maxima over all paths."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchaudio.functional import forced_align

from networks.ctc import PrefixScores, align, best_path

BLANK, TOKENS, POSITIONS = 2, 4, 5


@pytest.fixture
def logs() -> Tensor:
    """Two clips, of five and of three positions."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, POSITIONS, TOKENS, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def paths(logs: Tensor, clip: int) -> list[tuple[tuple[int, ...], float]]:
    count = int(MASK[clip].sum())
    return [
        (path, sum(float(logs[clip, t, token]) for t, token in enumerate(path)))
        for path in itertools.product(range(TOKENS), repeat=count)
    ]


def log_sum(values: list[float]) -> float:
    return math.log(sum(map(math.exp, values))) if values else -math.inf


def test_prefix_scores_are_sums_over_all_paths(logs: Tensor) -> None:
    others = [token for token in range(TOKENS) if token != BLANK]
    for text in itertools.product(others, repeat=3):
        scores = PrefixScores(logs, MASK, BLANK, width=2)
        rows = torch.tensor([1, 0, 2, 2])
        for length in range(3):
            extended, ended = scores.extend(), scores.end()
            for row in range(4):
                known = [(collapse(path), p) for path, p in paths(logs, row // 2)]
                prefix = text[:length]
                ends = log_sum([p for found, p in known if found == prefix])
                assert float(ended[row]) == pytest.approx(ends, abs=1e-9) or ends == -math.inf
                for token in others:
                    longer = (*prefix, token)
                    starts = log_sum([p for found, p in known if found[: length + 1] == longer])
                    if starts == -math.inf:
                        assert extended[row, token] < -1e5
                    else:
                        assert float(extended[row, token]) == pytest.approx(starts, abs=1e-9)
            scores.append(rows, torch.full((4,), text[length]))
    scores.select(torch.tensor([1]))
    assert scores.extend().shape == (2, TOKENS)


def test_scores_of_long_clips_are_exact() -> None:
    """A thousand positions: the sums of logarithms are large, their differences small."""
    generator = torch.Generator().manual_seed(0)
    logs = (5 * torch.randn(1, 1000, 30, generator=generator)).log_softmax(-1)
    text = torch.randint(1, 30, (1, 200), generator=generator)
    scores = PrefixScores(logs, torch.ones(1, 1000, dtype=torch.bool), 0, width=1)
    for token in text[0]:
        scores.append(torch.tensor([0]), token[None])
    expected = -torch.nn.functional.ctc_loss(
        logs.double().transpose(0, 1), text, torch.tensor([1000]), torch.tensor([200]),
        reduction="sum",
    )  # fmt: skip
    torch.testing.assert_close(scores.end()[0], expected, rtol=1e-10, atol=0.0)


def test_the_alignment_is_the_best_of_all_paths(logs: Tensor) -> None:
    texts = [(0, 0), (1, 3)]
    found = align(logs, MASK, torch.tensor(texts), torch.tensor([2, 2]), BLANK)
    for clip, text in enumerate(texts):
        best, _ = max(
            ((path, p) for path, p in paths(logs, clip) if collapse(path) == text),
            key=lambda pair: pair[1],
        )
        spoken = [text[i] if i >= 0 else BLANK for i in found[clip].tolist()]
        assert spoken == [*best, *[BLANK] * (POSITIONS - len(best))]


def test_the_alignment_is_torchaudios() -> None:
    generator = torch.Generator().manual_seed(0)
    logs = (2 * torch.randn(6, 40, 10, generator=generator)).log_softmax(-1)
    lengths = torch.tensor([40, 35, 30, 40, 22, 40])
    mask = torch.arange(40) < lengths[:, None]
    counts = torch.tensor([12, 15, 1, 20, 11, 0])
    texts = torch.randint(1, 10, (6, 20), generator=generator)
    texts[1, 3:6] = 7  # repeated
    found = align(logs, mask, texts, counts, blank=0)
    for clip in range(5):
        length, count = int(lengths[clip]), int(counts[clip])
        path, _ = forced_align(logs[clip : clip + 1, :length], texts[clip : clip + 1, :count])
        spoken = [int(texts[clip, i]) if i >= 0 else 0 for i in found[clip].tolist()]
        assert spoken == [*path[0].tolist(), *[0] * (40 - length)]
        assert sorted(set(found[clip].tolist()) - {-1}) == list(range(count))
    assert (found[5] == -1).all()


def test_a_text_with_more_tokens_than_positions_has_no_alignment(logs: Tensor) -> None:
    texts = torch.tensor([[0, 0, 0, 0], [0, 1, 3, 0]])  # 4 tokens and 3 blanks; 4 tokens
    found = align(logs, MASK, texts, torch.tensor([4, 4]), BLANK)
    assert (found == -1).all()


def test_the_best_path_merges_repetitions_and_drops_blanks() -> None:
    path = torch.tensor([[1, 1, 2, 1, 3, 3], [2, 0, 0, 1, 1, 1]])
    logs = torch.nn.functional.one_hot(path, TOKENS).double().log()
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    assert best_path(logs, mask, BLANK) == [[1, 1, 3], [0]]


def test_a_batch_of_empty_texts_is_aligned(logs: Tensor) -> None:
    found = align(logs, MASK, torch.empty(2, 0, dtype=torch.long), torch.tensor([0, 0]), BLANK)
    assert (found == -1).all()
