import math

import pytest
import torch
from torch import Tensor, nn

from networks.attention import KeyValues, MultiHeadAttention, SoftmaxAttention


def naive_attention(
    query: Tensor, key_values: KeyValues, mask: Tensor | None, causal: bool
) -> Tensor:
    """Compute attention by its definition, query by query and key by key."""
    keys, values = key_values
    output = torch.zeros_like(query)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        seen = [
            j
            for j in range(keys.shape[2])
            if (mask is None or mask[b, j]) and (not causal or j <= i)
        ]
        logits = [query[b, h, i] @ keys[b, h, j] / math.sqrt(query.shape[-1]) for j in seen]
        exps = [logit.exp() for logit in logits]
        output[b, h, i] = sum(
            e / sum(exps) * values[b, h, j] for e, j in zip(exps, seen, strict=True)
        )
    return output


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_softmax_attention_equals_its_definition_with_gradients(masked: bool, causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]) if masked else None
    ours = SoftmaxAttention()(q, KeyValues(k, v), mask, causal)
    naive = naive_attention(q, KeyValues(k, v), mask, causal)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), direction),
        torch.autograd.grad(naive, (q, k, v), direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_multi_head_attention_equals_pytorchs() -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(12, 3, key_bias=True).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    memory = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    expected, weights = theirs(
        x, memory, memory, key_padding_mask=~mask, average_attn_weights=False
    )
    for one_by_one in (False, True):
        summary = ours.summarize(memory, mask, one_by_one=one_by_one)
        torch.testing.assert_close(ours.read(x, summary), expected)
    torch.testing.assert_close(ours.weights(x, memory, mask), weights)


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of heads 3"):
        MultiHeadAttention(10, 3)
