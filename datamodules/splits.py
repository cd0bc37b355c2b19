"""Base class of the data modules: splits and their loaders."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from engine import EpochSampler, ReproducibleLoader, outlive_signals

Split = TypeVar("Split", bound=Dataset)  # type: ignore[type-arg]

NEEDED = {
    TrainerFn.FITTING: ("train", "val"),
    TrainerFn.VALIDATING: ("val",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("test",),
}
"""Splits that a stage of the trainer needs."""


class SplitDataModule(LightningDataModule, Generic[Split]):
    """Data module with one data set per split, each indexed by whole batches.

    A subclass fills ``datasets`` in its ``setup`` and implements `make_sampler`.

    Attributes:
        datasets: data sets by split; ``predict`` only if it is not the test split.
    """

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, Split] = {}

    @abstractmethod
    def make_sampler(self, split: str, *, shuffle: bool) -> EpochSampler:
        """Return the sampler of this process's batches of a split."""

    def loader_options(self) -> dict[str, Any]:
        """Return further arguments of `DataLoader`; none for a data set in memory."""
        # Such a data set yields a batch by a single indexing; workers would only add copies.
        return {}

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer else 1

    def missing_splits(self, stage: str) -> list[str]:
        """Return the splits that a stage needs and that have not been read yet."""
        return [split for split in NEEDED[TrainerFn(stage)] if split not in self.datasets]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training split."""
        sampler = self.make_sampler("train", shuffle=True)
        return ReproducibleLoader(self.datasets["train"], sampler, **self.loader_options())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the validation split, always the same."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test split, always the same."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches to predict, by default the test split, always the same."""
        return self._evaluation_loader("predict" if "predict" in self.datasets else "test")

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        return DataLoader(
            self.datasets[split],
            batch_size=None,
            sampler=self.make_sampler(split, shuffle=False),
            worker_init_fn=outlive_signals,
            **self.loader_options(),
        )
