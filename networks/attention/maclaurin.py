"""Attention in linear time: softmax's exponential replaced by its truncated Maclaurin series.

exp(t) ≈ Σ tⁿ/n! over the degrees 0 … K − 1 is a polynomial. A polynomial of a scalar product is a
scalar product of features, Σ (q·k)ⁿ/n! = φ(q)·φ(k), so the sums over keys do not depend on the
query. Derivation, costs, error and use: docs/maclaurin_attention.md.

Shapes: D is the head size, K the number of terms, M = C(D + K − 1, K − 1) the number of features.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BLOCK_ELEMENTS = 2**20
"""Maximum number of features of a block, over batch and heads: 4 MiB, about a core's cache."""


def count_features(size: int, terms: int) -> int:
    """Return M = C(D + K − 1, K − 1), the number of monomials in D variables of degree below K."""
    return math.comb(size + terms - 1, terms - 1)


def truncated_exp(t: Tensor, terms: int) -> Tensor:
    """Return Σ tⁿ/n! over the degrees 0 … terms − 1."""
    if terms == 1:
        return torch.ones_like(t)
    one = torch.ones((), dtype=t.dtype, device=t.device)
    total = torch.add(one, t, alpha=1 / (terms - 1))
    for n in range(terms - 2, 0, -1):  # Horner's rule, one pass per degree
        total = torch.addcmul(one, total, t, value=1 / n)
    return total


def truncation_error(t: Tensor, terms: int) -> Tensor:
    """Return Lagrange's bound on |exp(t) − truncated_exp(t)|: |t|ᴷ/K! · max(1, eᵗ)."""
    return t.abs() ** terms / math.factorial(terms) * t.exp().clamp(min=1)


def maclaurin_features(x: Tensor, terms: int) -> Tensor:
    """Return φ(x), (…, D) → (…, M), with φ(q)·φ(k) = Σ (q·k)ⁿ/n! over the degrees below ``terms``.

    There is one feature per monomial x₁^a₁ ⋯ x_D^a_D of degree a₁ + ⋯ + a_D < terms, scaled by
    1/√(a₁! ⋯ a_D!). By the multinomial theorem, (q·k)ⁿ/n! = Σ q^a k^a / (a₁! ⋯ a_D!). Features are
    ordered by degree, then by the sorted indices of their factors.
    """
    check_terms(terms)
    coefficients = _coefficients(x.shape[-1], terms, x.device).to(x.dtype)
    monomials = _monomials(x.reshape(-1, x.shape[-1]), terms).transpose(-1, -2)
    return (monomials * coefficients.sqrt()).reshape(*x.shape[:-1], len(coefficients))


def maclaurin_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: int = 3,
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute attention with truncated_exp(q·k/√D) instead of exp(q·k/√D), in linear time.

    Computed in at least float32 and block by block: features exist only for one block of positions
    at a time, also in the backward pass. Queries that see no key get zeros.

    Args:
        query: (batch, heads, queries, D).
        key: (batch, heads, keys, D).
        value: (batch, heads, keys, E).
        terms: K, number of terms of the series. With an odd number, every weight is positive.
        causal: whether query i sees keys 0 … i only; requires as many queries as keys.
        key_padding_mask: (batch, keys), true on padding, as in torch.nn.MultiheadAttention.
        chunk: number of positions within which causal attention is computed by its definition;
            by default chosen according to M.

    Returns:
        (batch, heads, queries, E), in the values' dtype.

    Raises:
        ValueError: if ``terms`` is less than 1, or ``causal`` with different numbers of queries and
            keys.
    """
    check_terms(terms)
    if not causal:
        sums = summarize(key, value, terms, key_padding_mask)
        return read(query, sums, terms).to(value.dtype)
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"causal attention needs as many queries as keys, not {query.shape[-2]} and "
            f"{key.shape[-2]}"
        )
    query, key = scale(query), scale(key)
    weighted = _weight(value, key.dtype, key_padding_mask)
    return _attend_causally(query, key, weighted, terms, chunk).to(value.dtype)


def maclaurin_attention_naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: int = 3,
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Compute `maclaurin_attention` by its definition, in quadratic time."""
    check_terms(terms)
    query, key = scale(query), scale(key)
    weighted = _weight(value, key.dtype, key_padding_mask)
    with torch.autocast(query.device.type, enabled=False):
        weights = truncated_exp(query @ key.transpose(-1, -2), terms)
        if causal:
            weights = weights.tril()
        return _normalize(weights @ weighted).to(value.dtype)


