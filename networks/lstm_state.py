"""State of an LSTM that reads one token at a time."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class LSTMState:
    """Hidden and cell state, (layers, batch, hidden) each; None before the first token."""

    lstm: tuple[Tensor, Tensor] | None = None

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch a copy of the former row ``rows[i]``, in place."""
        if self.lstm is not None:
            hidden, cell = self.lstm
            self.lstm = hidden.index_select(1, rows), cell.index_select(1, rows)
