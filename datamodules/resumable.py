"""A training run that is resumed sees the batches and the random numbers it would have seen."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from errors import UserError

GRACE = 30
"""Seconds that a loader's worker goes on for behind a SIGTERM."""


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that knows how many batches of which epoch it has yielded.

    Lightning keeps its state in the checkpoint. Its sampler yields whole batches, shuffles by
    ``epoch`` and has an attribute ``skip``, the batches to leave out at its next iteration, so that
    a resumed epoch reads nothing twice, with any number of worker processes; its ``fingerprint``
    tells its batches from others.

    Its own generator seeds the workers: the global one is the model's alone.

    Attributes:
        yielded: batches of the current epoch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["generator"] = torch.Generator()
        kwargs["worker_init_fn"] = outlive_signals
        super().__init__(*args, **kwargs)
        self.yielded = 0
        self._epoch = 0
        self._resumed = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: it begins at the first batch, when Lightning has told the sampler the epoch.
        sampler: Any = self.sampler
        goes_on, self._resumed = self._resumed and self._epoch == sampler.epoch, False
        self._epoch = sampler.epoch
        self.yielded = self.yielded if goes_on else 0
        sampler.skip = self.yielded
        for batch in super().__iter__():
            self.yielded += 1  # before the batch is used: a checkpoint is written behind it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of batches yielded in it, and what all its batches are."""
        sampler: Any = self.sampler
        return {
            "epoch": self._epoch,
            "yielded": self.yielded,
            "batches": len(self),
            "fingerprint": sampler.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there.

        Raises:
            UserError: if the epochs are cut into other batches now.
        """
        now = self.state_dict()
        if state["batches"] != now["batches"] or state.get("fingerprint") != now["fingerprint"]:
            raise UserError(
                f"the checkpoint's epochs have {state['batches']} batches, this configuration's "
                f"{now['batches']}, and they are not the same: resume with the data, batch_size, "
                "steps_per_execution, seed and number of devices it was trained with"
            )
        self._epoch, self.yielded = state["epoch"], state["yielded"]
        self._resumed = True


def outlive_signals(worker: int) -> None:  # noqa: ARG001 # a DataLoader calls it so
    """Let a worker survive the signals that stop training, until the batch in hand is done.

    They may go to all processes of a job, and a worker that dies takes training with it. SIGTERM
    is also what ends the workers that are left when Python exits: so it does after `GRACE` seconds.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@dataclass(frozen=True)
class RandomState:
    """The states of a process's global generators."""

    torch: Tensor
    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cuda: Tensor | None

    @classmethod
    def now(cls) -> "RandomState":
        """Return the current states."""
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 # libraries may draw from it
        assert isinstance(numpy_state, dict)
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(torch.get_rng_state(), random.getstate(), numpy_state, cuda)

    def restore(self) -> None:
        """Set every generator."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return it in types that torch.load trusts."""
        key = torch.from_numpy(self.numpy["state"]["key"].astype(np.int64))
        position = int(self.numpy["state"]["pos"])
        gauss = (int(self.numpy["has_gauss"]), float(self.numpy["gauss"]))
        return {
            "torch": self.torch,
            "python": self.python,
            "numpy": {"key": key, "pos": position, "has_gauss": gauss[0], "gauss": gauss[1]},
            "cuda": self.cuda,
        }

    @classmethod
    def from_checkpoint(cls, state: dict[str, Any]) -> "RandomState":
        """Return what `to_checkpoint` made a dictionary of."""
        version, internal, gauss = state["python"]
        numpy_state = {
            "bit_generator": "MT19937",
            "state": {
                "key": state["numpy"]["key"].numpy().astype(np.uint32),
                "pos": state["numpy"]["pos"],
            },
            "has_gauss": state["numpy"]["has_gauss"],
            "gauss": state["numpy"]["gauss"],
        }
        python = (version, tuple(internal), gauss)
        return cls(state["torch"], python, numpy_state, state.get("cuda"))
