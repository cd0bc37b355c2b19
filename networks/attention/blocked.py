"""Softmax attention for a CPU in half precision, some clips at a time."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# weights * (gradient - (weights * gradient).sum(-1)), rounded once; it has no public name.
softmax_backward = torch.ops.aten._softmax_backward_data  # noqa: SLF001

BLOCK = 2**21
"""Weights of a block: with their gradients, they stay in the cores' caches."""
STEP = 32
"""The number of keys of a block is a multiple of this unless it has all: oneDNN takes about a
millisecond to prepare a product of a new shape."""
KEPT = 2**27
"""Maximum number of weights kept for the backward pass, 256 MiB; more are computed again there."""


class Block(NamedTuple):
    """Some clips of a batch.

    Attributes:
        rows: their rows.
        keys: number of keys, at least up to the last one that any query of theirs sees.
        visible: number of keys before the first one that some query of theirs does not see.
    """

    rows: slice
    keys: int
    visible: int


def attend_in_blocks(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend as ``scaled_dot_product_attention`` does, with products of a few clips at a time.

    The weights of a block stay in the caches, and the padding after its longest clip is left out.
    In bfloat16 on an AMD CPU, forward and backward take half the time of PyTorch's fused kernel
    (``benchmarks.layers``). Logits and weights are rounded to the type of the queries.

    Args:
        query: (batch, heads, queries, head size).
        keys: (batch, heads, keys, head size).
        values: of the same shape as the keys.
        mask: broadcast to (batch, heads, queries, keys), the same for all heads, true on the keys
            that a query sees; None if it sees all.

    Returns:
        (batch, heads, queries, head size).
    """
    found: Tensor = _AttendInBlocks.apply(query, keys, values, mask)  # type: ignore[no-untyped-call]
    return found


class _AttendInBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        total = query[..., 0].numel() * keys.shape[-2]
        is_kept = any(ctx.needs_input_grad) and total <= KEPT
        kept = []
        found = torch.empty_like(query)
        ctx.blocks = divide(query, keys, mask)
        for block in ctx.blocks:
            weights = compute_weights(query, keys, mask, block)
            found[block.rows] = weights @ values[block.rows, :, : block.keys]
            if is_kept:
                kept.append(weights)
        ctx.save_for_backward(query, keys, values, mask, *kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, keys, values, mask, *kept = ctx.saved_tensors
        of_query, of_keys, of_values = map(torch.zeros_like, (query, keys, values))
        for i, block in enumerate(ctx.blocks):
            rows, seen = block.rows, slice(block.keys)
            weights = kept[i] if kept else compute_weights(query, keys, mask, block)
            of_values[rows, :, seen] = weights.transpose(-1, -2) @ gradient[rows]
            of_weights = gradient[rows] @ values[rows, :, seen].transpose(-1, -2)
            of_logits = softmax_backward(of_weights, weights, -1, weights.dtype)
            of_logits /= math.sqrt(query.shape[-1])
            of_query[rows] = of_logits @ keys[rows, :, seen]
            of_keys[rows, :, seen] = of_logits.transpose(-1, -2) @ query[rows]
        return of_query, of_keys, of_values, None


def divide(query: Tensor, keys: Tensor, mask: Tensor | None) -> list[Block]:
    """Divide a batch into blocks of at most `BLOCK` weights, or of one clip."""
    batch, heads, queries, _ = query.shape
    length = keys.shape[-2]
    size = max(1, BLOCK // (heads * queries * length))
    slices = [slice(first, first + size) for first in range(0, batch, size)]
    if mask is None:
        return [Block(rows, length, length) for rows in slices]
    mask = mask.expand(batch, -1, -1, -1)
    some, every = mask.any(2)[:, 0], mask.all(2)[:, 0]  # (batch, keys)
    blocks = []
    for rows in slices:
        seen = int(some[rows].any(0).nonzero()[-1]) + 1
        visible = int(every[rows].all(0).cumprod(0).sum())
        blocks.append(Block(rows, min(seen + -seen % STEP, length), visible))
    return blocks


def compute_weights(query: Tensor, keys: Tensor, mask: Tensor | None, block: Block) -> Tensor:
    """Return the attention weights (rows, heads, queries, keys) of a block."""
    rows = block.rows
    scaled = query[rows] / math.sqrt(query.shape[-1])
    logits = scaled @ keys[rows, :, : block.keys].transpose(-1, -2)
    if mask is not None and block.visible < block.keys:
        mask = mask.expand(len(query), -1, -1, -1)[rows, ..., block.visible : block.keys]
        logits[..., block.visible :].masked_fill_(~mask, -math.inf)
    return logits.softmax(-1)
