"""Decoding strategies: how next-token predictions become whole texts."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from networks.ctc import best_path
from networks.speech_to_text import SpeechToText


class DecodingStrategy(ABC):
    """Search for each clip's text.

    A strategy drives the network's decoder with `TextDecoder.start` and `TextDecoder.step`, and may
    reorder the cache's texts in between, as a beam search does. It may also use the network's CTC
    head, if there is one.

    Attributes:
        max_tokens: maximum length of a text, the stop token included; None for the decoder's own.
    """

    max_tokens: int | None = None

    def maximum(self, network: SpeechToText) -> int:
        """Return the maximum length of a text."""
        return network.decoder.max_tokens if self.max_tokens is None else self.max_tokens

    def check(self, network: SpeechToText) -> None:
        """Check that the strategy can be used with the network.

        Raises:
            ValueError: if it cannot, such as if it may write more tokens than the decoder can read.
        """
        if self.maximum(network) > network.decoder.max_tokens:
            raise ValueError(
                f"the search's max_tokens {self.max_tokens} is larger than the decoder's "
                f"{network.decoder.max_tokens}"
            )

    @abstractmethod
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
        """Return the best text found for each clip.

        Args:
            network: network in evaluation mode.
            memory: encoded audio (batch, positions, hidden).
            memory_mask: (batch, positions), true on real positions.
            start: token before the first one of a text.
            stop: token that ends a text.
            pad: token after the end of a text; the CTC head's blank.

        Returns:
            Tokens (batch, length), without the start token. Each text ends with the stop token,
            unless it reached the maximum length, and is padded.
        """


def check_ctc(network: SpeechToText) -> None:
    """Raise a ValueError if there is no CTC head."""
    if network.ctc_head is None:
        raise ValueError("this decoding strategy needs network.init_args.ctc=true")


def forbid(logits: Tensor, *tokens: int) -> Tensor:
    """Return logits (…, vocabulary) with -∞ at the given tokens."""
    logits = logits.clone()
    for token in tokens:  # a tensor of the tokens would be copied to a GPU at each step
        logits[..., token] = -torch.inf
    return logits


class GreedySearch(DecodingStrategy):
    """Take the most probable token at each step until every text has ended.

    Args:
        max_tokens: maximum length of a text, the stop token included; the decoder's own maximum by
            default.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens

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
        decoder = network.decoder
        max_tokens = self.maximum(network)
        cache = decoder.start(memory, memory_mask)
        rows = torch.arange(len(memory), device=memory.device)  # clips that are still read
        tokens = torch.full_like(rows, start)
        ended = torch.zeros_like(rows, dtype=torch.bool)
        texts = torch.full((len(rows), max_tokens), pad, device=memory.device)
        for i in range(max_tokens):
            logits = forbid(decoder.step(tokens, cache), start, pad)
            tokens = logits.argmax(-1).masked_fill(ended, pad)
            texts[rows, i] = tokens
            ended |= tokens == stop
            running = (~ended).nonzero()[:, 0]
            if not len(running):
                return texts[:, : i + 1]
            if 2 * len(running) <= len(rows):  # copying the cache costs more than a few idle rows
                cache.select(running)
                rows, tokens, ended = rows[running], tokens[running], ended[running]
        return texts


class CTCGreedySearch(DecodingStrategy):
    """Take the CTC head's most probable token at each position; the decoder is not used."""

    def check(self, network: SpeechToText) -> None:
        super().check(network)
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
        logs = forbid(network.ctc_log_probabilities(memory), start, stop)
        texts = [[*text, stop] for text in best_path(logs, memory_mask, blank=pad)]
        tokens = [torch.tensor(text, device=memory.device) for text in texts]
        return pad_sequence(tokens, batch_first=True, padding_value=pad)