@dataclass
class MaclaurinState:
    """Sums over keys and values, Σ m(k)[v, 1]ᵀ, (batch, heads, M, E + 1); None before the first.

    m are the monomials of φ without their coefficients.
    """

    sums: Tensor | None = None

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch a copy of the former row ``rows[i]``."""
        if self.sums is not None:
            self.sums = self.sums.index_select(0, rows)


def maclaurin_step(
    query: Tensor, key: Tensor, value: Tensor, state: MaclaurinState, terms: int = 3
) -> Tensor:
    """Append one position to the state and attend from it, in O(M·E) whatever its index.

    Args:
        query: (batch, heads, 1, D).
        key: (batch, heads, 1, D).
        value: (batch, heads, 1, E).
        state: sums over the previous positions; updated in place.
        terms: K, number of terms of the series.

    Returns:
        (batch, heads, 1, E), the output of causal attention at this position.
    """
    new = summarize(key, value, terms)
    state.sums = new if state.sums is None else state.sums + new
    return read(query, state.sums, terms).to(value.dtype)


def summarize(
    key: Tensor, value: Tensor, terms: int, key_padding_mask: Tensor | None = None
) -> Tensor:
    """Return the sums over keys that queries read, Σ m(k)[v, 1]ᵀ: (batch, heads, M, E + 1).

    m are the monomials of φ without their coefficients. Arguments as in `maclaurin_attention`.
    """
    key = scale(key)
    return _sum_blocks(key, _weight(value, key.dtype, key_padding_mask), terms)


def read(query: Tensor, sums: Tensor, terms: int) -> Tensor:
    """Attend to the keys summed by `summarize`: (batch, heads, queries, E), at least float32."""
    return _read_blocks(scale(query), sums, terms)


def scale(x: Tensor) -> Tensor:
    """Multiply queries or keys by D^−¼, in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25


def check_terms(terms: int) -> None:
    """Raise a ValueError unless there is at least one term."""
    if terms < 1:
        raise ValueError(f"terms {terms} is less than 1")


# --------------------------------------------------------------------------- computation


def _weight(value: Tensor, dtype: torch.dtype, key_padding_mask: Tensor | None) -> Tensor:
    """Return [v, 1], the 1 for the denominator, and zeros at padding."""
    weighted = F.pad(value.to(dtype), (0, 1), value=1.0)
    if key_padding_mask is not None:
        weighted = weighted.masked_fill(key_padding_mask[:, None, :, None], 0.0)
    return weighted


def _normalize(sums: Tensor) -> Tensor:
    """Divide sums of weighted values by sums of weights, (…, E + 1) → (…, E); 0 / 0 is 0."""
    numerator, denominator = sums[..., :-1], sums[..., -1:]
    return numerator / denominator.masked_fill(denominator == 0, 1.0)


def _sum_blocks(key: Tensor, weighted: Tensor, terms: int) -> Tensor:
    """Return Σ m(k)[v, 1]ᵀ over the keys, (…, M, E + 1), with the monomials m."""
    block = _block_length(key, terms)
    saves_memory = key.shape[-2] > block
    state: Tensor | None = None
    for keys, values in zip(key.split(block, -2), weighted.split(block, -2), strict=True):
        new = _run(_sum_block, saves_memory, keys, values, terms)
        state = new if state is None else state + new
    assert state is not None, "no keys"
    return state


