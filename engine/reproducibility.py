"""Exact resume: same random numbers, batches and statistics as without the interruption."""

from collections.abc import Iterator
from typing import Any, TypeVar

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from engine.loader import Moment, ReproducibleLoader, seed_generators
from engine.progress import accumulates_gradients, finish_restart, set_logged_step
from engine.training import TrainingModule
from errors import UserError

Kind = TypeVar("Kind", bound=Callback)

KEY = "reproducibility"
"""Key of the run's identity in a checkpoint."""


class Reproducibility(Callback):
    """Make training depend on the seed alone, so that resuming only needs a batch count.

    With a `ReproducibleLoader` and a `TrainingModule`, a resumed run is exact. Ordinary Lightning
    classes run too: their random numbers are seeded as well, and the log says what is not exact.

    Args:
        seed: seed of the run; a resumed run keeps its original seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._resumed: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}
        self._loader: ReproducibleLoader | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Share the first process's seed: a seed that was drawn differs between processes."""
        self.seed = trainer.strategy.broadcast(self.seed)

    # ------------------------------------------------------------------ the identity of a run

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings that a resumed run must share with this one."""
        checkpoint[KEY] = {**self._identity, "accumulates": accumulates_gradients(trainer)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep these settings until the loader is known; restore the seed.

        Raises:
            UserError: if only the average of the trained weights would be loaded.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint.get(KEY, {})
            if not self._resumed:
                rank_zero_info("Not exact: an earlier version of this suite wrote the checkpoint")
            if self._resumed.get("accumulates"):
                rank_zero_info("Not exact: gradients were being accumulated, and are lost")
            averages = find_callbacks(trainer, WeightAveraging)
            if "current_model_state" in checkpoint and not averages:
                raise UserError(
                    "the run was trained with averaged weights: resume it with the callback that "
                    "averaged them in trainer.callbacks, such as callbacks.ExponentialWeightAverage"
                )
            seed = self._resumed.get("seed", self.seed)
            if seed != self.seed:
                rank_zero_info(f"Resuming with the run's own seed {seed} instead of {self.seed}")
                self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Connect the loader to the trainer.

        Raises:
            UserError: if the resumed run would not see the same batches as the original run.
        """
        self._connect(trainer)
        for scheduler in find_callbacks(trainer, GradientAccumulationScheduler):
            # It acts at the start of an epoch only, which a run resumed within an epoch has not.
            batches = scheduler.get_accumulate_grad_batches(trainer.current_epoch)
            trainer.accumulate_grad_batches = batches
        self._identity = {
            "seed": self.seed,
            "processes": trainer.world_size,
            "precision": trainer.precision,
            "device": trainer.strategy.root_device.type,
        }
        if self._loader is not None:
            self._identity |= {
                "batches": len(self._loader),
                "fingerprint": self._loader.sampler.fingerprint(),
            }
            if self._resumed:
                device = self._identity["device"]
                if self._resumed.get("device", device) != device:
                    rank_zero_info("Not exact: another kind of device draws other random numbers")
                check_identity(self._resumed, self._identity, trainer.fit_loop.restarting)
        self._say_what_is_not_exact(trainer, pl_module)
        self._statistics = [(value, value.clone()) for _, value in running_statistics(pl_module)]

    def _connect(self, trainer: Trainer) -> None:
        loader = trainer.train_dataloader
        self._loader = loader if isinstance(loader, ReproducibleLoader) else None
        if self._loader is not None:
            self._loader.sampler.run_seed = self.seed
            self._loader.progress = trainer.fit_loop.epoch_loop.batch_progress.current
        else:
            moment = Moment(self.seed, trainer.current_epoch, 0, trainer.global_rank)
            seed_generators(moment, "epoch")

    def _say_what_is_not_exact(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reasons, loader = [], trainer.train_dataloader
        if self._loader is None:
            kind = type(loader).__name__
            reasons.append(f"shuffles anew ({kind} is not an engine loader)")
        if not isinstance(pl_module, TrainingModule):
            kind = type(pl_module).__name__
            reasons.append(f"logs means of its later batches ({kind} is no TrainingModule)")
        if reasons:
            rank_zero_info(f"Not exact: an epoch that is resumed {' and '.join(reasons)}")
        if find_callbacks(trainer, StochasticWeightAveraging):
            rank_zero_info(
                "Not exact: a resumed run with StochasticWeightAveraging has another schedule "
                "(callbacks.ExponentialWeightAverage averages weights and resumes exactly)"
            )

    # ------------------------------------------------------------------ random numbers

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Connect the loader, which may be a new one; seed the shuffling of an ordinary one."""
        self._connect(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let all processes compute the epoch's metrics; a resumed epoch ends as any other.

        The progress bar of the first process would compute them alone, and wait for the others.
        """
        _ = trainer.callback_metrics
        finish_restart(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the batch of an ordinary loader; a `ReproducibleLoader` has already done so."""
        if self._loader is None:
            moment = Moment(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
            seed_generators(moment, "model")
        self._step = trainer.global_step
        set_logged_step(trainer, self._step)

    # ------------------------------------------------------------------ the state after a batch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the last optimizer step; save the running statistics before the next batch."""
        if trainer.global_step > self._step:
            set_logged_step(trainer, trainer.global_step - 1)
        for value, before in self._statistics:
            before.copy_(value)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Roll the running statistics back to the last finished batch, for the checkpoint."""
        for value, before in self._statistics:
            value.copy_(before)


def find_callbacks(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the trainer's callbacks of a class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def check_identity(resumed: dict[str, Any], now: dict[str, Any], within_epoch: bool) -> None:
    """Compare the run that wrote a checkpoint with the one that resumes it.

    Raises:
        UserError: if the number of processes or the batches of an unfinished epoch differ.
    """
    if resumed["processes"] != now["processes"]:
        raise UserError(
            f"the checkpoint was written by {resumed['processes']} processes and cannot be resumed "
            f"exactly by {now['processes']}: use the same number of devices"
        )
    if within_epoch and any(resumed.get(key) != now[key] for key in ("batches", "fingerprint")):
        raise UserError(
            f"the checkpoint's epochs have {resumed.get('batches')} batches, this configuration's "
            f"{now['batches']}, and their content differs: resume with the data, batch_size, "
            "steps_per_execution, seed, kind and number of devices that the run was trained with"
        )


def running_statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of each running statistic of the normalization layers."""
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase):
            for key, value in layer.named_buffers(recurse=False):
                yield f"{name}.{key}", value
