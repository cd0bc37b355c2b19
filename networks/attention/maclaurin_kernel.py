"""Maclaurin attention as a kernel of `MultiHeadAttention`."""

import math

import torch
from torch import Tensor

from networks.attention.kernel import AttentionKernel, KeyValues
from networks.attention.maclaurin import (
    MaclaurinState,
    check_terms,
    maclaurin_attention,
    maclaurin_step,
    read,
    scale,
    summarize,
    truncated_exp,
)


class MaclaurinAttention(AttentionKernel):
    """Attention by the truncated Maclaurin series; see `maclaurin_attention`.

    Args:
        terms: K, number of terms of the series.
        max_logit: bound b on |q·k/√D|. Queries and keys whose norm exceeds √b, after the scaling by
            D^−¼, are scaled down to it. Every weight exp(q·k/√D) is then approximated within the
            factor 1 ± bᴷ/K! · eᵇ (docs/maclaurin_attention.md, section 6). Without a bound, the
            polynomial does not approximate softmax where logits are large.

    Raises:
        ValueError: if ``terms`` is less than 1, ``max_logit`` is not positive, or weights could be
            negative: the number of terms is even and ``max_logit`` is not small enough.
    """

    def __init__(self, terms: int = 3, max_logit: float | None = None) -> None:
        check_terms(terms)
        if max_logit is not None and max_logit <= 0:
            raise ValueError(f"max_logit {max_logit} is not above 0")
        if terms % 2 == 0:
            worst = -math.inf if max_logit is None else -max_logit
            if worst == -math.inf or truncated_exp(torch.tensor(worst), terms) <= 0:
                raise ValueError(
                    f"with {terms} terms, an even number, weights can be negative at max_logit "
                    f"{max_logit}: use an odd number of terms or a smaller max_logit"
                )
        self.terms = terms
        self.max_logit = max_logit

    def summarize(self, key_values: KeyValues, key_mask: Tensor | None) -> MaclaurinState:
        keys, values = key_values
        padding = None if key_mask is None else ~key_mask
        return MaclaurinState(summarize(self._bound(keys), values, self.terms, padding))

    def read(self, query: Tensor, summary: MaclaurinState) -> Tensor:
        assert summary.sums is not None, "nothing was summarized"
        return read(self._bound(query), summary.sums, self.terms).to(query.dtype)

    def attend_causally(
        self, query: Tensor, key_values: KeyValues, key_mask: Tensor | None
    ) -> Tensor:
        keys, values = key_values
        return maclaurin_attention(
            self._bound(query),
            self._bound(keys),
            values,
            self.terms,
            causal=True,
            key_padding_mask=None if key_mask is None else ~key_mask,
        )

    def start(self) -> MaclaurinState:
        return MaclaurinState()

    def step(self, query: Tensor, key_values: KeyValues, state: MaclaurinState) -> Tensor:
        keys, values = key_values
        return maclaurin_step(self._bound(query), self._bound(keys), values, state, self.terms)

    def weights(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        query, keys = scale(self._bound(query)), scale(self._bound(keys))
        weights = truncated_exp(query @ keys.transpose(-1, -2), self.terms)
        if key_mask is not None:
            weights = weights * key_mask[:, None, None, :]
        return weights / weights.sum(-1, keepdim=True)

    def _bound(self, x: Tensor) -> Tensor:
        """Scale long vectors down: after the scaling by D^−¼ their norm is at most √max_logit."""
        if self.max_logit is None:
            return x
        # Rounded to x's type, they still are: with an even number of terms, weights stay positive.
        rounding = 1 - torch.finfo(x.dtype).eps
        bound = rounding * math.sqrt(self.max_logit) * x.shape[-1] ** 0.25
        dtype = torch.promote_types(x.dtype, torch.float32)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return x * (bound / norms.clamp(min=bound)).to(x.dtype)
