"""What every data module does with its splits: one method makes the batches of all."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from datamodules.gathering import gather
from datamodules.resumable import RandomState, ResumableLoader
from datamodules.sampling import ShuffledBatchSampler
from errors import UserError

Split = TypeVar("Split", bound=Dataset)  # type: ignore[type-arg]

NEEDED = {
    TrainerFn.FITTING: ("train", "val"),
    TrainerFn.VALIDATING: ("val",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("test",),
}
"""Splits that a stage of the trainer needs."""


class SplitDataModule(LightningDataModule, Generic[Split]):
    """Give each stage its split.

    Attributes:
        datasets: data sets by split; ``predict`` where it is not the test split.
        batch_in_hand: the last batch that was handed over.
        split_in_hand: the split that it is of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, Split] = {}
        self.batch_in_hand: Any = None
        self.split_in_hand = "train"
        self._resumed_random_state: RandomState | None = None
        self._random_state_before_batch: RandomState | None = None
        self._goes_back = False

    @abstractmethod
    def make_dataloader(self, split: str, *, shuffle: bool) -> DataLoader[Any]:
        """Return the batches of a split."""

    @abstractmethod
    def describe(self, batch: Any) -> str:
        """Return the size of the batch in hand, or of a part of it, and which examples it holds."""

    def load_from_memory(
        self, split: str, batch_size: int, *, shuffle: bool, seed: int, **options: Any
    ) -> ResumableLoader:
        """Return the batches of a split that is in memory and is indexed by tensors of places.

        Args:
            split: its name.
            batch_size: most examples in a batch of one process.
            shuffle: whether the order changes with the epoch.
            seed: of the order.
            options: other arguments of `ShuffledBatchSampler`.
        """
        dataset = self.datasets[split]
        sampler = ShuffledBatchSampler(
            len(dataset),  # type: ignore[arg-type] # a Dataset has a length where it can be indexed
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
            **options,
        )
        # A batch is one indexing: worker processes would only copy.
        return ResumableLoader(dataset, batch_size=None, sampler=sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generators of every process, for the checkpoint."""
        # Until the first batch of a resumed training the restored state is only kept.
        state = self._resumed_random_state or RandomState.now()
        if self._goes_back:
            assert self._random_state_before_batch is not None
            state = self._random_state_before_batch
        return {"random_states": gather([state.to_checkpoint()])}

    def put_batch_back(self) -> None:
        """Make the checkpoint one of before the training batch in hand, which is not finished."""
        assert self.trainer is not None
        loader: Any = self.trainer.train_dataloader
        loader.yielded -= 1
        self._goes_back = True

    def take_batch_again(self) -> None:
        """Go on with the batch that was put back."""
        assert self.trainer is not None
        loader: Any = self.trainer.train_dataloader
        loader.yielded += 1
        self._goes_back = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep this process's random state until the first batch of the resumed training.

        Raises:
            UserError: if the checkpoint is of another number of processes.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        states = state["random_states"]
        if len(states) != self.world_size:
            raise UserError(
                f"the checkpoint was written by {len(states)} processes and cannot be resumed "
                f"exactly by {self.world_size}: use as many devices"
            )
        self._resumed_random_state = RandomState.from_checkpoint(states[self.rank])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Restore the random state where training goes on: augmentation comes next."""
        self.batch_in_hand = batch
        if self.trainer is None:
            return batch
        if self.trainer.validating or self.trainer.sanity_checking:
            self.split_in_hand = "val"
        elif not self.trainer.training:
            self.split_in_hand = "predict" if "predict" in self.datasets else "test"
        else:
            self.split_in_hand = "train"
            if self._resumed_random_state is not None:
                self._resumed_random_state.restore()
                self._resumed_random_state = None
                # Lightning counts one too many where it was interrupted behind a validation.
                loop = self.trainer.fit_loop.epoch_loop
                loop._batches_that_stepped = self.trainer.global_step  # noqa: SLF001
            self._random_state_before_batch = RandomState.now()
        return batch

    @property
    def rank(self) -> int:
        """Return this process's number."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self.trainer.world_size if self.trainer else 1

    def missing_splits(self, stage: str) -> list[str]:
        """Return the splits that a stage needs and that are not read yet."""
        return [split for split in NEEDED[TrainerFn(stage)] if split not in self.datasets]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training split."""
        return self.make_dataloader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the validation split, in an order of their own."""
        return self.make_dataloader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test split, in an order of their own."""
        return self.make_dataloader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of what is to be predicted, by default the test split."""
        split = "predict" if "predict" in self.datasets else "test"
        return self.make_dataloader(split, shuffle=False)
