"""Checkpoint files that are either complete or absent."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from errors import UserError

HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor)


class DurableCheckpointIO(TorchCheckpointIO):
    """Write next to the target, sync to disk, then rename onto the target.

    Whatever happens meanwhile (a kill, a full disk, a power cut), the target is either the previous
    checkpoint or the new one. Lightning's own implementation writes to the temporary folder and
    then moves the file. If that folder is on another file system, the move is a copy.

    Checkpoints are read without running code of theirs (``weights_only``). Hyper-parameters that a
    module saves are therefore kept as they are if they are plain, and otherwise as text.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: if it cannot be written; the previous file is kept.
        """
        plain = {key: make_plain(checkpoint[key]) for key in HYPER_PARAMETERS if key in checkpoint}
        checkpoint = checkpoint | plain
        target = Path(path)
        # The name is always the same, so that the next attempt overwrites a killed one's remains.
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            part.unlink(missing_ok=True)
            kept = "the previous one is kept" if target.exists() else "there is none yet"
            reason = str(error).partition("\n")[0]
            if isinstance(error, RuntimeError):
                reason = f"is the disk full? {reason}"
            raise UserError(f"{target} could not be written ({reason}); {kept}") from error


def make_plain(value: Any) -> Any:
    """Return mappings and sequences of plain values, with the text of all others."""
    if isinstance(value, Mapping):
        return {str(key): make_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(inner) for inner in value]
    return value if type(value) in PLAIN else str(value)
