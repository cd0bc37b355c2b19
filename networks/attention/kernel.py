"""What an attention kernel is, and the usual one."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyValues(NamedTuple):
    """Keys and values split into heads, each (batch, heads, length, head size)."""

    keys: Tensor
    values: Tensor


class AttentionKernel(ABC):
    """How queries, keys and values become one output a query.

    Queries are (batch, heads, queries, head size), and so are outputs. A ``key_mask`` is
    (batch, keys), true on real positions; None if all are real.
    """

    def __call__(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Attend to all keys, or with ``causal`` by query i to keys 0 … i only."""
        if causal:
            return self.attend_causally(query, key_values, key_mask)
        return self.read(query, self.summarize(key_values, key_mask))

    @abstractmethod
    def summarize(self, key_values: KeyValues, key_mask: Tensor | None) -> Any:
        """Return what any number of queries can read: the memory, prepared once."""

    @abstractmethod
    def read(self, query: Tensor, summary: Any) -> Tensor:
        """Attend to everything that was summarized."""

    @abstractmethod
    def attend_causally(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None
    ) -> Tensor:
        """Attend by query i to keys 0 … i."""

    @abstractmethod
    def start(self, max_length: int) -> Any:
        """Return the state of causal attention that has seen no position yet."""

    @abstractmethod
    def step(self, query: Tensor, key_values: KeyValues, state: Any) -> Tensor:
        """Append one position to the state, in place, and attend from it to all so far."""

    @abstractmethod
    def weights(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return the weights (batch, heads, queries, keys), of sum 1, to look at."""


@dataclass
class _Positions:
    """Keys and values of the positions so far, in buffers for all that may follow."""

    max_length: int
    buffers: KeyValues | None = None
    length: int = 0

    def extend(self, new: KeyValues) -> KeyValues:
        """Append one position and return all up to it."""
        if self.buffers is None:
            batch, heads, _, head_size = new.keys.shape
            shape = (batch, heads, self.max_length, head_size)
            self.buffers = KeyValues(new.keys.new_empty(shape), new.values.new_empty(shape))
        for buffer, value in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : self.length + 1] = value
        self.length += 1
        return KeyValues(*(buffer[:, :, : self.length] for buffer in self.buffers))


class SoftmaxAttention(AttentionKernel):
    """Softmax(QKᵀ/√D)V (Vaswani et al. 2017) by PyTorch's fused kernels."""

    def summarize(
        self, key_values: KeyValues, key_mask: Tensor | None
    ) -> tuple[KeyValues, Tensor | None]:
        return key_values, key_mask

    def read(self, query: Tensor, summary: tuple[KeyValues, Tensor | None]) -> Tensor:
        (keys, values), key_mask = summary
        mask = None if key_mask is None else key_mask[:, None, None, :]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def attend_causally(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None
    ) -> Tensor:
        keys, values = key_values
        if key_mask is None:
            return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
        shape = (query.shape[-2], keys.shape[-2])
        seen = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        mask = key_mask[:, None, None, :] & seen  # (batch, 1, queries, keys)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def start(self, max_length: int) -> _Positions:
        return _Positions(max_length)

    def step(self, query: Tensor, key_values: KeyValues, state: _Positions) -> Tensor:
        return F.scaled_dot_product_attention(query, *state.extend(key_values))

    def weights(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        logits = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None, :], -math.inf)
        return logits.softmax(-1)
