"""Attention kernels through their interface."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks.attention import (
    AttentionKernel,
    KeyValues,
    MaclaurinAttention,
    SoftmaxAttention,
    blocked,
)
from networks.attention.kernel import attend_padded
from tests.networks.test_maclaurin import inputs, padding


@pytest.mark.parametrize("kernel", [SoftmaxAttention(), MaclaurinAttention(5, max_logit=2.0)])
def test_weights_whole_sequences_and_steps_agree(
    kernel: AttentionKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("networks.attention.kernel.GROWTH", 3)
    q, k, v = (x.detach() for x in inputs(7, 7, 4, 4))
    mask = ~padding(7)
    whole = kernel(q, KeyValues(k, v), mask, causal=False)
    torch.testing.assert_close(kernel.weights(q, k, mask) @ v, whole)
    causal = kernel(q, KeyValues(k, v), None, causal=True)
    state = kernel.start()
    for i in range(7):
        here = slice(i, i + 1)
        step = kernel.step(q[:, :, here], KeyValues(k[:, :, here], v[:, :, here]), state)
        torch.testing.assert_close(step, causal[:, :, here])
    # Causal attention to the real keys at the start equals that of the shorter sequence.
    masked = kernel(q, KeyValues(k, v), mask, causal=True)
    torch.testing.assert_close(masked[:, :, :3], causal[:, :, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": 0}, "terms 0 is less than 1"),
        ({"terms": 2}, "with 2 terms, an even number, weights can be negative"),
        ({"terms": 4, "max_logit": 2.0}, "use an odd number of terms or a smaller max_logit"),
        ({"max_logit": 0.0}, r"max_logit 0\.0 is not above 0"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaclaurinAttention(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_bfloat16_on_a_cpu_attends_as_the_fused_kernel(
    has_mask: bool, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients, against the fused kernel in float64."""
    torch.manual_seed(0)
    shape = (3, 2, 50, 8)
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    exact_query, exact_keys, exact_values = exact
    key_mask = torch.arange(50) < torch.tensor([[50], [30], [1]]) if has_mask else None
    query, keys, values = inputs
    with monkeypatch.context() as patch:
        patch.delattr(F, "scaled_dot_product_attention")
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


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare two outputs and the gradients of the inputs."""
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["none", "padding", "causal", "random"])
@pytest.mark.parametrize("clips", [1, 2, 5])
@pytest.mark.parametrize("is_kept", [False, True])
def test_blocks_attend_as_the_whole_batch(
    is_kept: bool, clips: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients in float64, with blocks of some clips, weights kept or not."""
    torch.manual_seed(0)
    queries, keys = (9, 9) if kind == "causal" else (6, 9)
    monkeypatch.setattr(blocked, "BLOCK", clips * 2 * queries * keys)
    monkeypatch.setattr(blocked, "STEP", 2)
    monkeypatch.setattr(blocked, "KEPT", 5 * 2 * queries * keys - (not is_kept))
    real = torch.arange(keys) < torch.tensor([9, 1, 4, 3, 7])[:, None]
    masks: dict[str, Tensor | None] = {
        "none": None,
        "padding": real[:, None, None],
        "causal": real[:, None, None] & torch.ones(keys, keys, dtype=torch.bool).tril(),
        "random": (torch.rand(5, 1, queries, keys) < 0.5) | (torch.arange(keys) == 2),
    }  # each query sees a key
    mask = masks[kind]
    inputs = [
        torch.randn(5, length, 2, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for length in (queries, keys, keys)
    ]
    q, k, v = inputs
    # Few different numbers of keys: each is a new shape to prepare.
    assert {block.keys for block in blocked.divide(q, k, mask)} <= {2, 4, 6, 8, keys}
    found = blocked.attend_in_blocks(q, k, v, mask)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    assert_same(found, expected, inputs)


def test_single_precision_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    x = torch.randn(1, 1, 50, 4)
    with pytest.raises(AttributeError, match="scaled_dot_product_attention"):
        SoftmaxAttention()(x, KeyValues(x, x), None, causal=False)


@pytest.mark.parametrize("is_causal", [False, True])
def test_padded_heads_attend_as_unpadded_ones(is_causal: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 7, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    mask = None if is_causal else ~padding(7)[:, None, None, :]
    query, keys, values = inputs
    found = attend_padded(query, keys, values, mask, is_causal)
    expected = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal)
    assert_same(found, expected, inputs)
