"""CTC against sums and maxima over all paths."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks.ctc import PrefixScores, align, best_path

BLANK, TOKENS, POSITIONS = 2, 4, 5
STOP = TOKENS  # the head never emits it


@pytest.fixture
def logs() -> Tensor:
    """Two clips, of five and of three positions."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, POSITIONS, TOKENS, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


OTHERS = [token for token in range(TOKENS) if token != BLANK]
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
    padded = F.pad(logs, (0, 1), value=-math.inf)
    for text in itertools.product(OTHERS, repeat=3):
        scores = PrefixScores(padded, MASK, blank=BLANK, width=2, stop=STOP)
        rows = torch.tensor([1, 0, 2, 2])
        for length in range(3):
            extended = scores.extend()
            for row in range(4):
                known = [(collapse(path), p) for path, p in paths(logs, row // 2)]
                prefix = text[:length]
                expected = {STOP: log_sum([p for found, p in known if found == prefix])}
                for token in OTHERS:
                    longer = (*prefix, token)
                    starts = [p for found, p in known if found[: length + 1] == longer]
                    expected[token] = log_sum(starts)
                for token, value in expected.items():
                    if value == -math.inf:
                        assert extended[row, token] < -1e5
                    else:
                        assert float(extended[row, token]) == pytest.approx(value, abs=1e-9)
            scores.append(rows, torch.full((4,), text[length]))
    scores.select(torch.tensor([1]))
    assert scores.extend().shape == (2, TOKENS + 1)


def test_scores_of_long_clips_are_exact() -> None:
    """A thousand positions: the sums of logarithms are large, their differences small."""
    generator = torch.Generator().manual_seed(0)
    logs = (5 * torch.randn(1, 1000, 30, generator=generator)).log_softmax(-1)
    text = torch.randint(1, 29, (1, 200), generator=generator)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    scores = PrefixScores(logs, mask, blank=0, width=1, stop=29)
    for token in text[0]:
        scores.append(torch.tensor([0]), token[None])
    expected = -F.ctc_loss(
        logs.double().transpose(0, 1), text, torch.tensor([1000]), torch.tensor([200]),
        reduction="sum",
    )  # fmt: skip
    torch.testing.assert_close(scores.extend()[0, 29], expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_alignment_is_the_best_of_all_paths(
    count: int, dtype: torch.dtype, logs: Tensor
) -> None:
    """All texts of up to four tokens, also those with too many for the clip."""
    texts = torch.tensor([*itertools.product(OTHERS, repeat=count)], dtype=torch.long)
    padded = F.pad(texts, (0, 1), value=BLANK)
    known = [paths(logs, clip) for clip in range(2)]
    for text, row in zip(texts.tolist(), padded, strict=True):
        lengths = torch.tensor([count, count])
        found = align(logs.to(dtype), MASK, row.expand(2, -1), lengths, BLANK)
        for clip in range(2):
            spelled = [(p, path) for path, p in known[clip] if list(collapse(path)) == text]
            _, best = max(spelled, default=(0.0, (BLANK,) * int(MASK[clip].sum())))
            spoken = [text[i] if i >= 0 else BLANK for i in found[clip].tolist()]
            assert spoken == [*best, *[BLANK] * (POSITIONS - len(best))]
            heard = sorted(set(found[clip].tolist()) - {-1})
            assert heard == (list(range(count)) if spelled else [])


def test_what_is_no_number_has_no_alignment(logs: Tensor) -> None:
    logs[1, 2] = math.nan
    found = align(logs, MASK, torch.tensor([[0, 1], [0, 1]]), torch.tensor([2, 2]), BLANK)
    assert (found[0] >= 0).any()
    assert (found[1] == -1).all()


def test_the_best_path_merges_repetitions_and_drops_blanks() -> None:
    path = torch.tensor([[1, 1, 2, 1, 3, 3], [2, 0, 0, 1, 1, 1]])
    logs = F.one_hot(path, TOKENS).double().log()
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    assert best_path(logs, mask, BLANK) == [[1, 1, 3], [0]]
