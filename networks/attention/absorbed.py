"""Softmax attention that reads a memory itself instead of its keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from networks.attention.multi_head import MultiHeadAttention


@dataclass
class AbsorbedMemory:
    """A memory whose key and value projections are absorbed by the query and output projections.

    With a query q, a position m and the matrices of one head, the logit qᵀ(Kᵀm) is (Kq)ᵀm, but for
    the bias of the key, which adds the same to all logits of a query; and the output O(Vm̄) is
    (OV)m̄, where m̄ is the mean of the positions, weighted by the softmax (DeepSeek-AI 2024,
    "DeepSeek-V2", section 2.1.2). The memory is read in place of keys and values of twice its size,
    but each query has as many features in each head as the memory.

    Attributes:
        memory: (batch, positions, hidden).
        bias: what is added to logits, (batch, 1, 1, positions): -∞ on padding; None without any.
        query: bias and weight (hidden, heads · hidden) of the projection of queries.
        output: bias and weight (heads · hidden, hidden) of the projection of outputs.
        scale: factor of the logits.
    """

    memory: Tensor
    bias: Tensor | None
    query: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    scale: float

    @classmethod
    def absorb(
        cls, attention: MultiHeadAttention, memory: Tensor, mask: Tensor | None
    ) -> AbsorbedMemory:
        """Prepare a memory for softmax attention with the given projections."""
        query, key, value, output = (
            attention.query, attention.key, attention.value, attention.output
        )  # fmt: skip

        def split(x: Tensor) -> Tensor:
            return x.unflatten(0, (attention.heads, -1))  # rows of the heads

        keys = split(key.weight)  # (heads, head size, hidden)
        queries = split(query.weight).mT @ keys
        query_bias = split(query.bias)[:, None] @ keys
        outputs = split(value.weight).mT @ split(output.weight.mT)
        bias = None
        if mask is not None:
            bias = memory.new_zeros(mask.shape).masked_fill(~mask, -math.inf)[:, None, None]
        return cls(
            memory,
            bias,
            (query_bias.flatten(), queries.transpose(0, 1).flatten(1)),
            (output(value.bias), outputs.flatten(0, 1)),
            1 / math.sqrt(keys.shape[1]),
        )

    def read(self, x: Tensor) -> Tensor:
        """Let ``x`` (batch, queries, hidden) attend to the memory."""
        memory = self.memory[:, None]
        query = project(x, *self.query).view(len(x), 1, -1, memory.shape[-1])
        mean = F.scaled_dot_product_attention(query, memory, memory, self.bias, scale=self.scale)
        return project(mean.view(*x.shape[:2], -1), *self.output)

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch a copy of the former row ``rows[i]``, in place."""
        self.memory = self.memory.index_select(0, rows)
        if self.bias is not None:
            self.bias = self.bias.index_select(0, rows)


def project(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """Return x · weight + bias."""
    return torch.addmm(bias, x.flatten(0, 1), weight).unflatten(0, x.shape[:2])
