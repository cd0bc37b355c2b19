"""The suite's command line: ``python cli.py fit --config configs/asr_transformer.yaml``.

Heavy imports wait until a command needs them, so that ``--help`` is instant.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from errors import UserError

STAGES = {
    "fit": "train, validate after every epoch, keep the best and the last checkpoint",
    "validate": "score a checkpoint on the validation set",
    "test": "score a checkpoint on the test set",
    "predict": "write a checkpoint's predictions",
}
EXAMPLES = """\
examples:
  python cli.py fit --config configs/asr_transformer.yaml
  python cli.py fit --config configs/asr_transformer.yaml --config configs/demo/speech.yaml
  python cli.py fit --config configs/asr_transformer.yaml --ckpt_path last
  python cli.py test --config configs/asr_transformer.yaml
  python cli.py predict runs/asr_transformer interview.mp3
  python cli.py compare runs/asr_transformer runs/asr_lstm
  python cli.py report runs/asr_transformer
  python cli.py export runs/asr_transformer
  python cli.py card runs/asr_transformer --licence cc-by-4.0
  python cli.py serve runs/asr_transformer runs/asr_lstm
  python cli.py pack runs/asr_transformer --output shared/asr_transformer
  python cli.py inspect configs/asr_transformer.yaml
  python cli.py sweep --config configs/sweeps/octmnist_cnn_learning_rate.yaml
  python cli.py separable --dimension 2 --low 0 --high 0
  tensorboard --logdir runs
"""
OVERRIDES = """\
Any configuration key can be set on the command line, with dots between its levels:
  --trainer.max_epochs=3 --trainer.accelerator=gpu --trainer.devices=8 --trainer.strategy=ddp
  --data.init_args.root=DIR --data.init_args.batch_size=32 --optimizer.init_args.lr=3e-4

all keys, with their types and defaults:
  python cli.py {stage} --help-all
  python cli.py {stage} --model.help lightning_modules.SpeechRecognizer
  python cli.py {stage} --config FILE --print_config
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser that answers ``--help``; LightningCLI's own parses the arguments."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="cli.py",
        description="Train, score and use the suite's models.",
        epilog=f"{EXAMPLES}\nmore on a command: python cli.py fit --help",
        formatter_class=layout,
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for stage, purpose in STAGES.items():
        command = commands.add_parser(
            stage,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            epilog=OVERRIDES.format(stage=stage),
            formatter_class=layout,
        )
        command.add_argument(
            "--config",
            metavar="FILE",
            help="YAML of an experiment; can be repeated, later files win",
        )
        command.add_argument(
            "--experiment",
            metavar="NAME",
            help="the run directory is runs/NAME; by default the stem of the first --config",
        )
        command.add_argument(
            "--ckpt_path",
            metavar="last|best|none|FILE",
            help="checkpoint to resume from; by default none: start a new run"
            if stage == "fit"
            else "checkpoint to use, by default best; none for a constructed, untrained model",
        )
        if stage == "predict":
            add_prediction(command)

    def add(name: str, purpose: str, function: str, **defaults: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose)
        command.set_defaults(function=f"commands.{function}", **defaults)
        return command

    compare = add("compare", "put runs side by side: a table and curves", "compare:compare")
    add_runs(compare, "run directory, trained and tested")
    add_output(compare, "comparison", "for comparison.md and curves.png")
    report = add(
        "report",
        "write an HTML page of a recognizer's test errors, for one run or two",
        "report:report",
    )
    add_runs(report, "tested run directory, at most two")
    report.add_argument(
        "--worst",
        metavar="N",
        type=int,
        default=10,
        help="clips to show with sound and alignment (default: %(default)s)",
    )
    report.add_argument(
        "--output", metavar="FILE", type=Path, help="page (default: RUN/report.html)"
    )
    export = add(
        "export", "write a folder that runs a trained model without PyTorch", "export:export"
    )
    add_run(export)
    export.add_argument("--output", metavar="DIR", type=Path, help="folder (default: RUN/exported)")
    export.add_argument(
        "--quantize", choices=("int8",), help="store weights in eight bits instead of 32"
    )
    serve = add("serve", "open a web page for trying out trained runs", "serve:serve")
    add_runs(serve)
    serve.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine)")
    serve.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    serve.add_argument(
        "--max_minutes",
        type=float,
        metavar="N",
        default=30,
        help="maximum length of a recording (default: %(default)s)",
    )
    calibrate = add(
        "calibrate", "fit the confidence of words to test_decoding", "calibrate:calibrate"
    )
    add_run(calibrate, "run directory of a recognizer with CTC")
    pack = add("pack", "copy what prediction and fine-tuning need, in half precision", "pack:pack")
    add_run(pack)
    pack.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="run directory to create"
    )
    card = add("card", "write a model card of a run", "card:card")
    add_run(card, "run directory, trained, preferably tested")
    card.add_argument("--licence", metavar="NAME", help="licence of the weights, such as cc-by-4.0")
    card.add_argument("--notes", metavar="FILE", type=Path, help="Markdown to append")
    card.add_argument("--output", metavar="FILE", type=Path, help="card (default: RUN/README.md)")
    separable = add(
        "separable",
        "can one perceptron compute f(x) = +1 iff A <= sum of x <= B? answer and proof",
        "separable:separable",
    )
    for flag, letter in (("dimension", "D"), ("low", "A"), ("high", "B")):
        separable.add_argument(f"--{flag}", metavar=letter, type=int, required=True)
    add_output(separable, "separable", "for the picture where D = 2")
    inspect = add(
        "inspect",
        "describe a speech corpus and list its odd clips: a table and a picture",
        "inspect_corpus:inspect_corpus",
        others=[],
    )
    inspect.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        type=Path,
        help="YAML with a data section; later files win",
    )
    add_output(inspect, "inspect", "for corpus.md and corpus.png")
    sweep = add(
        "sweep",
        "search hyper-parameters; other arguments go to every fit",
        "sweep:run_sweep",
        others=[],
    )
    sweep.add_argument("--config", metavar="FILE", type=Path, required=True, help="YAML of a sweep")
    sweep.add_argument(
        "--storage",
        metavar="URL",
        help="URL of a database for the study; by default the file runs/<sweep>/journal.log",
    )
    return parser


