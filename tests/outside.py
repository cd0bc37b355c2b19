"""Ordinary Lightning classes, as a user from outside this project writes them."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from datamodules.image_dataset import ImageBatch
from lightning_modules import ImageClassifier

PLAIN = ["--model=tests.outside.PlainModule", "--data=tests.outside.PlainDataModule"]


class PlainModule(LightningModule):
    """Regression with dropout, batch norm and epoch means, with nothing but Lightning.

    Args:
        fail_at: step at which ``training_step`` raises; -1 for none.
        fail_rank: rank of the process that fails.
        stream: file to append each step's examples to.
        metric: name of the validation loss.
        training_metric: name of the training loss.
        folder: not used, but saved with the other hyper-parameters.
    """

    def __init__(
        self,
        fail_at: int = -1,
        fail_rank: int = 0,
        stream: str = "",
        metric: str = "val/loss",
        training_metric: str = "train/loss",
        folder: Path = Path("data"),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.fail_at = fail_at
        self.fail_rank = fail_rank
        self.stream = stream
        self.metric = metric
        self.training_metric = training_metric

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        if self.global_step == self.fail_at and self.global_rank == self.fail_rank:
            raise RuntimeError("the user's own error")
        if self.stream:
            with open(self.stream, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(f"{self.global_step} {x[:, 0].tolist()}\n")
        loss = (self.network(x)[:, 0] - y).square().mean()
        self.log(self.training_metric, loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        x, y = batch
        self.log(self.metric, (self.network(x)[:, 0] - y).square().mean(), prog_bar=True)

    def test_step(self, batch: list[Tensor]) -> None:
        x, y = batch
        self.log("test/loss", (self.network(x)[:, 0] - y).square().mean())

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        return self.network(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class TwoLoadersModule(PlainModule):
    """A module whose data have two validation loaders."""

    def validation_step(self, batch: list[Tensor], i: int, dataloader_idx: int) -> None:  # type: ignore[override]
        super().validation_step(batch)


class BrokenModule(PlainModule):
    """A module with a mistake in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = len(None)  # type: ignore[arg-type]


class PlainDataModule(LightningDataModule):
    """Random numbers and their sum.

    Args:
        size: number of examples.
        uneven: whether the second process has one validation batch fewer.
    """

    def __init__(self, size: int = 64, uneven: bool = False) -> None:
        super().__init__()
        self.uneven = uneven
        x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, x.sum(1))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        rank = self.trainer.global_rank if self.trainer else 0
        size = len(self.data) - (8 if self.uneven and rank == 1 else 0)
        return DataLoader(Subset(self.data, range(size)), batch_size=8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=8)

    predict_dataloader = test_dataloader


class TwoLoadersDataModule(PlainDataModule):
    """The same with two loaders for validation."""

    def val_dataloader(self) -> list[Any]:  # type: ignore[override]
        return [super().val_dataloader(), super().val_dataloader()]


class MeteredClassifier(ImageClassifier):
    """Classifier that logs a metric of the training epoch over all processes."""

    def training_losses(self, batch: ImageBatch) -> tuple[Any, int]:
        self.log("train/brightness", batch.images.mean(), on_epoch=True, sync_dist=True)
        return super().training_losses(batch)
