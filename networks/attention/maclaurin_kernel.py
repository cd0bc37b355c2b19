"""The truncated series as a kernel of `MultiHeadAttention`."""

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
    """Attention by the truncated series; see `maclaurin_attention`.

    Args:
        terms: K, terms of the series.
        max_logit: b; queries and keys longer than √b (after the scaling by D^−¼) are shortened to
            it, so that |q·k/√D| ≤ b and every weight exp(q·k/√D) is met within the factor
            1 ± bᴷ/K! · eᵇ (docs/maclaurin_attention.md, section 6). None leaves them: attention by
            a polynomial, which is no approximation of softmax where logits are large.

    Raises:
        ValueError: if weights could be negative: an even number of terms and no small max_logit.
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
                    f"{max_logit}: take an odd number of terms or a smaller max_logit"
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

    def start(self, max_length: int) -> MaclaurinState:
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
        """Shorten vectors so that after the scaling their norm is √max_logit at most."""
        if self.max_logit is None:
            return x
        longest = math.sqrt(self.max_logit) * x.shape[-1] ** 0.25
        dtype = torch.promote_types(x.dtype, torch.float32)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return x * (longest / norms.clamp(min=longest)).to(x.dtype)
