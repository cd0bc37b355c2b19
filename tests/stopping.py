"""A callback that interrupts training as a scheduler would, and notes what was trained on."""

import os
import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class StopAt(Callback):
    """Append each step's batch to a file; send SIGTERM to this process behind a step.

    Args:
        stream: the file, a line a step: number of the step, indices of the examples.
        step: optimizer steps taken when the signal comes; 0 for never.
        signal_number: another signal than SIGTERM.
    """

    def __init__(
        self, stream: str, step: int = 0, signal_number: int = int(signal.SIGTERM)
    ) -> None:
        self.stream = Path(stream)
        self.step = step
        self.signal_number = signal_number

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seen = batch.indices.tolist() if hasattr(batch, "indices") else batch[0].tolist()
        with self.stream.open("a") as file:
            file.write(f"{trainer.global_step} {seen}\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal_number)


class KeepEachLast(Callback):
    """Before each step copy ``last.ckpt``, as a kill there would leave it.

    Args:
        folder: of the copies, ``<steps taken>.ckpt``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists():
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"{trainer.global_step}.ckpt").write_bytes(last.read_bytes())
