"""A training run that is resumed sees the batches and the random numbers it would have seen."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from errors import UserError


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that knows how many batches of which epoch it has yielded.

    Lightning keeps its state in the checkpoint. Its sampler yields whole batches, shuffles by
    ``epoch`` and has an attribute ``skip``, the batches to leave out at its next iteration, so that
    a resumed epoch reads nothing twice, with any number of worker processes.

    Its own generator seeds the workers: the global one is the model's alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["generator"] = torch.Generator()
        super().__init__(*args, **kwargs)
        self._yielded = 0
        self._epoch = 0
        self._resumed: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: it begins at the first batch, when Lightning has told the sampler the epoch.
        sampler: Any = self.sampler
        resumed, self._resumed = self._resumed, None
        self._epoch = sampler.epoch
        self._yielded = resumed[1] if resumed and resumed[0] == sampler.epoch else 0
        sampler.skip = self._yielded
        for batch in super().__iter__():
            self._yielded += 1  # before the batch is used: a checkpoint is written behind it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of batches yielded in it and that of all its batches."""
        return {"epoch": self._epoch, "yielded": self._yielded, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there.

        Raises:
            UserError: if the epochs are cut into other batches now.
        """
        if state["batches"] != len(self):
            raise UserError(
                f"the checkpoint's epochs have {state['batches']} batches, this configuration's "
                f"{len(self)}: resume with the data, batch_size, steps_per_execution and number "
                "of devices it was trained with"
            )
        self._resumed = (state["epoch"], state["yielded"])


def collect_random_state() -> dict[str, Any]:
    """Return the state of this process's global generators, in types that torch.load trusts."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 # libraries may draw from it
    assert isinstance(numpy_state, dict)
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every global generator of this process."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    stored = state["numpy"]
    key = stored["key"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        ("MT19937", key, stored["pos"], stored["has_gauss"], stored["gauss"])
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
