"""Graceful shutdown: a signal stops training at a point where it can resume exactly."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from engine.distributed import gather
from engine.progress import accumulates_gradients
from errors import UserError

GRACE_SECONDS = 60
"""How long a run may take to finish its batch after the first SIGTERM."""
STOP_WATCHING, BATCH_DONE = b"\0", b"\xff"  # beside the numbers of signals
REPEAT_SECONDS = 1
"""A SIGTERM this soon after the first is the same request: schedulers send several."""


class Interrupted(SystemExit):
    """A signal has stopped all processes between two batches."""


class GracefulShutdown(Callback):
    """Let SIGTERM, Ctrl-C and SLURM's warning stop fit between two batches, in all processes.

    Lightning's handlers act wherever the signal arrives: the one for SIGUSR1 saves a checkpoint in
    the middle of a step, and the one for SIGTERM communicates between processes that may already be
    communicating. The handlers here only record the signal. Before each batch, the processes agree
    on whether any of them was asked to stop.

    A second Ctrl-C stops at once. If a process does not finish its batch, even because it hangs in
    a collective, it ends at a second SIGTERM or `GRACE_SECONDS` after the first.

    Outside of fit, where there is nothing to save, SIGTERM ends the process as usual.

    Args:
        slurm: SLURM's environment, if SLURM should requeue the job after its warning.
    """

    def __init__(self, slurm: SLURMEnvironment | None = None) -> None:
        self._received = 0
        self._requeue_signal = int(slurm.requeue_signal or 0) if slurm else 0
        self._pipe: int | None = None
        self._agrees_in_validation = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which gives them back after fit."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which gives them back after fit."""
        self._listen()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In fit, see whether all processes have as many batches; elsewhere, let SIGTERM end it."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)
        elif trainer.world_size > 1:
            self._agrees_in_validation = len(set(gather([str(trainer.num_val_batches)]))) == 1

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give SIGTERM its usual effect outside of fit."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    on_predict_start = on_test_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._pipe, STOP_WATCHING)
            os.close(self._pipe)
            self._pipe = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching: saving has no time limit."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before this batch if asked to."""
        self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop before this batch if asked to."""
        if trainer.state.fn == "fit" and self._agrees_in_validation:
            self._stop_if_asked(trainer)

    def _listen(self) -> None:
        if self._pipe is None:
            reader, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            # A loader worker is a fork: its signals do not concern this process.
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
            threading.Thread(target=_watch, args=(reader,), daemon=True).start()
        for number in {signal.SIGTERM, signal.SIGINT, self._requeue_signal} - {0}:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                signal.default_int_handler(number, frame)
            rank_zero_info("Stopping after this batch; press Ctrl-C again to stop at once.")
        if self._received != self._requeue_signal or not self._requeue_signal:
            self._received = number  # SLURM sends SIGTERM after its warning

    def _stop_if_asked(self, trainer: Trainer) -> None:
        # Accumulated gradients are not in a checkpoint; a validation after the last of max_steps is
        # not resumed by Lightning.
        if accumulates_gradients(trainer) or trainer.global_step == trainer.max_steps:
            if self._received and self._pipe is not None:
                os.write(self._pipe, BATCH_DONE)
            return
        number = self._agree(trainer)
        if number:
            self._received = number
            raise Interrupted(128 + number)

    def _agree(self, trainer: Trainer) -> int:
        """Return the signal that stops all processes, 0 for none; SLURM's warning comes first."""
        number, warning = self._received, self._requeue_signal
        if trainer.world_size > 1:
            rank = 1000 + number if number and number == warning else number
            ours = torch.tensor(rank, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(ours, reduce_op="max")) % 1000
        return number

    def requeue(self) -> None:
        """Ask SLURM to requeue the job if SLURM has stopped it.

        Raises:
            UserError: if SLURM refuses.
        """
        if not self._received or self._received != self._requeue_signal:
            return
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)  # noqa: S607
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"SLURM did not requeue job {job} ({error}): submit it again with --ckpt_path last"
            ) from error
        rank_zero_info(f"SLURM will start job {job} again; it resumes from last.ckpt")


def _watch(reader: int) -> None:
    """End a process that does not react to SIGTERM; runs in a thread.

    Python runs signal handlers between two bytecodes of the main thread, so never while that thread
    waits in a collective for a process that hangs. The pipe is written in C, immediately.
    """
    first = latest = 0.0  # when the first SIGTERM came, and the latest batch after it ended
    while True:
        left = max(latest + GRACE_SECONDS - time.monotonic(), 0) if first else None
        if not select.select([reader], [], [], left)[0]:
            _end(f"SIGTERM, {GRACE_SECONDS} s ago,")
        number = os.read(reader, 1)
        if number == STOP_WATCHING:
            os.close(reader)
            return
        if number == BATCH_DONE:
            latest = time.monotonic()
        elif number[0] == signal.SIGTERM:
            if first and time.monotonic() - first > REPEAT_SECONDS:
                _end("a second SIGTERM")
            first = latest = first or time.monotonic()


def _end(why: str) -> NoReturn:
    sys.stderr.write(f"error: stopped by {why} within a batch: resume with --ckpt_path last\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)
