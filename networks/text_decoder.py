"""Text decoders that attend to encoded audio: one Transformer layer, or one LSTM layer.

Both read the text so far, let it attend to the audio and predict the next token at each position;
they differ only in how they read. While decoding they read one token at a time, with an explicit
cache, and predict the same as for the whole text.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from networks.attention import (
    AttentionKernel,
    BatchState,
    MultiHeadAttention,
    ResidualAttentionBlock,
    select_rows,
)
from networks.dropout import Dropout
from networks.lstm_state import LSTMState


@dataclass
class DecodingCache:
    """State of a decoder between two tokens.

    Attributes:
        memory: encoded audio, a row per clip, summarized once by the kernel of the cross-attention.
        text: state of the reader after the tokens so far, ``width`` rows per clip. To make texts of
            the same clip change places, or one a copy of another, call its ``reorder``.
        width: number of texts per clip.
    """

    memory: BatchState
    text: BatchState
    width: int

    def select(self, clips: Tensor) -> None:
        """Keep only the given clips (selected,), in that order, and their texts, in place."""
        self.memory.reorder(clips)
        self.text.reorder(select_rows(clips, self.width))


class TextDecoder(nn.Module, ABC):
    """Embed, read, attend to the audio, predict.

    Args:
        vocabulary_size: number of tokens.
        hidden_size: model width; the same as the encoder's.
        heads: number of heads of the cross-attention.
        mlp_size: hidden units of the cross-attention block's MLP.
        max_tokens: maximum length of a text, the start token included.
        dropout: dropout probability on embeddings and residual branches.
        cross_attention: kernel of the attention to the audio; softmax by default.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        max_tokens: int,
        dropout: float,
        cross_attention: AttentionKernel | None,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.hidden_size = hidden_size
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.cross_attention = ResidualAttentionBlock(
            hidden_size, heads, mlp_size, dropout=dropout, kernel=cross_attention
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    @abstractmethod
    def read(self, tokens: Tensor) -> Tensor:
        """Read whole texts, (batch, length) → (batch, length, hidden); position i sees 0 … i."""

    @abstractmethod
    def start_reading(self) -> BatchState:
        """Return the state before the first token."""

    @abstractmethod
    def read_next(self, tokens: Tensor, state: Any) -> Tensor:
        """Read one more token of each text, (batch, 1) → (batch, 1, hidden); updates ``state``."""

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Predict the token that follows each position.

        Args:
            tokens: (batch, length), each text after its start token.
            memory: encoded audio (batch, positions, hidden).
            memory_mask: (batch, positions), true on real positions.

        Returns:
            Logits (batch, length, vocabulary). Padding after a text does not change its logits:
            reading is causal.

        Raises:
            ValueError: if the texts are longer than ``max_tokens``.
        """
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"a text of {tokens.shape[1]} tokens is longer than the decoder's max_tokens "
                f"{self.max_tokens}"
            )
        summary = self.cross_attention.attention.summarize(memory, memory_mask)
        return self.predict(self.read(tokens), summary)

    def start(self, memory: Tensor, memory_mask: Tensor, width: int = 1) -> DecodingCache:
        """Prepare to decode token by token.

        Args:
            memory: encoded audio (clips, positions, hidden).
            memory_mask: (clips, positions), true on real positions.
            width: number of texts that each clip's audio is read for.

        Returns:
            A cache for `step`, which can be called ``max_tokens`` times.
        """
        attention = self.cross_attention.attention
        return DecodingCache(
            memory=attention.summarize(memory, memory_mask, one_by_one=width == 1),
            text=self.start_reading(),
            width=width,
        )

    def step(self, tokens: Tensor, cache: DecodingCache) -> Tensor:
        """Read the next token of each text and predict the one after it.

        Args:
            tokens: (clips · width,), those of a clip next to each other.
            cache: from `start`; updated in place.

        Returns:
            Logits (clips · width, vocabulary).
        """
        hidden = self.read_next(tokens[:, None], cache.text)
        # A clip's texts are queries of one memory, which is neither copied nor read for each.
        hidden = hidden.unflatten(0, (-1, cache.width)).squeeze(2)
        return self.predict(hidden, cache.memory).flatten(0, 1)

    def alignment(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Return the cross-attention weights, averaged over heads: (batch, length, positions).

        Arguments as in `forward`.
        """
        attention = self.cross_attention.attention
        query = self.cross_attention.attention_norm(self.read(tokens))
        return attention.weights(query, memory, memory_mask).mean(1)

    def predict(self, hidden: Tensor, summary: Any) -> Tensor:
        """Return logits (batch, length, vocabulary) of read texts and summarized audio."""
        return self.output(self.norm(self.cross_attention.read(hidden, summary)))


@dataclass
class _TransformerState:
    """State of the self-attention after ``length`` tokens."""

    attention: BatchState
    length: int = 0

    def reorder(self, rows: Tensor) -> None:
        self.attention.reorder(rows)


class TextDecoderTransformer(TextDecoder):
    """Reads with learned positions and one causal residual self-attention layer, x + attention(x).

    With the course's settings (35 tokens, 99 positions) the decoder has 517,035 parameters. To
    match that number, the self-attention has no LayerNorm and a bias on all four projections.
    Arguments as `TextDecoder`'s; ``self_attention`` is the kernel of the self-attention.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 200,
        heads: int = 2,
        mlp_size: int = 400,
        max_tokens: int = 200,
        dropout: float = 0.0,
        self_attention: AttentionKernel | None = None,
        cross_attention: AttentionKernel | None = None,
    ) -> None:
        super().__init__(
            vocabulary_size, hidden_size, heads, mlp_size, max_tokens, dropout, cross_attention
        )
        # As large as token embeddings: the position decides which part of the audio comes next.
        self.positions = nn.Parameter(torch.randn(max_tokens, hidden_size))
        self.self_attention = MultiHeadAttention(
            hidden_size, heads, key_bias=True, kernel=self_attention
        )

    def read(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return x + self.dropout(self.self_attention(x, causal=True))

    def start_reading(self) -> _TransformerState:
        return _TransformerState(self.self_attention.kernel.start())

    def read_next(self, tokens: Tensor, state: _TransformerState) -> Tensor:
        x = self.embedding(tokens) + self.positions[state.length]
        state.length += 1
        return x + self.self_attention.step(x, state.attention)


class TextDecoderRecurrent(TextDecoder):
    """Reads with a LayerNorm and one LSTM layer.

    658,435 parameters with the course's settings (35 tokens). Arguments as `TextDecoder`'s.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 200,
        heads: int = 2,
        mlp_size: int = 400,
        max_tokens: int = 200,
        dropout: float = 0.0,
        cross_attention: AttentionKernel | None = None,
    ) -> None:
        super().__init__(
            vocabulary_size, hidden_size, heads, mlp_size, max_tokens, dropout, cross_attention
        )
        self.embedding_norm = nn.LayerNorm(hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)

    def read(self, tokens: Tensor) -> Tensor:
        return self.read_next(tokens, LSTMState())

    def start_reading(self) -> LSTMState:
        return LSTMState()

    def read_next(self, tokens: Tensor, state: LSTMState) -> Tensor:
        x = self.dropout(self.embedding_norm(self.embedding(tokens)))
        hidden, state.lstm = self.lstm(x, state.lstm)
        return self.dropout(hidden)