def _read_blocks(query: Tensor, state: Tensor, terms: int) -> Tensor:
    """Return the weighted means (…, queries, E) that queries read from a state."""
    block = _block_length(query, terms)
    saves_memory = query.shape[-2] > block
    outputs = [
        _run(_read_block, saves_memory, queries, state, terms) for queries in query.split(block, -2)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _attend_causally(
    query: Tensor, key: Tensor, weighted: Tensor, terms: int, chunk: int | None
) -> Tensor:
    """Return the weighted means (…, length, E).

    Keys in a query's own chunk are attended to by definition, earlier ones through the state.
    """
    # Multiplications per position: chunk·(D + E + 1) within its chunk, 2M(E + 1) for earlier ones.
    chunk = chunk or min(max(2 ** round(math.log2(count_features(key.shape[-1], terms))), 64), 512)
    block = max(_block_length(query, terms) // chunk, 1) * chunk
    saves_memory = query.shape[-2] > block
    outputs = []
    state: Tensor | None = None
    for parts in zip(*(x.split(block, -2) for x in (query, key, weighted)), strict=True):
        output, state = _run(_causal_block, saves_memory, *parts, state, terms, chunk)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _block_length(x: Tensor, terms: int) -> int:
    """Return the number of positions whose features exist at the same time."""
    rows = max(math.prod(x.shape[:-2]), 1)
    return max(BLOCK_ELEMENTS // (rows * count_features(x.shape[-1], terms)), 64)


def _run(function: Callable[..., Any], saves_memory: bool, *args: Any) -> Any:
    """Call a function; to save memory, recompute its features in the backward pass."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if saves_memory and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


def _sum_block(key: Tensor, weighted: Tensor, terms: int) -> Tensor:
    with torch.autocast(key.device.type, enabled=False):
        return _monomials(key, terms) @ weighted


def _read_sums(query: Tensor, state: Tensor, terms: int) -> Tensor:
    # 1/a! scales the product of two monomials; scaling the state takes the fewest multiplications.
    coefficients = _coefficients(query.shape[-1], terms, query.device).to(state.dtype)
    return _monomials(query, terms).transpose(-1, -2) @ (coefficients[:, None] * state)


def _read_block(query: Tensor, state: Tensor, terms: int) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        return _normalize(_read_sums(query, state, terms))


def _causal_block(
    query: Tensor, key: Tensor, weighted: Tensor, state: Tensor | None, terms: int, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """Attend within a block, all chunks at once; also return the state after the block."""
    length = query.shape[-2]
    with torch.autocast(query.device.type, enabled=False):
        if length <= chunk and state is None:  # one chunk, no state needed
            sums = truncated_exp(query @ key.transpose(-1, -2), terms).tril() @ weighted
            return _normalize(sums), None if length < chunk else _sum_block(key, weighted, terms)
        # (…, chunks, chunk, size), with [v, 1] = 0 after the end
        query, key, weighted = (
            F.pad(x, (0, 0, 0, -length % chunk)).unflatten(-2, (-1, chunk))
            for x in (query, key, weighted)
        )
        sums = truncated_exp(query @ key.transpose(-1, -2), terms).tril() @ weighted
        after = _sum_block(key, weighted, terms).cumsum(-3)  # (…, chunks, M, E + 1)
        if state is None:
            state = torch.zeros_like(after[..., 0, :, :])
        before = torch.cat((state.unsqueeze(-3), after[..., :-1, :, :] + state.unsqueeze(-3)), -3)
        sums = sums + _read_sums(query, before, terms)
        return _normalize(sums).flatten(-3, -2)[..., :length, :], after[..., -1, :, :] + state


def _monomials(x: Tensor, terms: int) -> Tensor:
    """Return all monomials of degree below ``terms``, without coefficients: (…, L, D) → (…, M, L).

    With the positions last, each feature is a product of two contiguous rows.
    """
    rows = x.transpose(-1, -2)
    degree = torch.ones_like(rows[..., :1, :])
    degrees = [degree]
    for n in range(1, terms):
        parents, factors = _packing(x.shape[-1], n, x.device)
        degree = (
            rows if n == 1 else degree.index_select(-2, parents) * rows.index_select(-2, factors)
        )
        degrees.append(degree)
    return torch.cat(degrees, dim=-2)


@cache
def _packing(size: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor each monomial of a degree: index of one of the degree below, index of a variable."""
    below = itertools.combinations_with_replacement(range(size), degree - 1)
    positions = {indices: position for position, indices in enumerate(below)}
    monomials = list(itertools.combinations_with_replacement(range(size), degree))
    with torch.inference_mode(False):  # validation caches what training uses
        parents = torch.tensor([positions[indices[:-1]] for indices in monomials], device=device)
        return parents, torch.tensor([indices[-1] for indices in monomials], device=device)


@cache
def _coefficients(size: int, terms: int, device: torch.device) -> Tensor:
    """Return 1/(a₁! ⋯ a_D!) of each monomial, (M,) in float64."""
    values = [
        1 / math.prod(math.factorial(len(list(same))) for _, same in itertools.groupby(indices))
        for degree in range(terms)
        for indices in itertools.combinations_with_replacement(range(size), degree)
    ]
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)
