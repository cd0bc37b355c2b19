"""Lightning still has the internals that the engine relies on."""

import copy
from importlib.metadata import version

from pytorch_lightning import Trainer

from engine.progress import describe_between_batches, set_logged_step


def test_lightning_still_has_what_the_engine_touches() -> None:
    found = f"pytorch-lightning {version('pytorch-lightning')} has no"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_batches_that_stepped"), f"{found} _batches_that_stepped"
    assert hasattr(trainer.fit_loop, "_restarting"), f"{found} _restarting"
    set_logged_step(trainer, 7)
    state = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
    assert state["loops"]["fit_loop"]["epoch_loop.state_dict"] == {"_batches_that_stepped": 7}
    counters = {"total", "current", "is_last_batch"}
    for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        assert name in state["loops"]["fit_loop"], f"{found} {name} in its checkpoints"
        assert set(state["loops"]["fit_loop"][name]) == counters


def test_a_fetched_batch_is_not_counted_and_a_validation_restarts_from_its_beginning() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit_loop.epoch_progress.increment_ready()
    trainer.fit_loop.epoch_progress.increment_started()
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.increment_by(3)
    progress.increment_ready()
    progress.is_last_batch = True
    before = copy.deepcopy(progress)
    checkpoint = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
    describe_between_batches(trainer, checkpoint, validation_cut_off=True)
    assert progress == before
    resumed = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").fit_loop
    resumed.load_state_dict(checkpoint["loops"]["fit_loop"])
    resumed.epoch_loop.update_restart_stage()
    assert resumed.epoch_loop.batch_progress.current.ready == 3
    assert not resumed.epoch_loop.batch_progress.is_last_batch
    assert resumed.epoch_loop.val_loop.restarted_mid_evaluation
    assert resumed.epoch_loop.val_loop.batch_progress.current.ready == 0
