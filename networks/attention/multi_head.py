"""Multi-head attention with an exchangeable kernel, and the residual block built on it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from networks.attention.absorbed import AbsorbedMemory
from networks.attention.kernel import AttentionKernel, BatchState, KeyValues, SoftmaxAttention
from networks.dropout import Dropout


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Args:
        hidden_size: model width; must be a multiple of ``heads``.
        heads: number of heads.
        key_bias: whether the key projection has a bias. It has no effect on softmax attention: it
            adds the same amount to all logits of a query.
        kernel: attention of each head; softmax by default.
        rotary: whether self-attention rotates queries and keys by their positions (`rotate`).

    Raises:
        ValueError: if ``hidden_size`` is not a multiple of ``heads``, or the head size is odd and
            ``rotary`` is set.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        *,
        key_bias: bool = False,
        kernel: AttentionKernel | None = None,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of heads {heads}")
        if rotary and hidden_size // heads % 2:
            raise ValueError(f"the head size {hidden_size // heads} is odd; it must be even")
        self.rotary = rotary
        self.heads = heads
        self.kernel = kernel or SoftmaxAttention()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=key_bias)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) → (batch, heads, length, head size)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """Project outputs (batch, heads, length, head size) to (batch, length, hidden)."""
        return self.output(x.transpose(1, 2).flatten(-2))

    def project(self, x: Tensor) -> KeyValues:
        """Project a memory (batch, keys, hidden) to keys and values."""
        return KeyValues(self.split_heads(self.key(x)), self.split_heads(self.value(x)))

    def forward(self, x: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Let ``x`` (batch, length, hidden) attend to itself; mask as in `AttentionKernel`."""
        query, key_values = self.split_heads(self.query(x)), self.project(x)
        if self.rotary:
            query, key_values = rotate(query), key_values._replace(keys=rotate(key_values.keys))
        return self.merge_heads(self.kernel(query, key_values, key_mask, causal))

    def summarize(
        self, memory: Tensor, key_mask: Tensor | None = None, *, one_by_one: bool = False
    ) -> BatchState:
        """Prepare a memory (batch, keys, hidden) for any number of queries.

        If queries come ``one_by_one``, a CPU's time to read the memory for each counts most.
        """
        is_softmax = isinstance(self.kernel, SoftmaxAttention)
        if one_by_one and is_softmax and memory.device.type == "cpu":
            return AbsorbedMemory.absorb(self, memory, key_mask)
        # A decoder reads it at each token, faster if the rows of a head are not far apart.
        return self.kernel.summarize(self.project(memory).contiguous(), key_mask)

    def read(self, x: Tensor, summary: Any) -> Tensor:
        """Let ``x`` (batch, queries, hidden) attend to a summarized memory."""
        if isinstance(summary, AbsorbedMemory):
            return summary.read(x)
        return self.merge_heads(self.kernel.read(self.split_heads(self.query(x)), summary))

    def step(self, x: Tensor, state: Any) -> Tensor:
        """Let the next position (batch, 1, hidden) attend to itself and all previous ones.

        ``state`` is created by the kernel's ``start`` and updated in place.
        """
        query = self.split_heads(self.query(x))
        return self.merge_heads(self.kernel.step(query, self.project(x), state))

    def weights(self, x: Tensor, memory: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the attention weights of ``x`` on a memory, (batch, heads, queries, keys)."""
        query = self.split_heads(self.query(x))
        return self.kernel.weights(query, self.project(memory).keys, key_mask)


def rotate(x: Tensor) -> Tensor:
    """Rotate each pair of features by an angle proportional to its position.

    The product of a rotated query and a rotated key depends on their distance only ("rotary
    position embedding", Su et al. 2021, section 3.4). The wavelengths of the pairs are a geometric
    progression from 2π to almost 10,000 · 2π positions (10,000^(1 − 2/D) · 2π for head size D).

    Args:
        x: queries or keys (batch, heads, length, head size).
    """
    length, head_size = x.shape[-2:]
    pairs = torch.arange(0, head_size, 2, device=x.device)
    rates = torch.exp(-math.log(10_000) / head_size * pairs)
    angles = torch.arange(length, device=x.device)[:, None] * rates  # (length, head size / 2)
    sine, cosine = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm residual attention and MLP: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        *,
        dropout: float = 0.0,
        kernel: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, heads, kernel=kernel)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, hidden_size)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Let ``x`` (batch, length, hidden) attend to itself."""
        return self._finish(x, self.attention(self.attention_norm(x), key_mask))

    def read(self, x: Tensor, summary: Any) -> Tensor:
        """Let ``x`` (batch, length, hidden) attend to a summarized memory."""
        return self._finish(x, self.attention.read(self.attention_norm(x), summary))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
