"""``sweep``: search hyper-parameters with Optuna; every trial is a run of its own.

Trials wait in the study's database until a process takes them, so that any number of processes and
machines can share one, and an interrupted sweep goes on: a trial that was cut short waits again,
and its run resumes from its last checkpoint.
"""

import fcntl
import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import yaml
from rich.console import Console
from rich.table import Table

from commands.compare import draw_curves, read_curves, read_run
from commands.train import parse
from engine import RunDirectory
from errors import UserError

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise UserError(f"sweep needs the package {error.name}: pip install -e '.[sweep]'") from error

CLI = Path(__file__).parent.parent / "cli.py"
HOST = socket.gethostname()


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how.

    Attributes:
        name: of the sweep; its folder is ``runs/<name>``.
        configs: of the experiment.
        search: key → the values to try, or bounds ``{low, high, log}`` to draw from.
        trials: ``grid`` for every combination once, or a number of trials for Optuna's TPE.
        arguments: more arguments of ``fit`` and ``test``.
        root: folder of the sweep's folder.
    """

    name: str
    configs: list[str]
    search: dict[str, Any]
    trials: int | str
    arguments: list[str]
    root: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """Return where the study and the runs are."""
        return self.root / self.name

    def lock_queue(self) -> IO[str]:
        """Wait until no other process takes or gives back a trial; SQLite lets two take one."""
        return cast("IO[str]", lock(self.folder / ".lock", wait=True))

    def lock_trial(self, values: dict[str, Any]) -> IO[str] | None:
        """Return the lock of the trial with these values, or None if it is worked on."""
        return lock(self.root / f"{self.experiment(values)}.lock", wait=False)

    def fit_arguments(self, values: dict[str, Any]) -> list[str]:
        """Return the command line of one trial, without the stage."""
        layers = [part for config in self.configs for part in ("--config", config)]
        chosen = [f"--{key}={value}" for key, value in values.items()]
        return [*layers, *self.arguments, *chosen, "--experiment", self.experiment(values)]

    def experiment(self, values: dict[str, Any]) -> str:
        """Return the name of a trial's run: the same values, the same run."""
        leaves = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()]
        return f"{self.name}/{','.join(leaves)}".replace(" ", "")

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the values to try."""
        for values in itertools.product(*self.search.values()):
            yield dict(zip(self.search, values, strict=True))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the trial's values, drawn unless they waited in the study."""
        return {
            key: trial.suggest_categorical(key, space)
            if isinstance(space, list)
            else trial.suggest_float(key, space["low"], space["high"], log=space.get("log", False))
            for key, space in self.search.items()
        }


def lock(path: Path, *, wait: bool) -> IO[str] | None:
    """Return a file that is locked until it is closed, by this process and those that inherit it.

    The system closes a dead process's files. Without ``wait`` None if another one has locked it.
    """
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def read_sweep(path: Path, arguments: Sequence[str]) -> Sweep:
    """Read a sweep's YAML.

    Raises:
        UserError: if it is malformed, or searches a key that the experiment does not have.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    required = {"configs", "search", "trials"}
    if not isinstance(content, dict) or not required <= set(content) <= required | {"set"}:
        raise UserError(f"{path} must have the keys configs, search and trials, and perhaps set")
    search, trials = content["search"], content["trials"]
    for key, space in search.items():
        bounds = isinstance(space, dict) and {"low", "high"} <= set(space) <= {"low", "high", "log"}
        if not (isinstance(space, list) and space) and not bounds:
            raise UserError(f"{path}: {key} needs a list of values, or low, high and perhaps log")
        if trials == "grid" and bounds:
            raise UserError(f"{path}: {key} has bounds, a grid needs a list of values")
    if trials != "grid" and not (isinstance(trials, int) and trials > 0):
        raise UserError(f"{path}: trials must be grid or a number above 0, not {trials}")
    fixed = [f"--{key}={value}" for key, value in content.get("set", {}).items()]
    sweep = Sweep(path.stem, content["configs"], search, trials, [*fixed, *arguments])
    for key, space in search.items():  # an unknown key fails now, not in every trial
        values = space if isinstance(space, list) else [space["low"], space["high"]]
        for value in values:
            parse(["fit", *sweep.fit_arguments({key: value})])
    return sweep


def run_sweep(path: Path, arguments: Sequence[str], storage: str | None = None) -> None:
    """Run trials until none is left, then show them and test the winner once.

    Args:
        path: the sweep's YAML.
        arguments: more arguments of ``fit``, for every trial.
        storage: URL of the study's database; a SQLite file in the sweep's folder by default.

    Raises:
        UserError: if the sweep cannot start, or every trial failed.
    """
    sweep = read_sweep(path, arguments)
    config = parse(["fit", *sweep.fit_arguments({})])
    sweep = replace(sweep, root=Path(config.trainer.default_root_dir))
    monitor, mode = config.checkpoint.monitor, config.checkpoint.mode
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with sweep.lock_queue():  # one process fills the queue
        study = optuna.create_study(
            study_name=sweep.name,
            storage=storage or f"sqlite:///{sweep.folder / 'study.db'}",
            sampler=optuna.samplers.TPESampler(),
            direction="minimize" if mode == "min" else "maximize",
            load_if_exists=True,
        )
        if sweep.trials == "grid" and not study.trials:
            for values in sweep.grid():
                study.enqueue_trial(values, user_attrs={"queued": True})
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as at Ctrl-C
    try:
        while work := find_work(study, sweep):
            if work == "take":
                run_trial(study, sweep, monitor, mode)
            else:
                time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, handler)
    with sweep.lock_queue():  # one tests the winner
        if not study.get_trials(states=(TrialState.RUNNING,)):
            report(study, sweep, monitor)


def find_work(study: optuna.Study, sweep: Sweep) -> Literal["take", "wait"] | None:
    """Return whether to take a trial, or to wait for those that others on this machine work on.

    A trial whose processes are dead waits in the queue again. Where only the sweep's process was
    killed, its fit goes on, and the trial is taken up when that has ended.
    """
    others = False
    with sweep.lock_queue():
        for trial in running_here(study):
            lock_file = sweep.lock_trial(trial.params)
            if lock_file is None:
                others = True
                continue
            with lock_file:
                # Its process may have ended well since the study was asked.
                if trial.number in [still.number for still in running_here(study)]:
                    give_back(study, trial.number, trial.params)
    begun = study.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL))
    open_ended = isinstance(sweep.trials, int) and len(begun) < sweep.trials
    if open_ended or study.get_trials(states=(TrialState.WAITING,)):
        return "take"
    return "wait" if others else None


def running_here(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that processes of this machine took and have not ended."""
    running = study.get_trials(states=(TrialState.RUNNING,))
    return [trial for trial in running if trial.user_attrs.get("host") == HOST]


