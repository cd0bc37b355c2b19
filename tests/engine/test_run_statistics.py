from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from pytorch_lightning import LightningModule

from engine import RunStatistics


@pytest.fixture
def trainer() -> Any:
    """Return a stub with the parts of a trainer that the callback uses."""
    return SimpleNamespace(
        loggers=[MagicMock()],
        current_epoch=0,
        global_step=1,
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
    )


@pytest.mark.parametrize("is_resumed", [False, True])
def test_validations_do_not_count_and_an_epoch_that_was_resumed_has_no_time(
    trainer: Any, is_resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds of training, ten of validation, three of training, ten of validation."""
    now = 0.0
    monkeypatch.setattr("engine.run_statistics.time.perf_counter", lambda: now)
    statistics, module = RunStatistics(), LightningModule()
    statistics.on_train_start(trainer, module)
    if not is_resumed:
        statistics.on_train_epoch_start(trainer, module)
    for seconds in (2, 3):
        statistics.on_train_batch_start(trainer, module, None, 0)
        now += seconds
        statistics.on_validation_start(trainer, module)
        now += 10
    statistics.on_train_epoch_end(trainer, module)
    logged = [call.args[0] for call in trainer.loggers[0].log_metrics.call_args_list]
    times = [row["time/epoch"] for row in logged if "time/epoch" in row]
    assert times == ([] if is_resumed else [5.0])
