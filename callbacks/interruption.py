"""Stopping training on a signal, so that it can go on exactly where it stopped."""

import os
import signal
import subprocess
from types import FrameType
from typing import Any

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from errors import UserError


class Interruption(Callback):
    """Let SIGTERM, Ctrl-C and SLURM's warning stop fit between two batches, in all processes.

    Lightning's handlers act where the signal arrives: SIGUSR1's saves a checkpoint in the middle of
    a step, and SIGTERM's communicates between processes that may be communicating already. These
    only take note; behind each batch the processes agree on whether one of them was asked to stop.
    The second Ctrl-C stops at once.

    Attributes:
        signal_number: the signal that stopped the run; 0 for none.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._received = 0
        self._requeue_signal = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning; it gives them back behind fit."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning; it gives them back behind fit."""
        self._listen(trainer)

    def _listen(self, trainer: Trainer) -> None:
        environment = trainer._accelerator_connector.cluster_environment  # noqa: SLF001
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = int(environment.requeue_signal or 0)
            signal.signal(self._requeue_signal, self._note)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                signal.default_int_handler(number, frame)
            rank_zero_info("Stopping behind this batch; press Ctrl-C again to stop at once.")
        if self._received != self._requeue_signal or not self._requeue_signal:
            self._received = number  # SLURM sends SIGTERM behind its warning

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop behind this batch if asked to."""
        self._agree(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop behind this batch if asked to."""
        self._agree(trainer)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.fit_loop._should_accumulate():  # noqa: SLF001
            return  # gradients that are being accumulated are not in a checkpoint
        if trainer.global_step == trainer.max_steps:
            return  # Lightning would not take up what is left: a validation at most
        number = self._received
        if trainer.world_size > 1:
            ours = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(ours, reduce_op="max"))
        if number:
            self.signal_number = number
            # Lightning raises its SIGTERMException where the batch is counted as done.
            trainer._signal_connector.received_sigterm = True  # noqa: SLF001

    def requeue(self) -> None:
        """Ask SLURM to start the job again if it was SLURM that stopped it.

        Raises:
            UserError: if SLURM refuses.
        """
        if self.signal_number and self.signal_number == self._requeue_signal:
            job = os.environ["SLURM_JOB_ID"]
            if "SLURM_ARRAY_JOB_ID" in os.environ:
                job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            try:
                subprocess.run(["scontrol", "requeue", job], check=True)  # noqa: S607
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserError(
                    f"SLURM did not requeue job {job} ({error}): submit it again with "
                    "--ckpt_path last"
                ) from error
            rank_zero_info(f"SLURM starts job {job} again; it goes on from last.ckpt")
