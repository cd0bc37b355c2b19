"""Inference with CTC (Graves et al. 2006): prefix scores, best path, alignment."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import forced_align

from networks.attention import select_rows
from networks.precision import accumulator

IMPOSSIBLE = -1e6
"""Log-probability of tokens in the padding; finite, so that differences of sums are."""


class PrefixScores:
    """Log-probabilities that a clip's text starts with given prefixes.

    This is algorithm 2 of Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end
    speech recognition", for all extensions of all prefixes of a batch at once. With p(t, c) the
    probability of token c at position t, and n(t), b(t) the probabilities that the first t
    positions spell the prefix g and end with a token or a blank, the extension h = gc has

        φ(t) = b(t-1) + n(t-1) if c is not g's last token, else b(t-1)
        P(h…) = Σ φ(t) p(t, c)
        n'(t) = (n'(t-1) + φ(t)) p(t, c)
        b'(t) = (b'(t-1) + n'(t-1)) p(t, blank)

    P(h…) needs no recursion, so it is one matrix product for all c. The recursions are linear: with
    C(t) the cumulative product of p(t, c), n'(t) = C(t) Σ_{s ≤ t} φ(s) / C(s-1), likewise b'. All
    are computed as logarithms in float64, in which the differences of long sums are still exact
    enough.

    A text that ends has its whole probability, n(T) + b(T) after the last position T.

    A row is one prefix; there are ``width`` rows per clip, one after another. All start empty.

    Args:
        log_probabilities: (clips, positions, vocabulary).
        mask: (clips, positions), true on real positions.
        blank: token of the blank.
        width: number of prefixes per clip.
        stop: token that ends a text; the head's own probability of it is not used.
    """

    def __init__(
        self, log_probabilities: Tensor, mask: Tensor, *, blank: int, width: int, stop: int
    ) -> None:
        self.width = width
        self.blank = blank
        self.stop = stop
        logs = log_probabilities.to(accumulator(log_probabilities))
        logs = logs.masked_fill(~mask[:, :, None], IMPOSSIBLE)
        # Blanks in the padding cost nothing: the end of the batch is the end of each clip.
        logs[:, :, blank] = logs[:, :, blank].masked_fill(~mask, 0.0)
        self.probabilities = logs.exp()  # (clips, positions, vocabulary)
        self.sums = logs.cumsum(1)  # log C(t)
        clips, positions, _ = logs.shape
        shape = (clips * width, positions + 1)  # a column for the time before the first position
        self.ends_with_token = logs.new_full(shape, -torch.inf)
        self.ends_with_blank = logs.new_zeros(shape)
        self.ends_with_blank[:, 1:] = self.sums[:, :, blank].repeat_interleave(width, dim=0)
        self.last = torch.full(shape[:1], blank, device=logs.device)  # none yet

    def extend(self) -> Tensor:
        """Return log P(gc…) of every extension c of each prefix g, and log P(g) for the stop token.

        The blank's column of (rows, vocabulary) is meaningless.
        """
        after_blank = self.ends_with_blank[:, :-1]
        after_any = torch.logaddexp(after_blank, self.ends_with_token[:, :-1])
        scores = self._sum(after_any)  # (rows, vocabulary)
        column = self.last[:, None]
        scores = scores.scatter(1, column, self._sum(after_blank).gather(1, column))
        scores[:, self.stop] = torch.logaddexp(
            self.ends_with_token[:, -1], self.ends_with_blank[:, -1]
        )
        return scores

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        """Replace the prefixes with extensions.

        Args:
            rows: (rows,) row that each new row extends; it belongs to the same clip.
            tokens: (rows,) tokens to append.
        """
        clips = torch.arange(len(rows), device=rows.device) // self.width
        after_blank = self.ends_with_blank[rows, :-1]
        after_any = torch.logaddexp(after_blank, self.ends_with_token[rows, :-1])
        repeats = (self.last[rows] == tokens)[:, None]
        before = torch.where(repeats, after_blank, after_any)
        self.ends_with_token = _accumulate(before, self.sums[clips, :, tokens])
        blanks = self.sums[clips, :, self.blank]
        self.ends_with_blank = _accumulate(self.ends_with_token[:, :-1], blanks)
        self.last = tokens

    def select(self, clips: Tensor) -> None:
        """Keep the given clips (selected,) only."""
        rows = select_rows(clips, self.width)
        self.probabilities, self.sums = self.probabilities[clips], self.sums[clips]
        self.ends_with_token = self.ends_with_token[rows]
        self.ends_with_blank = self.ends_with_blank[rows]
        self.last = self.last[rows]

    def _sum(self, before: Tensor) -> Tensor:
        """Return log Σ φ(t) p(t, c) of log φ (rows, positions): (rows, vocabulary)."""
        peak = before.amax(1, keepdim=True).clamp(min=-1e30)
        scaled = (before - peak).exp().unflatten(0, (-1, self.width))
        return (scaled @ self.probabilities).flatten(0, 1).log() + peak


def _accumulate(added: Tensor, sums: Tensor) -> Tensor:
    """Solve x(t) = (x(t-1) + added(t)) p(t) in logarithms; x(0) = 0.

    Args:
        added: (rows, positions).
        sums: cumulative sums of log p (rows, positions).

    Returns:
        (rows, 1 + positions), the first column for t = 0.
    """
    start = torch.zeros_like(sums[:, :1])
    shifted = torch.cat((start, sums[:, :-1]), dim=1)
    x = torch.logcumsumexp(added - shifted, dim=1) + sums
    return torch.cat((start - torch.inf, x), dim=1)


def best_path(log_probabilities: Tensor, mask: Tensor, blank: int) -> list[list[int]]:
    """Return the text of the most probable path: repetitions merged, blanks removed.

    Args:
        log_probabilities: (batch, positions, vocabulary).
        mask: (batch, positions), true on real positions.
        blank: token of the blank.
    """
    path = log_probabilities.argmax(-1).masked_fill(~mask, blank)
    before = F.pad(path[:, :-1], (1, 0), value=blank)
    kept = (path != blank) & (path != before)
    return [row[keep].tolist() for row, keep in zip(path, kept, strict=True)]


def align(
    log_probabilities: Tensor, mask: Tensor, tokens: Tensor, lengths: Tensor, blank: int
) -> Tensor:
    """Find the most probable CTC path that spells each text; on the CPU.

    Args:
        log_probabilities: (batch, positions, vocabulary).
        mask: (batch, positions), true on real positions.
        tokens: (batch, tokens), padded with anything.
        lengths: (batch,) number of tokens of each text.
        blank: token of the blank.

    Returns:
        (batch, positions) index of the token spoken at each position, -1 for a blank and in the
        padding. A row is -1 everywhere if its text is empty or its clip has too few positions for
        it, or a log-probability is NaN.
    """
    logs, tokens = log_probabilities.cpu(), tokens.cpu()
    found = torch.full(mask.shape, -1)
    for i, (positions, length) in enumerate(
        zip(mask.sum(1).tolist(), lengths.tolist(), strict=True)
    ):
        text = tokens[i, :length]
        blanks = int((text[1:] == text[:-1]).sum())  # needed between equal tokens
        has_path = 0 < length <= positions - blanks
        if not has_path or logs[i, :positions].isnan().any():
            continue
        path = forced_align(logs[i : i + 1, :positions].contiguous(), text[None], blank=blank)[0][0]
        is_token = path != blank
        begins = is_token & (path != F.pad(path[:-1], (1, 0), value=blank))
        found[i, :positions] = torch.where(is_token, begins.cumsum(0) - 1, -1)
    return found
