"""Text decoders that attend to encoded audio: one Transformer layer, or one LSTM layer.

Both read the text so far, let it attend to the audio and predict the next token at each position;
they differ only in how they read. For decoding, each reads one token at a time with an explicit
cache and gives what it would give for the whole text.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from networks.attention import KeyValues, MultiHeadAttention, ResidualAttentionBlock


@dataclass
class DecodingCache:
    """What a decoder keeps between two tokens.

    Attributes:
        memory: the audio's keys and values for cross-attention, projected once.
        memory_mask: (batch, positions), true on the real ones.
        text: the reader's own state after the tokens so far.
    """

    memory: KeyValues
    memory_mask: Tensor
    text: Any


class TextDecoder(nn.Module, ABC):
    """Embed, read, attend to the audio, predict.

    Args:
        vocabulary_size: number of tokens.
        hidden_size: channels; the encoder's.
        heads: heads of the cross-attention.
        mlp_size: hidden channels of the cross-attention block's MLP.
        max_tokens: longest text, the start token included.
        dropout: on embeddings and residual branches.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        max_tokens: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.cross_attention = ResidualAttentionBlock(hidden_size, heads, mlp_size, dropout=dropout)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    @abstractmethod
    def read(self, tokens: Tensor) -> Tensor:
        """Read whole texts, (batch, length) → (batch, length, hidden); position i sees 0 … i."""

    @abstractmethod
    def start_reading(self, max_tokens: int) -> Any:
        """Return the state of a reader that has read nothing yet."""

    @abstractmethod
    def read_next(self, tokens: Tensor, state: Any) -> Tensor:
        """Read one more token of each text, (batch, 1) → (batch, 1, hidden); moves ``state`` on."""

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Predict the token that follows each position.

        Args:
            tokens: (batch, length), each text behind its start token.
            memory: encoded audio (batch, positions, hidden).
            memory_mask: (batch, positions), true on the real ones.

        Returns:
            Logits (batch, length, vocabulary). Padding behind a text does not reach them: reading
            is causal.

        Raises:
            ValueError: if a text is longer than ``max_tokens``.
        """
        self._check_length(tokens.shape[1])
        key_values = self.cross_attention.attention.project(memory)
        return self._predict(self.read(tokens), key_values, memory_mask)

    def start(
        self, memory: Tensor, memory_mask: Tensor, max_tokens: int | None = None
    ) -> DecodingCache:
        """Prepare to decode up to ``max_tokens`` (this decoder's own by default) token by token."""
        max_tokens = self.max_tokens if max_tokens is None else max_tokens
        self._check_length(max_tokens)
        return DecodingCache(
            memory=self.cross_attention.attention.project(memory),
            memory_mask=memory_mask,
            text=self.start_reading(max_tokens),
        )

    def step(self, tokens: Tensor, cache: DecodingCache) -> Tensor:
        """Read the next tokens (batch,) and return the logits (batch, vocabulary) behind them."""
        hidden = self.read_next(tokens[:, None], cache.text)
        return self._predict(hidden, cache.memory, cache.memory_mask)[:, 0]

    def alignment(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Return the cross-attention weights, mean over heads: (batch, length, positions)."""
        attention = self.cross_attention.attention
        query = self.cross_attention.attention_norm(self.read(tokens))
        return attention.weights(query, attention.project(memory), memory_mask).mean(1)

    def _predict(self, hidden: Tensor, memory: KeyValues, memory_mask: Tensor) -> Tensor:
        hidden = self.cross_attention(hidden, memory, memory_mask)
        return self.output(self.norm(hidden))

    def _check_length(self, length: int) -> None:
        if length > self.max_tokens:
            raise ValueError(
                f"a text of {length} tokens is longer than the decoder's max_tokens "
                f"{self.max_tokens}"
            )


@dataclass
class _TransformerState:
    """Keys and values of the tokens read so far, in buffers for all that may follow."""

    buffers: KeyValues | None
    max_tokens: int
    length: int = 0

    def extend(self, new: KeyValues) -> KeyValues:
        """Append one position and return all up to it."""
        if self.buffers is None:
            batch, heads, _, head_size = new.keys.shape
            shape = (batch, heads, self.max_tokens, head_size)
            self.buffers = KeyValues(new.keys.new_empty(shape), new.values.new_empty(shape))
        for buffer, value in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : self.length + 1] = value
        self.length += 1
        return KeyValues(*(buffer[:, :, : self.length] for buffer in self.buffers))


class TextDecoderTransformer(TextDecoder):
    """Reads with learned positions and one causal residual self-attention layer, x + attention(x).

    At the course's settings (35 tokens, 99 positions) the decoder has 517,035 parameters; for that
    count the self-attention has no LayerNorm of its own and a bias on all four projections.
    Arguments as `TextDecoder`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 200,
        heads: int = 2,
        mlp_size: int = 400,
        max_tokens: int = 200,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(vocabulary_size, hidden_size, heads, mlp_size, max_tokens, dropout)
        # As large as token embeddings: which part of the audio is next is a matter of position.
        self.positions = nn.Parameter(torch.randn(max_tokens, hidden_size))
        self.self_attention = MultiHeadAttention(hidden_size, heads, key_bias=True)

    def read(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return x + self.dropout(self.self_attention(x, causal=True))

    def start_reading(self, max_tokens: int) -> _TransformerState:
        return _TransformerState(buffers=None, max_tokens=max_tokens)

    def read_next(self, tokens: Tensor, state: _TransformerState) -> Tensor:
        x = self.embedding(tokens) + self.positions[state.length]
        return x + self.self_attention(x, state.extend(self.self_attention.project(x)))


@dataclass
class _RecurrentState:
    """Hidden and cell state of the LSTM, (1, batch, hidden) each; None before the first token."""

    lstm: tuple[Tensor, Tensor] | None = None


class TextDecoderRecurrent(TextDecoder):
    """Reads with a LayerNorm and one LSTM layer.

    658,435 parameters at the course's settings (35 tokens). Arguments as `TextDecoder`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 200,
        heads: int = 2,
        mlp_size: int = 400,
        max_tokens: int = 200,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(vocabulary_size, hidden_size, heads, mlp_size, max_tokens, dropout)
        self.embedding_norm = nn.LayerNorm(hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)

    def read(self, tokens: Tensor) -> Tensor:
        return self.read_next(tokens, _RecurrentState())

    def start_reading(self, max_tokens: int) -> _RecurrentState:
        return _RecurrentState()

    def read_next(self, tokens: Tensor, state: _RecurrentState) -> Tensor:
        x = self.dropout(self.embedding_norm(self.embedding(tokens)))
        hidden, state.lstm = self.lstm(x, state.lstm)
        return self.dropout(hidden)
