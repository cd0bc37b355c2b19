from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from datamodules import BooleanDataModule, LJSpeechDataModule, OCTMNISTDataModule


def first_batch(kind: str, tones: Path, retinas: Path) -> Any:
    data: Any
    if kind == "speech":
        data = LJSpeechDataModule(root=str(tones), batch_size=2)
    elif kind == "images":
        data = OCTMNISTDataModule(file=str(retinas), batch_size=2, steps_per_execution=2)
    else:
        data = BooleanDataModule(dimension=2, low=0, high=2, batch_size=2)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("kind", ["speech", "images", "Boolean"])
def test_batches_keep_their_type_and_fields_when_moved_and_pinned(
    kind: str, tones: Path, retinas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # pinning needs a GPU
    batch = first_batch(kind, tones, retinas)
    moved = move_data_to_device(batch, torch.device("meta"))
    pinned = pin_memory(batch)
    assert type(moved) is type(pinned) is type(batch)
    for name, before in batch._asdict().items():
        if isinstance(before, torch.Tensor):
            assert getattr(moved, name).device.type == "meta"
            assert torch.equal(getattr(pinned, name), before)
        else:
            assert getattr(moved, name) == getattr(pinned, name) == before


def test_batches_describe_themselves(tones: Path, retinas: Path) -> None:
    data = LJSpeechDataModule(root=str(tones))
    data.setup("fit")
    batch = data.datasets["train"][[4, 1]]
    seconds, tokens = batch.lengths.max() / 22_050, batch.token_lengths.max()
    assert batch.describe() == (
        f"a batch of 2 clips, padded to {seconds:.2f} s and {tokens} tokens (T-004, T-001)"
    )
    images = OCTMNISTDataModule(file=str(retinas))
    images.setup("fit")
    steps = images.datasets["train"][torch.tensor([5, 3]), torch.tensor([7])]
    assert steps.describe() == "a batch of 3 images of 28×28 pixels (indices 5, 3, 7)"
    assert [*steps.steps()][1].describe() == "a batch of 1 images of 28×28 pixels (indices 7)"
    signs = BooleanDataModule(dimension=2, low=0, high=2)
    signs.setup("fit")
    assert signs.datasets["train"][(torch.tensor([0]),)].describe() == (
        f"a batch of 1 inputs ({signs.datasets['train'].tensors[0][:1].tolist()})"
    )
