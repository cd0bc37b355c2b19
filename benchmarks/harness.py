"""The benchmarks' common ground: contenders take turns, and ratios count.

The speed of a shared machine drifts by more than contenders differ. Therefore all contenders do the
same work once in each round, A B C, A B C, …, and what is reported is the median over the rounds
of a peer's time divided by ours.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook

OURS = "ours"
"""Name of the suite among the contenders."""
Contender = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Times of contenders that did the same work in turn.

    Attributes:
        work: what each contender does in a round.
        seconds: times of each contender, one a round.
        targets: minimum ratio, peer's time / ours, required of the suite, by peer.
    """

    work: str
    seconds: Mapping[str, Sequence[float]]
    targets: Mapping[str, float] = field(default_factory=dict)

    def ratios(self, peer: str) -> list[float]:
        """Return the peer's time divided by ours, for each round."""
        pairs = zip(self.seconds[peer], self.seconds[OURS], strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def rows(self) -> list[list[str]]:
        """Return a row of `COLUMNS` for each peer."""
        rows = []
        for peer in self.seconds:
            if peer == OURS:
                continue
            ratios = self.ratios(peer)
            target = f"{self.targets[peer]:.2f}" if peer in self.targets else ""
            spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
            times = [statistics.median(self.seconds[name]) for name in (OURS, peer)]
            ratio = f"{statistics.median(ratios):.2f}"
            rows.append([self.work, peer, *(show_seconds(t) for t in times), ratio, spread, target])
        return rows


COLUMNS = ["work", "peer", "ours", "peer's time", "peer / ours", "range", "target"]


@dataclass(frozen=True)
class Section:
    """What one script measured.

    Attributes:
        title: heading.
        text: what was done, and with what data.
        comparisons: times of contenders.
        header: columns of a further table.
        rows: rows of that table.
    """

    title: str
    text: str
    comparisons: Sequence[Comparison] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def tables(self) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
        """Return the tables, each with its columns."""
        compared = [row for comparison in self.comparisons for row in comparison.rows()]
        tables = [(COLUMNS, compared), (self.header, self.rows)]
        return [(header, rows) for header, rows in tables if rows]


def show_seconds(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def stopwatch(function: Contender) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run_measured(command: Sequence[str], **options: Any) -> tuple[str, int]:
    """Run a command; return its output and its peak memory in MiB.

    Args:
        command: the command.
        options: further arguments of `subprocess.Popen`.

    Raises:
        SystemExit: if it fails, with its output.
    """
    with TemporaryFile("w+") as output, TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stdout=output, stderr=messages, **options)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        messages.seek(0)
        if process.returncode:
            sys.exit(output.read() + messages.read())
        return output.read(), usage.ru_maxrss // 1024


def take_turns(
    work: str,
    contenders: Mapping[str, Contender],
    rounds: int = 5,
    targets: Mapping[str, float] | None = None,
) -> Comparison:
    """Let each contender do its work once to warm up, then once a round."""
    for function in contenders.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            seconds[name].append(stopwatch(function))
    return Comparison(work, seconds, targets or {})


class OwnProcess:
    """An object in a process of its own, so that its memory and caches are nobody else's.

    Args:
        make: builds the object; can be pickled.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        context.Process(target=obey, args=(theirs, make), daemon=True).start()
        theirs.close()

    def method(self, name: str) -> Contender:
        """Return a function that calls a method of the object and waits for its end."""

        def call() -> None:
            self._connection.send(name)
            self._connection.recv()

        return call


def obey(connection: Connection, make: Callable[[], object]) -> None:
    """Build an object, and call the methods whose names are received, until nobody sends any."""
    made = make()
    with suppress(EOFError):
        while True:
            getattr(made, connection.recv())()
            connection.send(None)


class Turns(Callback):
    """Let peers take their turns between the epochs of a fit, and time everyone.

    A fit is a contender that cannot be called once a round; so the rounds are its epochs. The
    first one warms up.

    Attributes:
        training_peers: contenders that train an epoch.
        validation_peers: contenders that validate.
        training: seconds of each contender's training epochs.
        validation: seconds of each contender's validations.
        threads: PyTorch's own number of threads, which peers use.
    """

    threads: ClassVar[int]
    training_peers: ClassVar[Mapping[str, Contender]]
    validation_peers: ClassVar[Mapping[str, Contender]]
    training: ClassVar[dict[str, list[float]]]
    validation: ClassVar[dict[str, list[float]]]

    @classmethod
    def prepare(
        cls,
        training_peers: Mapping[str, Contender],
        validation_peers: Mapping[str, Contender] | None = None,
    ) -> list[str]:
        """Set the peers of the next fit, and return the arguments that it needs."""
        cls.training_peers, cls.validation_peers = training_peers, validation_peers or {}
        cls.training = {name: [] for name in (OURS, *cls.training_peers)}
        cls.validation = {name: [] for name in (OURS, *cls.validation_peers)}
        cls.threads = torch.get_num_threads()
        return [f"--trainer.callbacks+={cls.__module__}.{cls.__qualname__}"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the peers do their work; then start the clock."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        for peers, seconds in (
            (self.training_peers, self.training),
            (self.validation_peers, self.validation),
        ):
            for name, function in peers.items():
                took = stopwatch(function)
                if trainer.current_epoch:
                    seconds[name].append(took)
        torch.set_num_threads(threads)
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training; start that of validation."""
        self._trained = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of validation."""
        self._validated = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's times."""
        if trainer.current_epoch:
            self.training[OURS].append(self._trained - self._start)
            self.validation[OURS].append(self._validated - self._trained)


class EndAfterFirstStep(Callback):
    """End the process after the first optimizer step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register a hook that ends it, so that only the way to the first step is timed."""
        register_optimizer_step_post_hook(lambda *_: os._exit(0))


def describe_machine() -> dict[str, str]:
    """Return what the times depend on."""
    capabilities = torch.cpu.get_capabilities()
    native = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "bf16")
              if capabilities.get(name)]  # fmt: skip
    return {
        "CPU": f"{capabilities.get('cpu_name', platform.processor())} ({', '.join(native)})",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }


def report(
    measure: Callable[[argparse.Namespace], Section], doc: str | None, *, speech: bool = False
) -> None:
    """Run a script: measure, print the tables and, if asked, write everything as JSON.

    Args:
        measure: function of the options.
        doc: docstring of the script.
        speech: whether it needs clips, and has the option ``--speech``.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if speech:
        about = "corpus in LJ Speech's layout; generated noise by default"
        parser.add_argument("--speech", type=Path, help=about)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    machine, section = describe_machine(), measure(options)
    console = Console()
    console.print(f"{section.title}\n{section.text}")
    for header, rows in section.tables():
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if options.json:
        record: dict[str, Any] = {"machine": machine, **asdict(section)}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
