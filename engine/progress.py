"""The engine's access to Lightning's training loop: its counters and how it restarts.

Based on the source of pytorch-lightning 2.6.6 (loops/fit_loop.py, training_epoch_loop.py and
evaluation_loop.py). Three other files use one private name each: ``LightningCLI._parser`` in
commands/suite_cli.py, ``WeightAveraging._device`` in callbacks/weight_average.py, and
``_ChildProcessObserver`` in engine/distributed.py.
tests/engine/test_progress.py fails if one of these is missing:

- ``_TrainingEpochLoop._batches_that_stepped``: the step that metrics are logged at.
- ``_FitLoop._restarting``: whether an epoch that was resumed has still to end.
- the layout of ``checkpoint["loops"]``, whose counters decide where a restarted run continues.
"""

from typing import Any

from pytorch_lightning import Trainer


def accumulates_gradients(trainer: Trainer) -> bool:
    """Return whether there are gradients that no optimizer step has used yet."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done = progress.current.completed
    return done % trainer.accumulate_grad_batches != 0 and not is_batch_done(trainer)


def is_batch_done(trainer: Trainer) -> bool:
    """Return whether the latest batch ended with a step, though its last hooks may still run."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    current: Any = progress.current
    # Lightning steps after an epoch's last batch, however many it has accumulated.
    steps = current.ready % trainer.accumulate_grad_batches == 0 or progress.is_last_batch
    return bool(steps and current.processed == current.ready)


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Log the next metrics at ``step``.

    Lightning counts batches, but a batch can hold several optimizer steps. Also, on resume
    Lightning counts one too many if the checkpoint was written during a validation.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step  # noqa: SLF001


def finish_restart(trainer: Trainer) -> None:
    """Treat the end of a resumed epoch as any other: Lightning would not step ReduceLROnPlateau."""
    trainer.fit_loop._restarting = False  # noqa: SLF001


def describe_between_batches(
    trainer: Trainer, checkpoint: dict[str, Any], *, validation_cut_off: bool
) -> None:
    """Set a checkpoint's counters to the state between two batches.

    Lightning counts a batch as ready once it is fetched. A run resumed from here starts that batch
    again, or the validation that was cut off, from its beginning. A checkpoint that a callback
    writes at the end of a batch is of the state after it, and before a validation that may be due.

    Args:
        trainer: trainer that saves it.
        checkpoint: checkpoint that is about to be saved.
        validation_cut_off: whether the validation after the last batch still has to run.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    current = batches["current"]
    if is_batch_done(trainer) and current["ready"] != current["completed"]:
        for counts in (batches["total"], current):
            counts["completed"] = counts["processed"]
        validation_cut_off = True
    elif current["ready"] != current["completed"]:
        for counts in (batches["total"], current):
            counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
        batches["is_last_batch"] = False
    if validation_cut_off:
        # The counters of a run stopped within the first batch of a validation.
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        validation["is_last_batch"] = False
