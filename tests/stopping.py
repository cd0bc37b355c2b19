"""Callbacks that interrupt training like a scheduler or a fault, and record its batches."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Stream(Callback):
    """Append the batch of each step to a file: step number and indices of the examples.

    Args:
        path: file to write; with several processes, one per rank, with the rank as suffix.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seen = batch.indices.tolist() if hasattr(batch, "indices") else batch[0].tolist()
        suffix = f".{trainer.global_rank}" if trainer.world_size > 1 else ""
        with Path(self.path + suffix).open("a") as file:
            file.write(f"{trainer.global_step} {seen}\n")


class StopEarly(Callback):
    """End training after the second batch, as `EarlyStopping` and ``max_time`` do."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = batch_idx == 1


class StopAt(Callback):
    """Send signals to this process after a step.

    Args:
        batch: number of training batches finished when they are sent.
        validation_batch: index of the validation batch after which they are sent; None sends them
            after the training batch.
        signals: signals to send, in order.
        rank: rank of the process that gets them.
    """

    def __init__(
        self,
        batch: int,
        validation_batch: int | None = None,
        signals: tuple[int, ...] = (int(signal.SIGTERM),),
        rank: int = 0,
    ) -> None:
        self.batch = batch
        self.validation_batch = validation_batch
        self.signals = signals
        self.rank = rank

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.validation_batch is None:
            self._stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == self.validation_batch:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        batches = trainer.fit_loop.total_batch_idx + 1
        if batches == self.batch and trainer.global_rank == self.rank:
            for number in self.signals:
                os.kill(os.getpid(), number)


class FaultError(Exception):
    """Raised by `FailAt`."""


class FailAt(Callback):
    """Raise an exception in a hook.

    Args:
        hook: name of the hook.
        step: number of optimizer steps taken when it raises.
    """

    def __init__(self, hook: str, step: int) -> None:
        def fail(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == step:
                raise FaultError(hook)

        setattr(self, hook, fail)


class HangAt(Callback):
    """Hang in the first batch.

    Args:
        file: file to create when the process hangs.
        rank: rank of the process that hangs.
    """

    def __init__(self, file: str, rank: int = 0) -> None:
        self.file = Path(file)
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_rank == self.rank:
            self.file.touch()
            time.sleep(1000)

    on_test_batch_start = on_train_batch_start


class Slow(Callback):
    """Wait in each batch.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.seconds)


class KeepEachLast(Callback):
    """Copy ``last.ckpt`` after each step, as a kill at that moment would leave it.

    Args:
        folder: folder of the copies, ``<steps taken>.ckpt``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists():
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"{trainer.global_step}.ckpt").write_bytes(last.read_bytes())


class Payload:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))
