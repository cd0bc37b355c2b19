"""Dropout against its definition."""

import pytest
import torch
from torch import nn

from networks.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_independently(p: float) -> None:
    """Every element, and every pair of neighbours, which one draw decides together."""
    torch.manual_seed(0)
    x = torch.ones(999, 1001, requires_grad=True)  # not a multiple of four elements
    y = Dropout(p)(x)
    kept = y != 0
    assert torch.unique(y).allclose(torch.tensor([0, 1 / (1 - p)]), rtol=1e-4)
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=2e-3)
    flat = kept.flatten()
    for distance in (1, 2, 3, 4):
        both = (flat[distance:] & flat[:-distance]).float().mean().item()
        assert both == pytest.approx((1 - p) ** 2, abs=2e-3), distance
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_the_seed_decides_the_mask() -> None:
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("p", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_extreme_probabilities_are_pytorchs(p: float) -> None:
    x = torch.randn(7, 5)
    torch.manual_seed(0)
    expected = nn.Dropout(p)(x)
    torch.manual_seed(0)
    assert torch.equal(Dropout(p)(x), expected)


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(()),
        torch.ones(0, 3),
        torch.ones(7),
        torch.ones(6, 5).T,
        torch.ones(9, dtype=torch.bfloat16),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype}",
)
def test_any_shape_layout_and_type(x: torch.Tensor) -> None:
    y = Dropout(0.5)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert bool(((y == 0) | (y == 2)).all())


def test_nothing_is_dropped_outside_training() -> None:
    x = torch.randn(7, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
