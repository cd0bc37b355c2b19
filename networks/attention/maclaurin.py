"""Attention that is linear in length: softmax's exponential by its truncated Maclaurin series.

exp(t) ≈ Σ tⁿ/n! over the degrees 0 … K − 1 is a polynomial, and a polynomial of a scalar product is
a scalar product of features: Σ (q·k)ⁿ/n! = φ(q)·φ(k). So the sums over keys can be taken before a
query is known. Derivation, costs, error and what it is good for: docs/maclaurin_attention.md.

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
"""Numbers in the features of one block, over batch and heads: 4 MiB, about a core's cache."""


def count_features(size: int, terms: int) -> int:
    """Return M = C(D + K − 1, K − 1), the monomials in D variables of degree K − 1 at most."""
    return math.comb(size + terms - 1, terms - 1)


def truncated_exp(t: Tensor, terms: int) -> Tensor:
    """Return Σ tⁿ/n! over the degrees 0 … terms − 1."""
    if terms == 1:
        return torch.ones_like(t)
    one = torch.ones((), dtype=t.dtype, device=t.device)
    total = torch.add(one, t, alpha=1 / (terms - 1))
    for n in range(terms - 2, 0, -1):  # Horner's rule, one pass for each degree
        total = torch.addcmul(one, total, t, value=1 / n)
    return total


def truncation_error(t: Tensor, terms: int) -> Tensor:
    """Return Lagrange's bound on |exp(t) − truncated_exp(t)|: |t|ᴷ/K! · max(1, eᵗ)."""
    return t.abs() ** terms / math.factorial(terms) * t.exp().clamp(min=1)


def maclaurin_features(x: Tensor, terms: int) -> Tensor:
    """Return φ(x), (…, D) → (…, M), with φ(q)·φ(k) = Σ (q·k)ⁿ/n! over the degrees below ``terms``.

    One feature for each monomial x₁^a₁ ⋯ x_D^a_D of degree a₁ + ⋯ + a_D < terms, times
    1/√(a₁! ⋯ a_D!), by the multinomial theorem: (q·k)ⁿ/n! = Σ q^a k^a / (a₁! ⋯ a_D!). The order
    is by degree, then by the sorted indices of the factors.
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
    """Attention with truncated_exp(q·k/√D) for softmax's exp(q·k/√D), linear in length.

    Computed in float32 at least, block by block: features exist for one block of positions at a
    time, in the backward pass too. Queries that see no key get zeros.

    Args:
        query: (batch, heads, queries, D).
        key: (batch, heads, keys, D).
        value: (batch, heads, keys, E).
        terms: K, terms of the series. An odd number makes every weight positive.
        causal: whether query i sees keys 0 … i only; there are then as many queries as keys.
        key_padding_mask: (batch, keys), true on padding, as torch.nn.MultiheadAttention's.
        chunk: positions within which causal attention is computed by its definition; by default a
            number that suits M.

    Returns:
        (batch, heads, queries, E), of the values' type.

    Raises:
        ValueError: if ``terms`` is less than 1, or lengths do not fit ``causal``.
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
    weighed = _weigh(value, key.dtype, key_padding_mask)
    return _attend_causally(query, key, weighed, terms, chunk).to(value.dtype)


def maclaurin_attention_naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: int = 3,
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """`maclaurin_attention` by its definition, quadratic in length."""
    check_terms(terms)
    query, key = scale(query), scale(key)
    weighed = _weigh(value, key.dtype, key_padding_mask)
    with torch.autocast(query.device.type, enabled=False):
        weights = truncated_exp(query @ key.transpose(-1, -2), terms)
        if causal:
            weights = weights.tril()
        return _normalize(weights @ weighed).to(value.dtype)


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
    """Append one position to the state and attend from it; O(M·E), however long the past.

    Args:
        query: (batch, heads, 1, D); key the same, value (batch, heads, 1, E).
        key: of the position.
        value: of the position.
        state: moves on.
        terms: as in `maclaurin_attention`.

    Returns:
        (batch, heads, 1, E): what causal attention gives for this position.
    """
    new = summarize(key, value, terms)
    state.sums = new if state.sums is None else state.sums + new
    return read(query, state.sums, terms).to(value.dtype)


def summarize(
    key: Tensor, value: Tensor, terms: int, key_padding_mask: Tensor | None = None
) -> Tensor:
    """Return what any number of queries can read: Σ m(k)[v, 1]ᵀ, (batch, heads, M, E + 1).

    m are the monomials of φ without their coefficients; arguments as in `maclaurin_attention`.
    """
    key = scale(key)
    return _sum_blocks(key, _weigh(value, key.dtype, key_padding_mask), terms)


def read(query: Tensor, sums: Tensor, terms: int) -> Tensor:
    """Attend to what `summarize` has seen, (batch, heads, queries, E), in float32 at least."""
    return _read_blocks(scale(query), sums, terms)


