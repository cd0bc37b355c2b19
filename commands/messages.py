"""What the user of a stage reads: one clear line, and no noise."""

import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

RENAMED = {
    "max_faulty_clips": "data.init_args.max_unreadable_clips",
    "augment": "model.init_args.network.init_args.augment",  # of the recognizer
}
"""Arguments renamed since earlier versions: old name → new key."""

NOISE = (
    # Advice of Lightning that does not apply to this suite.
    r"`.*\.configure_optimizers` will be overridden by",  # by the optimizer of the configuration
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # the value is equal in all processes
    r"You're resuming from a checkpoint that ended before the epoch ended",  # logged by us
    r"The '.*dataloader' does not have many workers",  # data in memory need no workers
    r"The number of training batches .* is smaller than the logging interval",
    r"Checkpoint directory .* exists and is not empty",  # it is the resumed run's
    r"LightningCLI's args parameter is intended",  # cli.main(args) is called from tests
    r"You're using the WeightAveraging callback, but loading a checkpoint outside",
    "No (positive|negative) samples in targets",  # the class is left out
    # Between libraries.
    r".*LeafSpec.*is deprecated",
)
"""Warnings that do not help this suite's users, as regular expressions."""
NOISE_LOGGED = ("Tip:", "Loading `train_dataloader` to estimate")


def explain(message: str) -> str:
    """Return jsonargparse's error as one line; name the new key if an old one was given."""
    for old, new in RENAMED.items():
        if f"'{old}' is not accepted" in message:
            return f"{old} is now {new}: change the configuration"
    return shorten(message)


def shorten(message: str) -> str:
    """Return jsonargparse's error as one line, without the list of types that it tried."""
    noise = re.compile(
        r"Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>"
        r"|Given value type:|Given value: (Namespace|NestedArg)\("
    )
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line.removeprefix("- ") for line in lines if line and not noise.match(line))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that GPU or CPU memory ran out."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def is_useful(record: logging.LogRecord) -> bool:
    """Return whether a logged message helps this suite's users."""
    return not any(noise in record.getMessage() for noise in NOISE_LOGGED)


def quieten() -> None:
    """Suppress warnings that are only noise to users; keep the others."""
    for module in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(f"{module}.utilities.rank_zero")
        logger.addFilter(is_useful)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def is_refusal_of_lightning(error: BaseException) -> bool:
    """Return whether Lightning itself raised an error: a setting is wrong, or a package missing."""
    if not isinstance(error, ValueError | RuntimeError | ModuleNotFoundError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith("pytorch_lightning.")


@contextmanager
def only_warnings() -> Iterator[None]:
    """Keep the information that Lightning logs from the terminal."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
