"""Commands and links in the documents and in ``--help``: parsed or, where cheap, executed."""

import contextlib
import importlib.util
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import cli
from errors import UserError
from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(\.venv/bin/|(python3?|make|tensorboard|sbatch) )")
OPERATORS = {"&&", "||", "|", ";", "&"}
OTHER_PROGRAMS = {
    *". cd git kill mypy pip pre-commit pytest ruff sbatch tensorboard wait".split(),
    *"createdb initdb pg_ctl".split(),  # PostgreSQL
}
PLACEHOLDERS = {  # how prose names any value → one to check with
    "configs/NAME.yaml": "configs/octmnist_mlp.yaml",
    "configs/sweeps/NAME.yaml": "configs/sweeps/octmnist_mlp_search.yaml",
    "--config rates.yaml": "--config configs/sweeps/octmnist_mlp_search.yaml",
    "--config FILE": "--config configs/asr_transformer.yaml",
    "--seed_everything S": "--seed_everything 1",
    "--data.init_args.seed S": "--data.init_args.seed 1",
}


def split(script: str) -> list[list[str]]:
    """Split a shell script into the words of its commands; drop comments, prompts, assignments."""
    commands: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in OPERATORS:
                if words or not re.match(r"[A-Z_]+=", word):
                    words.append(word)
            elif words:
                commands.append(words)
                words = []
    return commands


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the commands of a document: in shell blocks, indented blocks and inline code."""
    for language, block in FENCE.findall(text):
        if language in {"sh", "bash", "shell", "console"}:
            yield from split(block)
    prose = FENCE.sub("", text)
    for line in re.findall(r"^ {4}(?:\$ )?(.*)$", prose, re.MULTILINE):
        if COMMAND.match(line):
            yield from split(line)
    for code in INLINE.findall(prose):
        line = " ".join(code.split())
        if COMMAND.match(line) and "…" not in line:
            yield from split(line)


def help_of(*args: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        cli.main([*args, "--help"])
    return output.getvalue()


def commands_in_help() -> Iterator[list[str]]:
    """Yield the examples of ``cli.py --help`` and ``cli.py fit --help``."""
    examples = r"^  ((?:python|tensorboard) .*|--\S+=.*)$"
    for line in re.findall(examples, help_of() + help_of("fit"), re.MULTILINE):
        is_options = line.startswith("--")
        fit = "python cli.py fit --config configs/asr_transformer.yaml "
        yield from split(fit + line if is_options else line)


def all_commands() -> dict[str, Path]:
    """Return each distinct command and the first document that has it."""
    found: dict[str, Path] = {}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if document.name == "CONTRIBUTING.md":  # test_contributing.py runs its blocks
            text = FENCE.sub("", text)
        for words in commands_in(text):
            found.setdefault(shlex.join(words), document)
    for words in commands_in_help():
        found.setdefault(shlex.join(words), ROOT / "cli.py")
    return found


def check(command: str, document: str = "") -> None:
    """Check a command without running it.

    Args:
        command: as a shell reads it.
        document: text of its document; configurations that it names as `path` need not exist,
            because it tells its reader to write them.

    Raises:
        AssertionError, UserError: if the command cannot work, or is of an unknown kind.
    """
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    program, *args = shlex.split(command)
    program = program.removeprefix(".venv/bin/")
    try:
        if program in {"python", "python3"} and args[0] == "cli.py":
            check_cli(args[1:], document)
        elif program in {"python", "python3"} and args[0] == "-m":
            check_module(args[1], args[2:])
        elif program in {"python", "python3"} and Path(args[0]).name == "run.py":
            assert list((ROOT / "commands" / "exported").glob("*.py"))  # what `export` copies
        elif program == "make":
            targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {arg for arg in args if not re.match(r"-|\w+=", arg)} <= set(targets)
        else:
            assert program in OTHER_PROGRAMS or (ROOT / program).is_file(), (
                f"{program}: this test does not know how to check it"
            )
    except SystemExit as stopped:  # after --help or --print_config, or with a wrong argument
        if stopped.code:
            raise AssertionError(f"exit status {stopped.code}") from stopped


def check_cli(args: list[str], document: str) -> None:
    configs = [path for flag, path in itertools.pairwise(args) if flag == "--config"]
    missing = [path for path in configs if not Path(path).is_file()]
    unknown = [path for path in missing if f"`{path}`" not in document]
    assert not unknown, f"{unknown} does not exist"
    if cli.is_stage(args) and not missing:
        from commands.stages import parse
        from commands.suite_cli import SuiteCLI

        stage = {args[0]: SuiteCLI.subcommands()[args[0]]}
        with pytest.MonkeyPatch.context() as patch:  # one stage's parser, not all four
            patch.setattr(SuiteCLI, "subcommands", staticmethod(lambda: stage))
            parse(["--help" if arg == "--help-all" else arg for arg in args])
    else:
        cli.parse_own(args)


def check_module(module: str, args: list[str]) -> None:
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    if not args or not (ROOT / module.partition(".")[0]).exists():
        return
    is_package = spec.submodule_search_locations is not None
    main = importlib.util.find_spec(f"{module}.__main__") if is_package else spec
    assert main, f"{module} cannot be run"
    assert main.origin
    source = Path(main.origin).read_text(encoding="utf-8")
    flags = {arg.partition("=")[0] for arg in args if arg.startswith("-")}
    assert {flag for flag in flags if f'"{flag}"' not in source} == set()


COMMANDS = all_commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(command, COMMANDS[command].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python cli.py fit --config configs/octmnist_mlp.yaml --trainer.epochs=3", "epochs"),
        ("python cli.py fit --config configs/nowhere.yaml", "nowhere.yaml.* does not exist"),
        ("python cli.py compare runs/a --metric b", "exit status 2"),
        ("python cli.py separable --dimension 2", "exit status 2"),
        ("python -m benchmarks.nothing", "no module benchmarks.nothing"),
        ("python -m datamodules.demo_speech --clips 3", "--clips"),
        ("python -m benchmarks.attention --shortest 3", "--shortest"),
        ("make coffee", "coffee"),
        ("rm -r runs", "does not know"),
    ],
)
def test_commands_that_cannot_work_are_found(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, UserError), match=message):
        check(command)


def test_commands_are_found_wherever_a_document_has_them() -> None:
    text = (
        "Run `make\ntest`, not `make …` or `print(1)`.\n\n    python cli.py compare a  # two\n\n"
        "```sh\n$ A=1 python cli.py fit \\\n    --x '[a, b]'  # c\ncd b && make lint\n```\n"
        "```\nmake no command: an output\n```\n"
    )
    assert list(map(shlex.join, commands_in(text))) == [
        "python cli.py fit --x '[a, b]'",
        "cd b",
        "make lint",
        "python cli.py compare a",
        "make test",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in files if not (document.parent / link).exists()] == []


def test_separable_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(
        r"```sh\npython cli.py (separable .*)\n```\n\n```\n(.*?)```",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert example
    monkeypatch.chdir(tmp_path)
    cli.main(example[1].split())
    assert capsys.readouterr().out == example[2]
    assert (tmp_path / example[2].split()[-1]).is_file()
