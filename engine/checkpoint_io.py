"""Checkpoint files that are there whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from errors import UserError


class DurableCheckpointIO(TorchCheckpointIO):
    """Write beside the target, wait for the disk, then rename onto the target.

    Whatever happens meanwhile (a kill, a full disk, a power cut), the target is the previous
    checkpoint or the new one. Lightning's own writes to the folder for temporary files first and
    moves from there, which is a copy if that is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: if it cannot be written. The previous file is still there.
        """
        target = Path(path)
        # One name for all attempts: the next one overwrites what a kill has left.
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
            raise UserError(f"{target} could not be written ({reason}); {kept}") from error
