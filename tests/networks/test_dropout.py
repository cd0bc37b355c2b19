"""Dropout against its definition, and softmax attention's two ways of computing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import SoftmaxAttention
from networks.attention import KeyValues
from networks.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_independently(p: float) -> None:
    """Every element, and every pair of neighbours, which one draw decides together."""
    torch.manual_seed(0)
    x = torch.ones(1000, 999, requires_grad=True)  # no multiple of four elements
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


@pytest.mark.parametrize("p", [0.0, 1e-6, 1.0])
def test_extreme_probabilities(p: float) -> None:
    x = torch.randn(7, 5)
    assert torch.allclose(Dropout(p)(x), nn.Dropout(p)(x) if p == 1 else x)


def test_nothing_is_dropped_outside_training() -> None:
    x = torch.randn(7, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_bfloat16_training_attends_as_the_fused_kernel(has_mask: bool, is_causal: bool) -> None:
    """Output and gradients, against PyTorch's fused kernel in float64."""
    torch.manual_seed(0)
    shape = (3, 2, 50, 8)
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    exact_query, exact_keys, exact_values = exact
    key_mask = torch.arange(50) < torch.tensor([[50], [30], [1]]) if has_mask else None
    query, keys, values = inputs
    found = SoftmaxAttention()(query, KeyValues(keys, values), key_mask, is_causal)
    mask = torch.ones(50, 50, dtype=torch.bool)
    if is_causal:
        mask = mask.tril()
    if key_mask is not None:
        mask = mask & key_mask[:, None, None, :]
    expected = F.scaled_dot_product_attention(exact_query, exact_keys, exact_values, attn_mask=mask)
    error = torch.randn(shape)
    found.backward(error.bfloat16())
    expected.backward(error.double())
    assert torch.allclose(found.double(), expected, atol=0.03)
    for x, reference in zip(inputs, exact, strict=True):
        assert x.grad is not None
        assert reference.grad is not None
        assert torch.allclose(x.grad.double(), reference.grad, atol=0.06)
