"""``sweep``: search hyper-parameters with Optuna; each trial is a separate run.

Any number of processes can share a sweep: trials wait in Optuna's storage until a process takes
them. If that process dies, the trial is queued again and its run resumes. See docs/sweeps.md.
"""

import itertools
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from typing import IO, Any, Literal

import jsonargparse
from jsonargparse.typing import PositiveInt

from commands.folders import make_console
from commands.messages import shorten
from commands.stages import as_argument, parse
from commands.tables import draw_curves, read_curves, write_table
from engine import RunDirectory, lock, read_rows
from errors import UserError, extra

with extra("sweep", "sweep"):
    import optuna
    from optuna.pruners import MedianPruner, NopPruner
    from optuna.samplers import TPESampler
    from optuna.storages import JournalStorage, RetryHeartbeatStaleTrialCallback
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState

CLI = str(Path(__file__).parent.parent / "cli.py")
SEED = 42
POLL = 1.0  # seconds between checks of a running fit or of other processes
LOCK_DELAY = 10.0  # seconds; a process locks the run of its trial much sooner


def run_sweep(config: Path, others: Sequence[str], storage: str | None) -> None:
    """Run all trials, then test the winner once and write the table.

    Args:
        config: YAML of the sweep; its stem is the sweep's name.
        others: further arguments of fit and test.
        storage: URL of a database for the study; by default a journal file in the sweep's folder.

    Raises:
        UserError: if the sweep cannot start, no trial finished, or the test failed.
        SystemExit: with 130 after SIGINT, 143 after SIGTERM.
    """
    sweep = Sweep(config, others)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with lock(sweep.folder / ".lock", wait=True), sweep.deferred_signals():
        sweep.open_study(storage)
    with sweep.deferred_signals():
        sweep.work()
    with lock(sweep.folder / ".lock", wait=True) as turn:
        sweep.report(turn)


def is_tested(run: RunDirectory) -> bool:
    """Return whether a run has the scores of a test."""
    try:
        return run.read_scores() is not None
    except UserError:  # they are damaged
        return False


