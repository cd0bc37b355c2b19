"""Beam search with the attention decoder, the CTC head and a language model."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from networks.attention import BatchState, select_rows
from networks.ctc import PrefixScores
from networks.decoding import DecodingStrategy, check_ctc, forbid
from networks.language_model import CharacterLanguageModel
from networks.precision import accumulator
from networks.speech_to_text import SpeechToText


class BeamSearch(DecodingStrategy):
    """Joint CTC/attention beam search (Watanabe et al. 2017, section II-C), batched.

    A hypothesis scores (1 - w) log p_attention + w log p_CTC + v log p_LM, where p_CTC is the
    probability that the text starts with the hypothesis. Attention alone may repeat or skip words;
    CTC makes such texts improbable, because it reads the audio once, in order.

    Each step keeps the best ``width`` extensions of a clip's hypotheses. Those that end leave the
    beam. The result is the ended hypothesis with the best score divided by lengthᵅ, or one that has
    reached the maximum length and is better. The search for a clip is over when no other hypothesis
    can become better, or when all others score less by ``end_margin``.

    Args:
        width: number of hypotheses per clip.
        ctc_weight: w, weight of the CTC head, in [0, 1]; with 1 the decoder is not used.
        length_exponent: α. 0 compares total scores, 1 compares means per token.
        language_model: model of the transcripts; none by default.
        language_model_weight: v.
        end_margin: difference of scores, in nats, that ends a search.
        max_tokens: maximum length of a text, the stop token included; the decoder's own maximum by
            default.

    Raises:
        ValueError: if ``width`` is less than 1, or ``ctc_weight`` is not in [0, 1].
    """

    def __init__(
        self,
        width: int = 8,
        ctc_weight: float = 0.3,
        length_exponent: float = 0.0,
        language_model: CharacterLanguageModel | None = None,
        language_model_weight: float = 0.3,
        end_margin: float = 10.0,
        max_tokens: int | None = None,
    ) -> None:
        if width < 1:
            raise ValueError(f"width {width} is less than 1")
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight {ctc_weight} is not in [0, 1]")
        self.width = width
        self.ctc_weight = ctc_weight
        self.length_exponent = length_exponent
        self.language_model = language_model
        self.language_model_weight = language_model_weight
        self.end_margin = end_margin
        self.max_tokens = max_tokens

    def check(self, network: SpeechToText) -> None:
        super().check(network)
        if self.ctc_weight > 0:
            check_ctc(network)

    @torch.no_grad()
    def decode(
        self,
        network: SpeechToText,
        memory: Tensor,
        memory_mask: Tensor,
        *,
        start: int,
        stop: int,
        pad: int,
    ) -> Tensor:
        maximum = self.maximum(network)
        scorers = self._start_scorers(network, memory, memory_mask, start, stop, pad)
        limits = (memory_mask.sum(1) + 1).clamp(max=maximum)  # the stop token takes no position
        if self.ctc_weight == 0:  # only with CTC does each token take a position of its own
            limits = torch.full_like(limits, maximum)
        clips = torch.arange(len(memory), device=memory.device)  # those still searched
        texts: list[Tensor] = [clips[:0]] * len(memory)
        best_values, best_scores = torch.full(
            (2, len(memory)), -torch.inf, dtype=accumulator(memory), device=memory.device
        )
        tokens = torch.full((len(memory), self.width, 1), start, device=memory.device)
        scores = best_scores[:, None].repeat(1, self.width)
        scores[:, 0] = 0.0  # one hypothesis per clip, the empty text
        for length in range(1, maximum + 1):
            total = sum(
                (weight * scorer.extend() for weight, scorer in scorers),
                start=torch.zeros((), device=memory.device),
            )  # (clips · width, vocabulary)
            total = forbid(total, start, pad).unflatten(0, (-1, self.width))
            total = total.masked_fill((scores == -torch.inf)[:, :, None], -torch.inf)
            scores, chosen = total.flatten(1).topk(self.width)  # (clips, width)
            parents, added = chosen // total.shape[-1], chosen % total.shape[-1]
            tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, length))
            tokens = torch.cat((tokens, added[:, :, None]), dim=2)  # (clips, width, 1 + length)
            rows = parents + self.width * torch.arange(len(clips), device=clips.device)[:, None]
            for _, scorer in scorers:
                scorer.append(rows.flatten(), added.flatten())
            ended = scores.masked_fill(added != stop, -torch.inf) / length**self.length_exponent
            ended, best_row = ended.max(1)
            for i in (ended > best_values[clips]).nonzero()[:, 0].tolist():
                clip, row = int(clips[i]), int(best_row[i])
                texts[clip] = tokens[i, row, 1:]
                best_values[clip], best_scores[clip] = ended[i], scores[i, row]
            scores = scores.masked_fill(added == stop, -torch.inf)
            best_open = scores.amax(1)  # an upper bound of what follows: scores only fall
            is_over = best_open / limits[clips] ** self.length_exponent <= best_values[clips]
            is_over |= best_open < best_scores[clips] - self.end_margin
            if is_over.any():
                kept = (~is_over).nonzero()[:, 0]
                clips, tokens, scores = clips[kept], tokens[kept], scores[kept]
                if not len(clips):
                    break
                for _, scorer in scorers:
                    scorer.select(kept)
        best_open, row = (scores / maximum**self.length_exponent).max(1)
        for i in (best_open > best_values[clips]).nonzero()[:, 0].tolist():
            texts[int(clips[i])] = tokens[i, row[i], 1:]  # cut off
        return pad_sequence(texts, batch_first=True, padding_value=pad)

    def _start_scorers(
        self,
        network: SpeechToText,
        memory: Tensor,
        memory_mask: Tensor,
        start: int,
        stop: int,
        pad: int,
    ) -> list[tuple[float, "_Scorer"]]:
        """Return each scorer and its weight."""
        scorers: list[tuple[float, _Scorer]] = []
        first = torch.full((len(memory) * self.width,), start, device=memory.device)
        if self.ctc_weight < 1:
            cache = network.decoder.start(memory, memory_mask, self.width)
            step = partial(network.decoder.step, cache=cache)
            scorer = _StepScorer(step, first, self.width, cache.text, cache.memory)
            scorers.append((1 - self.ctc_weight, scorer))
        if self.ctc_weight > 0:
            logs = network.ctc_log_probabilities(memory)
            scores = PrefixScores(logs, memory_mask, blank=pad, width=self.width, stop=stop)
            scorers.append((self.ctc_weight, scores))
        if self.language_model is not None and self.language_model_weight:
            model = self.language_model.to(memory.device).eval()
            state = model.start()
            step = partial(model.step, state=state)
            scorer = _StepScorer(step, first, self.width, state)
            scorers.append((self.language_model_weight, scorer))
        return scorers


class _Scorer(Protocol):
    """Scores of a batch's hypotheses, ``width`` rows per clip."""

    def extend(self) -> Tensor:
        """Score each token after each hypothesis: (rows, vocabulary)."""

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        """Make row i the former row ``rows[i]``, which is of the same clip, and ``tokens[i]``."""

    def select(self, clips: Tensor) -> None:
        """Keep only the given clips."""


class _StepScorer:
    """Sums of the log-probabilities of a model that reads token by token.

    Args:
        step: maps tokens (rows,) to logits (rows, vocabulary) and updates the state.
        start: first token of each row, (rows,).
        width: number of rows per clip.
        text: state of the hypotheses.
        memory: state that a clip's hypotheses share, one row per clip; none by default.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        start: Tensor,
        width: int,
        text: BatchState,
        memory: BatchState | None = None,
    ) -> None:
        self.step, self.last, self.width = step, start, width
        self.text, self.memory = text, memory
        self.total = torch.zeros_like(start, dtype=accumulator(start))

    def extend(self) -> Tensor:
        logs = self.step(self.last).to(self.total).log_softmax(-1)
        self.extended = self.total[:, None] + logs
        return self.extended

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        self.total, self.last = self.extended[rows, tokens], tokens
        self.text.reorder(rows)

    def select(self, clips: Tensor) -> None:
        rows = select_rows(clips, self.width)
        self.total, self.last = self.total[rows], self.last[rows]
        self.text.reorder(rows)
        if self.memory is not None:
            self.memory.reorder(clips)
