"""The interface of attention kernels, and softmax attention."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.attention.blocked import attend_in_blocks

GROWTH = 32
"""Positions by which the state of causal attention grows."""


class KeyValues(NamedTuple):
    """Keys and values split into heads, each (batch, heads, length, head size)."""

    keys: Tensor
    values: Tensor

    def contiguous(self) -> "KeyValues":
        """Return both in contiguous memory."""
        return KeyValues(self.keys.contiguous(), self.values.contiguous())

    def select(self, rows: Tensor) -> "KeyValues":
        """Return the given rows (selected,) of the batch."""
        return KeyValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))


class BatchState(Protocol):
    """State of a batch of sequences."""

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch a copy of the former row ``rows[i]``, in place.

        Args:
            rows: (selected,) indices, in any order and number; one may occur several times.
        """


def select_rows(clips: Tensor, width: int) -> Tensor:
    """Return the rows (clips · width,) of the given clips (clips,), ``width`` per clip."""
    return (clips[:, None] * width + torch.arange(width, device=clips.device)).flatten()


class AttentionKernel(ABC):
    """How queries attend to keys and values.

    Queries and outputs are (batch, heads, queries, head size). A ``key_mask`` is (batch, keys),
    true on real positions; None if all positions are real. Each query must see at least one key.
    """

    def __call__(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Attend to all keys; with ``causal``, query i attends to keys 0 … i only."""
        if causal:
            return self.attend_causally(query, key_values, key_mask)
        return self.read(query, self.summarize(key_values, key_mask))

    @abstractmethod
    def summarize(self, key_values: KeyValues, key_mask: Tensor | None) -> BatchState:
        """Prepare a memory once for any number of queries."""

    @abstractmethod
    def read(self, query: Tensor, summary: Any) -> Tensor:
        """Attend to the whole memory that ``summary``, from `summarize`, was made of."""

    @abstractmethod
    def attend_causally(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None
    ) -> Tensor:
        """Let query i attend to keys 0 … i."""

    @abstractmethod
    def start(self) -> BatchState:
        """Return the state of causal attention before the first position."""

    @abstractmethod
    def step(self, query: Tensor, key_values: KeyValues, state: Any) -> Tensor:
        """Append one position to ``state``, in place, and attend from it to all so far."""

    @abstractmethod
    def weights(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return the attention weights (batch, heads, queries, keys), for inspection."""


@dataclass
class _Memory:
    """Keys and values to attend to, and their mask."""

    key_values: KeyValues
    key_mask: Tensor | None

    def reorder(self, rows: Tensor) -> None:
        self.key_values = self.key_values.select(rows)
        if self.key_mask is not None:
            self.key_mask = self.key_mask.index_select(0, rows)


@dataclass
class _Positions:
    """Keys and values of the positions so far, in buffers that grow."""

    buffers: KeyValues | None = None
    length: int = 0

    def extend(self, new: KeyValues) -> KeyValues:
        """Append one position and return all positions so far."""
        if self.buffers is None:
            self.buffers = KeyValues(*(value[:, :, :0] for value in new))
        if self.length == self.buffers.keys.shape[2]:
            self.buffers = KeyValues(*(F.pad(x, (0, 0, 0, GROWTH)) for x in self.buffers))
        for buffer, value in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : self.length + 1] = value
        self.length += 1
        return KeyValues(*(buffer[:, :, : self.length] for buffer in self.buffers))

    def reorder(self, rows: Tensor) -> None:
        if self.buffers is not None:  # whole rows: a part of each would be copied twice
            self.buffers = self.buffers.select(rows)


class SoftmaxAttention(AttentionKernel):
    """Softmax attention, Softmax(QKᵀ/√D)V (Vaswani et al. 2017).

    It is computed by PyTorch's fused kernels, except where those are slow: on a CPU in bfloat16
    (`attend_in_blocks`).
    """

    def summarize(self, key_values: KeyValues, key_mask: Tensor | None) -> _Memory:
        return _Memory(key_values, key_mask)

    def read(self, query: Tensor, summary: _Memory) -> Tensor:
        mask = None if summary.key_mask is None else summary.key_mask[:, None, None, :]
        return _attend(query, *summary.key_values, mask)

    def attend_causally(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None
    ) -> Tensor:
        keys, values = key_values
        if key_mask is None:
            return _attend(query, keys, values, None, is_causal=True)
        return _attend(query, keys, values, key_mask[:, None, None, :] & _seen(query, keys))

    def start(self) -> _Positions:
        return _Positions()

    def step(self, query: Tensor, key_values: KeyValues, state: _Positions) -> Tensor:
        return F.scaled_dot_product_attention(query, *state.extend(key_values))

    def weights(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        logits = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None, :], -math.inf)
        return logits.softmax(-1)


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool = False
) -> Tensor:
    """Attend where ``mask``, broadcast to (batch, heads, queries, keys), is true."""
    size = query.shape[-1]
    if query.device.type == "cuda" and query.dtype.itemsize == 2 and size % 8:
        return attend_padded(query, keys, values, mask, is_causal)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if is_causal:
            mask = _seen(query, keys)[None, None]
        return attend_in_blocks(query, keys, values, mask)
    return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal)


def attend_padded(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """Attend with heads padded to a multiple of 8 features.

    For other head sizes in half precision, PyTorch on a GPU computes all weights, in float32.
    """
    size = query.shape[-1]
    query, keys, values = (F.pad(x, (0, -size % 8)) for x in (query, keys, values))
    scale = 1 / math.sqrt(size)
    found = F.scaled_dot_product_attention(
        query, keys, values, mask, is_causal=is_causal, scale=scale
    )
    return found[..., :size]


def _seen(query: Tensor, keys: Tensor) -> Tensor:
    """Return the keys (queries, keys) that causal attention sees."""
    shape = (query.shape[-2], keys.shape[-2])
    return torch.ones(shape, dtype=torch.bool, device=query.device).tril()
