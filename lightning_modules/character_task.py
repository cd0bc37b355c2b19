"""What tasks with an alphabet share: their checkpoints name it, and weights of another fit."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.vocabulary import CharacterVocabulary
from engine import TrainingModule
from errors import UserError


class CharacterTask(TrainingModule):
    """A task whose network has weights with one row per character.

    Args:
        network: network whose ``token_weights`` names them.
        vocabulary: the characters.
    """

    def __init__(self, network: Any, vocabulary: CharacterVocabulary) -> None:
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the alphabet, which names the rows of the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["alphabet"] = self.vocabulary.alphabet

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights are of the same characters.

        Raises:
            UserError: if not.
        """
        super().on_load_checkpoint(checkpoint)
        alphabet = checkpoint.get("alphabet", self.vocabulary.alphabet)
        if alphabet != self.vocabulary.alphabet:
            raise UserError(
                f"the checkpoint's alphabet is {alphabet!r}, this configuration's is "
                f"{self.vocabulary.alphabet!r}: give the data.init_args.alphabet it was trained "
                "with, or start another run from its weights with --init_from"
            )

    def adapt_weights(
        self, weights: dict[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Move the rows of characters that both vocabularies have; keep our own for the others.

        Args:
            weights: weights of the other module.
            checkpoint: checkpoint that they come from.

        Raises:
            UserError: if the checkpoint has no alphabet.
        """
        if "alphabet" not in checkpoint:
            raise UserError(
                "--init_from: the checkpoint has no alphabet, so it is of another task or of an "
                f"older version of this suite: give one of a {type(self).__name__} trained with "
                "this version"
            )
        own, ours = self.state_dict(), self.vocabulary
        theirs = CharacterVocabulary(checkpoint["alphabet"])
        shared = [symbol for symbol in ours.symbols if symbol in theirs.symbols]
        to_rows = torch.tensor([ours.symbols.index(symbol) for symbol in shared])
        from_rows = torch.tensor([theirs.symbols.index(symbol) for symbol in shared])
        weights = dict(weights)
        for name in (f"network.{name}" for name in self.network.token_weights()):
            source, rows = weights.pop(name, None), own[name].clone()
            if source is not None and source.shape[1:] == rows.shape[1:]:
                rows[to_rows] = source[from_rows].to(rows)
                weights[name] = rows
        if ours.alphabet != theirs.alphabet:
            new = [symbol for symbol in ours.symbols if symbol not in theirs.symbols]
            rank_zero_info(
                f"Rows of {len(shared)} characters kept: {''.join(shared)!r}; "
                f"randomly initialized: {''.join(new)!r}"
            )
        return weights
