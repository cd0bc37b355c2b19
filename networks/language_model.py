"""Character language model."""

from dataclasses import dataclass

from torch import Tensor, nn

from networks.dropout import Dropout


@dataclass
class LanguageModelState:
    """Hidden and cell state of the LSTM, (layers, batch, hidden) each; None before any token."""

    lstm: tuple[Tensor, Tensor] | None = None

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch a copy of the former row ``rows[i]``, in place."""
        if self.lstm is not None:
            hidden, cell = self.lstm
            self.lstm = hidden.index_select(1, rows), cell.index_select(1, rows)


class CharacterLanguageModel(nn.Module):
    """LSTM that predicts the next token of a text.

    Args:
        vocabulary_size: number of tokens.
        hidden_size: size of embeddings and of the LSTM's state.
        layers: number of LSTM layers.
        dropout: dropout probability on embeddings and on the output of each layer.
    """

    def __init__(
        self, vocabulary_size: int, hidden_size: int = 256, layers: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(hidden_size, hidden_size, layers, batch_first=True, dropout=between)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each token, (batch, length) → (batch, length, vocabulary)."""
        return self._read(tokens, LanguageModelState())

    def token_weights(self) -> list[str]:
        """Return the names of the weights with one row per token of the vocabulary."""
        return ["embedding.weight", "output.weight", "output.bias"]

    def start(self) -> LanguageModelState:
        """Return the state before the first token."""
        return LanguageModelState()

    def step(self, tokens: Tensor, state: LanguageModelState) -> Tensor:
        """Read the next tokens (batch,) and return the logits (batch, vocabulary) after them."""
        return self._read(tokens[:, None], state)[:, 0]

    def _read(self, tokens: Tensor, state: LanguageModelState) -> Tensor:
        hidden, state.lstm = self.lstm(self.dropout(self.embedding(tokens)), state.lstm)
        return self.output(self.dropout(hidden))