def add_run(command: argparse.ArgumentParser, what: str = "run directory") -> None:
    """Add a run directory."""
    command.add_argument("path", metavar="RUN", type=Path, help=what)


def add_runs(command: argparse.ArgumentParser, what: str = "run directory") -> None:
    """Add one run directory or several."""
    command.add_argument("paths", nargs="+", metavar="RUN", type=Path, help=what)


def add_prediction(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``predict RUN PATH…``."""
    command.set_defaults(function="commands.predict:predict")
    command.usage = "cli.py predict RUN PATH... [options] | cli.py predict --config FILE [options]"
    command.add_argument("path", nargs="?", metavar="RUN", type=Path, help="run directory")
    command.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        type=Path,
        help="file, or folder that is searched for files",
    )
    command.add_argument(
        "--format",
        choices=("txt", "csv", "jsonl", "srt", "vtt", "html"),
        help="speech: txt, csv, jsonl, srt, vtt; images: csv, jsonl, html; by default the suffix "
        "of --output, or the first",
    )
    command.add_argument(
        "--output",
        metavar="PATH",
        help="file, or folder that gets one file per input; by default the terminal",
    )
    command.add_argument(
        "--channels",
        choices=("mix", "each"),
        default="mix",
        help="average a recording's channels, or transcribe each (default: %(default)s)",
    )


def add_output(command: argparse.ArgumentParser, name: str, purpose: str) -> None:
    """Add the folder that a command writes to, ``runs/<name>`` by default."""
    command.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("runs", name),
        help=f"folder {purpose} (default: %(default)s)",
    )


def is_stage(args: Sequence[str]) -> bool:
    """Return whether LightningCLI parses a command line: a stage's, unless it asks for help.

    ``predict RUN PATH…`` is the suite's own; it takes neither a configuration nor classes.
    """
    options = args[: find_end(args)]
    if not args or args[0] not in STAGES or {"-h", "--help"} & set(options):
        return False
    given = ("--config", "--model", "--data", "--trainer", "--print_config", "--help-all")
    return args[0] != "predict" or any(option.startswith(given) for option in options)


def find_end(args: Sequence[str]) -> int:
    """Return the position of ``--``, after which there are only paths, or else of the end."""
    return list(args).index("--") if "--" in args else len(args)


def parse_own(args: list[str]) -> argparse.Namespace:
    """Parse the suite's own commands, and requests for help.

    Returns:
        The command's ``function``, and its arguments by name.
    """
    parser = build_parser()
    args = args or ["--help"]
    end = find_end(args) if args[0] == "predict" else len(args)
    options, others = parser.parse_known_args(args[:end])
    if "inputs" in options:
        # After an option, argparse accepts neither paths nor "--".
        paths = [path for path in others if not path.startswith("-")] + args[end + 1 :]
        options.inputs += map(Path, paths)
        if options.path is None and options.inputs:
            options.path = options.inputs.pop(0)
        others = [argument for argument in others if argument.startswith("-")]
        if not options.inputs:
            parser.error(
                "predict needs RUN and at least one PATH (a file or a folder), or --config"
            )
        if options.experiment:
            parser.error("predict RUN has no --experiment: RUN is the run's directory")
        del options.config, options.experiment  # they belong to ``predict --config``
    if "others" in options:
        options.others = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options


def run_own(options: argparse.Namespace) -> None:
    """Call the function of one of the suite's own commands.

    Raises:
        UserError: if a file cannot be read or written.
    """
    arguments = vars(options)
    try:
        resolve_name(arguments.pop("function"))(**arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            raise UserError(str(error)) from error
        raise UserError(f"{error.filename} cannot be used ({error.strerror or error})") from error


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; errors that the user can fix end in one line and exit status 1."""
    args = sys.argv[1:] if args is None else list(args)
    own = None if is_stage(args) else parse_own(args)
    try:
        if own is None:
            from commands.stages import run

            run(["--help" if arg == "--help-all" else arg for arg in args])
        else:
            run_own(own)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the program that reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if os.environ.get("JSONARGPARSE_DEBUG"):
            raise
        # An error raised in a loader worker carries the worker's traceback.
        message = str(error).rpartition("UserError: ")[2].strip()
        sys.exit(f"error: {message}")


if __name__ == "__main__":
    main()
