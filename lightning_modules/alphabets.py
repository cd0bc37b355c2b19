"""Weights of a network that knew other characters."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.vocabulary import CharacterVocabulary
from errors import UserError

Weights = dict[str, Tensor]


class CharacterModule(Protocol):
    """A module whose network has weights with one row per character."""

    network: Any
    vocabulary: CharacterVocabulary

    def state_dict(self) -> Weights:
        """Return the weights."""


def adapt_rows(
    module: CharacterModule, weights: Weights, checkpoint: Mapping[str, Any], task: str
) -> Weights:
    """Move the rows of characters that both vocabularies have; take our own rows for the others.

    Args:
        module: module to initialize.
        weights: weights of the other module.
        checkpoint: checkpoint that they come from.
        task: what it should be of, for the message.

    Raises:
        UserError: if the checkpoint has no alphabet.
    """
    if "alphabet" not in checkpoint:
        raise UserError(
            "--init_from: the checkpoint has no alphabet, so it is of another task or of an older "
            f"version of this suite: give a {task} trained with this version"
        )
    own, ours = module.state_dict(), module.vocabulary
    theirs = CharacterVocabulary(checkpoint["alphabet"])
    shared = [symbol for symbol in ours.symbols if symbol in theirs.symbols]
    to_rows = torch.tensor([ours.symbols.index(symbol) for symbol in shared])
    from_rows = torch.tensor([theirs.symbols.index(symbol) for symbol in shared])
    weights = dict(weights)
    for name in (f"network.{name}" for name in module.network.token_weights()):
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


def copy_rows(source: Tensor, own: Tensor) -> Tensor:
    """Return our rows with as many leading ones as there are in ``source`` replaced by them."""
    if source.shape[1:] != own.shape[1:]:
        return source
    rows, count = own.clone(), min(len(own), len(source))
    rows[:count] = source[:count].to(rows)
    return rows
