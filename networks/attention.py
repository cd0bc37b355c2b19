"""Multi-head attention with an exchangeable kernel, and the residual block built on it."""

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """Keys and values split into heads, each (batch, heads, length, head size)."""

    keys: Tensor
    values: Tensor


class AttentionKernel(Protocol):
    """How queries, keys and values become one output a query."""

    def __call__(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, heads, queries, head size).
            key_values: what to attend to, over ``keys`` positions.
            key_mask: (batch, keys), true on real positions; None if all are real.
            causal: whether query i sees keys 0 … i only.

        Returns:
            (batch, heads, queries, head size).
        """


def softmax_attention(
    query: Tensor, key_values: KeyValues, key_mask: Tensor | None, causal: bool
) -> Tensor:
    """Softmax(QKᵀ/√D)V by PyTorch's fused kernels; an `AttentionKernel`."""
    keys, values = key_values
    if key_mask is None:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=causal)
    mask = key_mask[:, None, None, :]  # (batch, 1, 1, keys)
    if causal:
        mask = (
            mask
            & torch.ones(
                query.shape[-2], keys.shape[-2], dtype=torch.bool, device=query.device
            ).tril()
        )  # (batch, 1, queries, keys)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Args:
        hidden_size: channels of queries, keys and values; a multiple of ``heads``.
        heads: number of heads.
        key_bias: whether the key projection has a bias. Softmax attention cannot use one: it adds
            the same amount to every logit of a query.
        kernel: how the heads attend.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        *,
        key_bias: bool = False,
        kernel: AttentionKernel = softmax_attention,
    ) -> None:
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of heads {heads}")
        self.heads = heads
        self.kernel = kernel
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=key_bias)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) → (batch, heads, length, head size)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, memory: Tensor) -> KeyValues:
        """Project what will be attended to, (batch, keys, hidden), for any number of queries."""
        return KeyValues(self.split_heads(self.key(memory)), self.split_heads(self.value(memory)))

    def forward(
        self,
        x: Tensor,
        key_values: KeyValues | None = None,
        key_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Let ``x`` (batch, queries, hidden) attend to ``key_values``, or to itself if None.

        ``key_mask`` and ``causal`` are the kernel's (`AttentionKernel`). Returns ``x``'s shape.
        """
        query = self.split_heads(self.query(x))
        attended = self.kernel(query, key_values or self.project(x), key_mask, causal)
        return self.output(attended.transpose(1, 2).flatten(-2))  # (batch, queries, hidden)

    def weights(self, x: Tensor, key_values: KeyValues, key_mask: Tensor | None = None) -> Tensor:
        """Return the softmax weights, (batch, heads, queries, keys), to look at."""
        query = self.split_heads(self.query(x))
        logits = query @ key_values.keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None, :], -math.inf)
        return logits.softmax(-1)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm residual attention and MLP: x + attention(norm(x)), then x + MLP(norm(x)).

    Self-attention without ``key_values``, cross-attention with them.
    """

    def __init__(
        self, hidden_size: int, heads: int, mlp_size: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, heads)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, key_values: KeyValues | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """(batch, length, hidden) → the same; ``key_values`` and ``key_mask`` as in attention."""
        attended = self.attention(self.attention_norm(x), key_values, key_mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