class Sweep:
    """A sweep, as seen by one of the processes that share it.

    Runs are numbered. Each has a trial in the study from the start. If a trial is cut short, a new
    trial of the same run replaces it.
    """

    received = 0  # the signal that arrived last

    def __init__(self, path: Path, others: Sequence[str]) -> None:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Lists are stored and read as they are.
        warnings.filterwarnings(
            "ignore", "Choices for a categorical distribution should be a tuple"
        )
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--configs", type=list[str], required=True)
        parser.add_argument("--search", type=dict[str, list[Any] | dict[str, Any]], required=True)
        parser.add_argument("--trials", type=PositiveInt | Literal["grid"], required=True)
        parser.add_argument("--set", type=dict[str, Any], default={})
        parser.add_argument("--pruning", type=Literal["median"] | None)
        try:
            self.yaml, self.others = parser.parse_path(str(path)), others
            if not self.yaml.search:
                raise ValueError("search is empty: name a key and its values")
            for key, space in self.yaml.search.items():
                values = space if isinstance(space, list) else [space.get("low"), space.get("high")]
                if not values or (self.yaml.trials == "grid" and values is not space):
                    raise ValueError(f"{key} needs a list of values")
                if any(isinstance(value, dict | jsonargparse.Namespace) for value in values):
                    raise ValueError(
                        f"{key} has a class as a value: search {key}.class_path and "
                        f"{key}.init_args.… instead"
                    )
                self.suggest(optuna.trial.FixedTrial({key: values[0]}), key)
                for value in values:
                    parse(["fit", *self.arguments({key: value})])
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {shorten(str(error))}") from error
        config = parse(["fit", *self.arguments({})])
        self.monitor, self.mode = config.checkpoint.monitor, config.checkpoint.mode
        self.folder = Path(config.trainer.default_root_dir) / path.stem

    def arguments(self, values: dict[str, Any]) -> list[str]:
        """Return the arguments of fit and test for these values."""
        configs = [f"--config={config}" for config in self.yaml.configs]
        fixed, chosen = (
            [f"--{key}={as_argument(value)}" for key, value in part.items()]
            for part in (self.yaml.set, values)
        )
        return [*configs, *fixed, *self.others, *chosen]

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Any:
        """Return the trial's value for a key; draw it unless it is fixed."""
        space = self.yaml.search[key]
        if isinstance(space, list):
            return trial.suggest_categorical(key, space)
        whole = all(isinstance(space.get(bound), int) for bound in ("low", "high"))
        return (trial.suggest_int if whole else trial.suggest_float)(key, **space)

    def open_study(self, url: str | None) -> None:
        """Create or load the study; queue a trial for each run that has none."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        search, count = self.yaml.search, self.yaml.trials
        self.retry = RetryHeartbeatStaleTrialCallback()
        journal = str(self.folder / "journal.log")
        try:
            self.study = optuna.create_study(
                storage=url or JournalStorage(JournalFileBackend(journal)),
                pruner=MedianPruner(n_startup_trials=3) if self.yaml.pruning else NopPruner(),
                study_name=self.folder.name,
                direction="minimize" if self.mode == "min" else "maximize",
                load_if_exists=True,
            )
        except Exception as error:  # each database driver has its own exceptions
            raise UserError(f"cannot open the study: {' '.join(str(error).split())}") from error
        if self.study.user_attrs.get("search", search) != search:
            raise UserError(f"{self.folder} has other values: rename the YAML or delete the folder")
        fixed = [[*self.yaml.configs], dict(self.yaml.set), [*self.others]]
        ended = any(trial.state == TrialState.COMPLETE for trial in self.study.trials)
        if ended and self.study.user_attrs.get("fixed", fixed) != fixed:
            raise UserError(
                f"{self.folder} has trials with other configs, set or arguments: repeat those to "
                "go on, or rename the YAML or delete the folder"
            )
        self.study.set_user_attr("search", search)
        self.study.set_user_attr("fixed", fixed)
        queue = [()] * count if count != "grid" else itertools.product(*search.values())
        known = self.trials()
        for run, values in enumerate(queue):
            if run not in known:  # TPE draws the values not given here
                given = dict(zip(search, values, strict=False))
                self.study.enqueue_trial(given, user_attrs={"run": run})

    def trials(self) -> dict[int, FrozenTrial]:
        """Return run number → latest trial of that run."""
        return {t.user_attrs["run"]: t for t in self.study.trials if "run" in t.user_attrs}

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the sweep in ``check_signals`` only.

        Anywhere else they could leave a trial half recorded or the journal locked.
        """

        def receive(number: int, _: object) -> None:
            self.received = number

        handlers = {number: signal(number, receive) for number in (SIGINT, SIGTERM)}
        try:
            yield
            self.check_signals()
        except KeyboardInterrupt:
            sys.exit(128 + self.received)
        finally:
            for number, handler in handlers.items():
                signal(number, handler)

    def check_signals(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived."""
        if self.received:
            raise KeyboardInterrupt

    def work(self) -> None:
        """Run trials until each run has ended, here or in another process."""
        while left := {t.state for t in self.trials().values() if not t.state.is_finished()}:
            self.check_signals()
            self.retry_dead()
            if TrialState.WAITING in left:
                with ExitStack() as self.locks:  # held until the study has the score
                    self.study.optimize(self.fit, n_trials=1)
            else:
                time.sleep(POLL)

    def retry_dead(self) -> None:
        """Queue the trials of dead processes again: those whose run no process locks."""
        for run, trial in self.trials().items():
            began = trial.datetime_start.timestamp() if trial.datetime_start else math.inf
            if trial.state == TrialState.RUNNING and time.time() - began > LOCK_DELAY:
                with suppress(BlockingIOError), lock(self.folder / f"{run:02d}.lock", wait=False):
                    if self.study.trials[trial.number].state == TrialState.RUNNING:
                        self.retry(self.study, trial)
                        self.study.tell(trial.number, state=TrialState.FAIL)

    def lock_run(self, number: int) -> IO[str]:
        """Return the run's locked file; wait for a fit that outlived its sweep process."""
        while True:
            self.check_signals()
            try:
                return lock(self.folder / f"{number:02d}.lock", wait=False)
            except BlockingIOError:
                time.sleep(POLL)

    def run(self, trial: optuna.Trial | FrozenTrial) -> RunDirectory:
        """Return the run directory, named after the run's number and values."""
        leaves = [f"{key.rpartition('.')[2]}={trial.params[key]}" for key in self.yaml.search]
        name = ",".join([f"{trial.user_attrs['run']:02d}", *leaves])
        return RunDirectory(self.folder / name.replace(" ", "").replace("/", "_"))

    def command(self, stage: str, trial: optuna.Trial | FrozenTrial) -> list[str]:
        """Return the command line of a stage."""
        name = f"--experiment={self.folder.name}/{self.run(trial).path.name}"
        return [sys.executable, CLI, stage, *self.arguments(trial.params), name]

    def fit(self, trial: optuna.Trial) -> float:
        """Return the best score of a trial's run; NaN, Optuna's sign of failure, if fit failed."""
        number = trial.user_attrs.get("run")
        if number is None:  # another process took the last queued trial
            return math.nan
        # The same history gives the same values, whichever process draws them.
        self.study.sampler = TPESampler(seed=SEED + number)
        try:
            for key in self.yaml.search:
                self.suggest(trial, key)
            return self.follow_fit(trial, self.locks.enter_context(self.lock_run(number)))
        except (KeyboardInterrupt, OSError, RuntimeError):
            self.retry(self.study, self.study.trials[trial.number])
            raise

    def follow_fit(self, trial: optuna.Trial, locked: IO[str]) -> float:
        """Fit a run in a subprocess that inherits the lock; report the score of each epoch.

        Raises:
            TrialPruned: if the trial is worse than the median of the finished ones.
        """
        run, command = self.run(trial), self.command("fit", trial)
        if run.last.exists():
            command.append("--ckpt_path=last")
        make_console().print(f"trial {trial.number}: {run.path}")
        log = Path(f"{run.path}.log")
        with log.open("a", encoding="utf-8") as out:
            # In its own session: Ctrl-C reaches this process only, which then sends SIGTERM.
            fit = subprocess.Popen(
                command, stdout=out, stderr=out, start_new_session=True, pass_fds=[locked.fileno()]
            )
        status, reported = None, -1
        try:
            while status is None:
                self.check_signals()
                with suppress(subprocess.TimeoutExpired):
                    status = fit.wait(POLL)
                curve = read_curves(run.metrics).get(self.monitor, {})
                for reported in sorted(epoch for epoch in curve if epoch > reported):
                    trial.report(curve[reported], reported)
                    if status is None and trial.should_prune():
                        raise optuna.TrialPruned
        finally:
            fit.terminate()  # it saves last.ckpt, unless it has ended
            fit.wait()
        if status or not curve:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            trial.set_user_attr("error", [f"exit status {status}", *lines][-1])
            return math.nan
        return self.best_score(run)

    def best_score(self, run: RunDirectory) -> float:
        """Return the best score of a run's validations; NaN if there is none."""
        scores = [float(r[self.monitor]) for r in read_rows(run.metrics) if self.monitor in r]
        known = [score for score in scores if not math.isnan(score)]  # as best.ckpt is chosen
        return (min if self.mode == "min" else max)(known, default=math.nan)

    def report(self, turn: IO[str]) -> None:
        """Test the winner, write the table and the curves; ``turn`` is the locked file."""
        sign, done = 1 if self.mode == "min" else -1, TrialState.COMPLETE
        trials = list(self.trials().values())
        trials.sort(key=lambda trial: (trial.state != done, sign * (trial.value or 0.0)))
        errors = {trial.number: trial.user_attrs.get("error", "") for trial in trials}
        if trials[0].state != done:
            raise UserError(f"every trial of {self.folder.name} failed: {errors[trials[0].number]}")
        winner = self.run(trials[0])
        if not is_tested(winner):
            make_console().print(f"testing the winner by validation, {winner.path}")
            command = self.command("test", trials[0])
            if subprocess.call(command, stdout=subprocess.DEVNULL, pass_fds=[turn.fileno()]):
                raise UserError(f"the test of {winner.path} failed, see above")
        rows, curves = [], {}
        for trial in trials:
            path = self.run(trial).path
            curve = read_curves(self.run(trial).metrics)
            last = {name: [*values.values()][-1] for name, values in curve.items()}
            figures = [self.best_score(self.run(trial)), last.get(self.monitor)]
            figures += [last.get("train/loss"), sum(curve.get("time/epoch", {}).values())]
            cells = ["–" if x is None or math.isnan(x) else f"{x:.4g}" for x in figures]
            values = [str(trial.params[key]) for key in self.yaml.search]
            rows.append([*values, *cells, errors[trial.number] or trial.state.name.lower()])
            if self.monitor in curve:
                curves[path.name] = curve
        headings = [key.rpartition(".")[2] for key in self.yaml.search]
        headings += [f"{self.monitor}, best", f"{self.monitor}, last", "train/loss, last"]
        tested = winner.read_scores()
        assert tested
        scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(tested.metrics.items()))
        note = f"Winner by validation: {winner.path.name}: {scores}"
        write_table([*headings, "seconds", "state"], rows, self.folder / "sweep.md", note)
        draw_curves(curves, self.folder / "curves.png")
