"""Exact, interruptible runs.

A run is a folder (`RunDirectory`). It can be stopped at any moment and resumes as if nothing had
happened: `Reproducibility` makes every random choice a function of (seed, epoch, batch, rank),
`RunCheckpoint` saves the state between two batches, `GracefulShutdown` stops there on a signal.
"""

from engine.checkpoint_io import DurableCheckpointIO
from engine.checkpoints import RunCheckpoint
from engine.distributed import gather, is_lost_peer, leave_process_group, observe_patiently
from engine.initialization import initialize_from
from engine.loader import EpochSampler, ReproducibleLoader, end_workers, outlive_signals
from engine.locks import creation, lock
from engine.memory import keep_freed_memory
from engine.metrics_csv import MetricsCSV, read_rows
from engine.optimizer_settings import OptimizerSettings, fuse_steps, group_parameters
from engine.precision import choose_precision
from engine.reproducibility import Reproducibility, find_callbacks
from engine.run_directory import (
    RunDirectory,
    Scores,
    check_name,
    find_checkpoint,
    read_checkpoint,
)
from engine.run_statistics import RunStatistics
from engine.signals import GracefulShutdown, Interrupted
from engine.training import NonFiniteLossError, TrainingModule, describe
from engine.whole import whole_file, whole_folder

__all__ = [
    "DurableCheckpointIO",
    "EpochSampler",
    "GracefulShutdown",
    "Interrupted",
    "MetricsCSV",
    "NonFiniteLossError",
    "OptimizerSettings",
    "Reproducibility",
    "ReproducibleLoader",
    "RunCheckpoint",
    "RunDirectory",
    "RunStatistics",
    "Scores",
    "TrainingModule",
    "check_name",
    "choose_precision",
    "creation",
    "describe",
    "end_workers",
    "find_callbacks",
    "find_checkpoint",
    "fuse_steps",
    "gather",
    "group_parameters",
    "initialize_from",
    "is_lost_peer",
    "keep_freed_memory",
    "leave_process_group",
    "lock",
    "observe_patiently",
    "outlive_signals",
    "read_checkpoint",
    "read_rows",
    "whole_file",
    "whole_folder",
]
