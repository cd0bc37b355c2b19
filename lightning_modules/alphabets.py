"""Weights of a network that knew other characters."""

from collections.abc import Sequence

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.vocabulary import CharacterVocabulary

Weights = dict[str, Tensor]


def adapt_rows(
    weights: Weights,
    own: Weights,
    names: Sequence[str],
    ours: CharacterVocabulary,
    theirs: CharacterVocabulary,
) -> Weights:
    """Move the rows of characters that both vocabularies have; take our own rows for the others.

    Args:
        weights: weights of the other network.
        own: weights of the network to start.
        names: weights with one row per token.
        ours: vocabulary of the network to start.
        theirs: vocabulary of the other network.
    """
    shared = [symbol for symbol in ours.symbols if symbol in theirs.symbols]
    to_rows = torch.tensor([ours.symbols.index(symbol) for symbol in shared])
    from_rows = torch.tensor([theirs.symbols.index(symbol) for symbol in shared])
    weights = dict(weights)
    for name in names:
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