def give_back(study: optuna.Study, number: int, values: dict[str, Any]) -> None:
    """Let a trial that was cut short wait again, under another number."""
    study.tell(number, state=TrialState.PRUNED)
    study.enqueue_trial(values, user_attrs={"queued": True})


def run_trial(study: optuna.Study, sweep: Sweep, monitor: str, mode: str) -> None:
    """Take a trial, fit it in a process of its own and tell the study the best validation score."""
    with sweep.lock_queue():
        trial = study.ask()
        if sweep.trials == "grid" and "queued" not in trial.user_attrs:
            study.tell(trial, state=TrialState.PRUNED)  # another process took the last one
            return
        values = sweep.suggest(trial)
        working = sweep.lock_trial(values)
        if working is None:  # the search has drawn the same values twice
            study.tell(trial, state=TrialState.PRUNED)
            return
        trial.set_user_attr("host", HOST)
    with working:
        fit_trial(study, sweep, trial, values, working, monitor, mode)


def fit_trial(
    study: optuna.Study,
    sweep: Sweep,
    trial: optuna.Trial,
    values: dict[str, Any],
    working: IO[str],
    monitor: str,
    mode: str,
) -> None:
    """Fit a trial's run and tell the study its best validation score, or why there is none."""
    run = RunDirectory(sweep.root / sweep.experiment(values))
    arguments = sweep.fit_arguments(values)
    if (run.checkpoints / "last.ckpt").exists():
        arguments.append("--ckpt_path=last")
    Console().print(f"trial {trial.number}: {run.path}")
    log = run.path.with_suffix(run.path.suffix + ".log")
    with log.open("a", encoding="utf-8") as output:
        # A session of its own: Ctrl-C reaches this process, which stops the other one gently.
        fit = subprocess.Popen(
            [sys.executable, str(CLI), "fit", *arguments],
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(working.fileno(),),  # locked as long as one of the two lives
        )
        try:
            status = fit.wait()
        except BaseException:
            fit.terminate()  # it saves a checkpoint
            fit.wait()
            give_back(study, trial.number, values)
            raise
    curve = read_curves(run.metrics).get(monitor) if run.metrics.exists() else None
    if status or not curve:
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        trial.set_user_attr("error", lines[-1] if lines else f"exit status {status}")
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, (min if mode == "min" else max)(curve.values()))


def report(study: optuna.Study, sweep: Sweep, monitor: str) -> None:
    """Print and write the table of all trials, draw their curves, test the winner if it is not yet.

    Raises:
        UserError: if every trial failed.
    """
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    if not finished:
        raise UserError(
            f"every trial of {sweep.name} failed, the last with: "
            f"{failed[-1].user_attrs.get('error', 'no message') if failed else 'no trial'}"
        )
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    finished.sort(key=lambda trial: sign * (trial.value or 0.0))
    winner = sweep.suggest(study.best_trial)  # type: ignore[arg-type]
    run = RunDirectory(sweep.root / sweep.experiment(winner))
    if not run.test_metrics.exists():
        Console().print(f"testing the winner by validation, {run.path}")
        subprocess.run(
            [sys.executable, str(CLI), "test", *sweep.fit_arguments(winner)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    tested = read_run(run.path)
    keys = list(sweep.search)
    paths = [sweep.root / sweep.experiment(trial.params) for trial in finished]
    curves = {path.name: read_curves(path / "metrics.csv") for path in paths}
    headings = [key.rpartition(".")[2] for key in keys]
    headings += [f"{monitor}, best", f"{monitor}, last", "train/loss, last", "seconds", "state"]
    rows = []
    for trial, run_curves in zip(finished, curves.values(), strict=True):
        last = [list(run_curves[name].values())[-1] for name in (monitor, "train/loss")]
        seconds = sum(run_curves["time/epoch"].values())
        figures = [*(f"{value:.4f}" for value in (trial.value, *last)), f"{seconds:.1f}"]
        rows.append([*(str(trial.params[key]) for key in keys), *figures, "finished"])
    rows += [
        [
            *(str(trial.params.get(key, "")) for key in keys),
            *[""] * 4,
            trial.user_attrs.get("error", "failed"),
        ]
        for trial in failed
    ]
    table = Table(*headings, title=f"{sweep.name}, {sweep.folder / 'study.db'}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(tested.test.items()))
    Console().print(f"winner by validation: {run.path.name}: {scores}")
    lines = [headings, ["---"] * len(headings), *rows]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    text += f"\nWinner by validation: `{run.path.name}`: {scores}\n"
    (sweep.folder / "sweep.md").write_text(text, encoding="utf-8")
    draw_curves(curves, sweep.folder / "curves.png")
