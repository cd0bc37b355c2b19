"""Character language model."""

from torch import Tensor, nn

from networks.dropout import Dropout
from networks.lstm_state import LSTMState


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
        return self._read(tokens, LSTMState())

    def token_weights(self) -> list[str]:
        """Return the names of the weights with one row per token of the vocabulary."""
        return ["embedding.weight", "output.weight", "output.bias"]

    def start(self) -> LSTMState:
        """Return the state before the first token."""
        return LSTMState()

    def step(self, tokens: Tensor, state: LSTMState) -> Tensor:
        """Read the next tokens (batch,) and return the logits (batch, vocabulary) after them."""
        return self._read(tokens[:, None], state)[:, 0]

    def _read(self, tokens: Tensor, state: LSTMState) -> Tensor:
        hidden, state.lstm = self.lstm(self.dropout(self.embedding(tokens)), state.lstm)
        return self.output(self.dropout(hidden))