def scale(x: Tensor) -> Tensor:
    """Multiply by D^−¼, queries and keys alike, in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25


def check_terms(terms: int) -> None:
    """Raise a ValueError unless there is a term."""
    if terms < 1:
        raise ValueError(f"terms {terms} is less than 1")


# --------------------------------------------------------------------------- the computation


def _weigh(value: Tensor, dtype: torch.dtype, key_padding_mask: Tensor | None) -> Tensor:
    """Return [v, 1], the 1 for the denominator; zeros for padding."""
    weighed = F.pad(value.to(dtype), (0, 1), value=1.0)
    if key_padding_mask is not None:
        weighed = weighed.masked_fill(key_padding_mask[:, None, :, None], 0.0)
    return weighed


def _normalize(sums: Tensor) -> Tensor:
    """(…, E + 1) sums of weighed values and of weights → (…, E) means; zeros where both are 0."""
    numerator, denominator = sums[..., :-1], sums[..., -1:]
    return numerator / denominator.masked_fill(denominator == 0, 1.0)


def _sum_blocks(key: Tensor, weighed: Tensor, terms: int) -> Tensor:
    """Return Σ m(k)[v, 1]ᵀ over the keys, (…, M, E + 1), for monomials m."""
    block = _block_length(key, terms)
    saves_memory = key.shape[-2] > block
    state: Tensor | None = None
    for keys, values in zip(key.split(block, -2), weighed.split(block, -2), strict=True):
        new = _run(_sum_block, saves_memory, keys, values, terms)
        state = new if state is None else state + new
    assert state is not None, "no keys"
    return state


def _read_blocks(query: Tensor, state: Tensor, terms: int) -> Tensor:
    """Return the means (…, queries, E) that queries read from a state."""
    block = _block_length(query, terms)
    saves_memory = query.shape[-2] > block
    outputs = [
        _run(_read_block, saves_memory, queries, state, terms) for queries in query.split(block, -2)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _attend_causally(
    query: Tensor, key: Tensor, weighed: Tensor, terms: int, chunk: int | None
) -> Tensor:
    """Return the means (…, length, E): within a chunk by definition, before it by the state."""
    # A position costs chunk·(D + E + 1) within its chunk and 2M(E + 1) for what is before it.
    chunk = chunk or min(max(2 ** round(math.log2(count_features(key.shape[-1], terms))), 64), 512)
    block = max(_block_length(query, terms) // chunk, 1) * chunk
    saves_memory = query.shape[-2] > block
    outputs = []
    state: Tensor | None = None
    for parts in zip(*(x.split(block, -2) for x in (query, key, weighed)), strict=True):
        output, state = _run(_causal_block, saves_memory, *parts, state, terms, chunk)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _block_length(x: Tensor, terms: int) -> int:
    """Return how many positions' features are there at once, over all batches and heads."""
    rows = max(math.prod(x.shape[:-2]), 1)
    return max(BLOCK_ELEMENTS // (rows * count_features(x.shape[-1], terms)), 64)


def _run(function: Callable[..., Any], saves_memory: bool, *args: Any) -> Any:
    """Call; if one of several blocks, compute its features anew in the backward pass."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if saves_memory and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


def _sum_block(key: Tensor, weighed: Tensor, terms: int) -> Tensor:
    with torch.autocast(key.device.type, enabled=False):
        return _monomials(key, terms) @ weighed


def _read_sums(query: Tensor, state: Tensor, terms: int) -> Tensor:
    # 1/a! belongs to the product of two monomials; on the state it is the fewest multiplications.
    coefficients = _coefficients(query.shape[-1], terms, query.device).to(state.dtype)
    return _monomials(query, terms).transpose(-1, -2) @ (coefficients[:, None] * state)


def _read_block(query: Tensor, state: Tensor, terms: int) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        return _normalize(_read_sums(query, state, terms))


def _causal_block(
    query: Tensor, key: Tensor, weighed: Tensor, state: Tensor | None, terms: int, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """Attend within a block, all its chunks together; return also the state behind it."""
    length = query.shape[-2]
    with torch.autocast(query.device.type, enabled=False):
        if length <= chunk and state is None:  # a short sequence is all there is
            sums = truncated_exp(query @ key.transpose(-1, -2), terms).tril() @ weighed
            return _normalize(sums), None if length < chunk else _sum_block(key, weighed, terms)
        # (…, chunks, chunk, size); [v, 1] = 0 behind the end.
        query, key, weighed = (
            F.pad(x, (0, 0, 0, -length % chunk)).unflatten(-2, (-1, chunk))
            for x in (query, key, weighed)
        )
        sums = truncated_exp(query @ key.transpose(-1, -2), terms).tril() @ weighed
        behind = _sum_block(key, weighed, terms).cumsum(-3)  # (…, chunks, M, E + 1)
        if state is None:
            state = torch.zeros_like(behind[..., 0, :, :])
        before = torch.cat((state.unsqueeze(-3), behind[..., :-1, :, :] + state.unsqueeze(-3)), -3)
        sums = sums + _read_sums(query, before, terms)
        return _normalize(sums).flatten(-3, -2)[..., :length, :], behind[..., -1, :, :] + state


def _monomials(x: Tensor, terms: int) -> Tensor:
    """(…, L, D) → (…, M, L): every monomial of degree below ``terms``, without coefficients.

    Positions last: each feature is then a product of two contiguous rows.
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
    """Return each monomial of a degree as one of the degree below (its place) times a variable."""
    below = itertools.combinations_with_replacement(range(size), degree - 1)
    places = {indices: place for place, indices in enumerate(below)}
    monomials = list(itertools.combinations_with_replacement(range(size), degree))
    with torch.inference_mode(False):  # training uses what a validation may have cached
        parents = torch.tensor([places[indices[:-1]] for indices in monomials], device=device)
        return parents, torch.tensor([indices[-1] for indices in monomials], device=device)


@cache
def _coefficients(size: int, terms: int, device: torch.device) -> Tensor:
    """Return 1/(a₁! ⋯ a_D!) for each monomial, in float64, (M,)."""
    values = [
        1 / math.prod(math.factorial(len(list(same))) for _, same in itertools.groupby(indices))
        for degree in range(terms)
        for indices in itertools.combinations_with_replacement(range(size), degree)
    ]
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)
