"""Destinations of predictions: the terminal, one file, or a folder with a file for each input."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from commands.folders import refuse_existing
from commands.formats import SUBTITLES, Record, header, render
from engine import whole_file
from errors import UserError


class Output(Protocol):
    """Receives the records of each file."""

    def has(self, file: Path) -> bool:
        """Return whether an earlier command wrote the records of a file."""

    def write(self, file: Path, records: list[Record]) -> None:
        """Write the records of a file."""

    def finish(self) -> None:
        """Complete the output after the last file."""


class Terminal:
    """Print records as they come."""

    def __init__(self, format: str, *, named: bool) -> None:
        self.format = format
        self.named = named
        self._has_header = False

    def has(self, file: Path) -> bool:
        return False

    def write(self, file: Path, records: list[Record]) -> None:
        start = "" if self._has_header else header(self.format, records)
        self._has_header = True
        parts = (render(self.format, record, named=self.named) for record in records)
        sys.stdout.write(printable(start + "".join(parts)))  # no layout, for pipes
        sys.stdout.flush()

    def finish(self) -> None:
        pass


class OneFile:
    """Write all records to one file.

    They are collected in ``<file>.partial``, so that the same command continues after an
    interruption; the file itself appears when everything is done.

    Args:
        path: file to write.
        files: input files, in order.
        settings: settings that determine the records; a partial file with others is refused.

    Raises:
        UserError: if the file exists, or another command left its partial file.
    """

    def __init__(
        self, path: Path, format: str, files: Sequence[Path], settings: Record, *, named: bool
    ) -> None:
        refuse_existing(path)
        self.path = path
        self.format = format
        self.names = {file: identify(file) for file in files}  # before any of them changes
        self.named = named
        self.partial = path.with_name(f"{path.name}.partial")
        self.positions: dict[str, int] = {}  # of the lines of the partial file, by input
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.exists() and self.partial.stat().st_size:
            self._continue(settings)
        else:
            self._append(settings)

    def _continue(self, settings: Record) -> None:
        end = 0
        with self.partial.open("rb") as file:
            try:
                found = json.loads(file.readline())
                end = file.tell()
                for line in iter(file.readline, b""):
                    if not line.endswith(b"\n"):  # half written
                        break
                    self.positions[json.loads(line)["input"]] = end
                    end = file.tell()
            except (ValueError, KeyError, TypeError):
                found = None
        if found != settings:
            raise UserError(
                f"{self.partial} was started by another command: delete it, or give another "
                "--output"
            )
        os.truncate(self.partial, end)

    def _append(self, line: Record) -> int:
        with self.partial.open("ab") as file:
            position = file.tell()
            file.write(f"{json.dumps(line)}\n".encode())
        return position

    def has(self, file: Path) -> bool:
        return self.names[file] in self.positions

    def write(self, file: Path, records: list[Record]) -> None:
        name = self.names[file]
        self.positions[name] = self._append({"input": name, "records": records})

    def finish(self) -> None:
        if self.positions:
            write_whole(self.path, self._contents())
        self.partial.unlink()

    def _contents(self) -> Iterator[str]:
        is_first = True
        with self.partial.open("rb") as file:
            for name in self.names.values():
                if name in self.positions:
                    file.seek(self.positions[name])
                    records = json.loads(file.readline())["records"]
                    if is_first:
                        yield header(self.format, records)
                        is_first = False
                    yield from (render(self.format, r, named=self.named) for r in records)


class Folder:
    """Write the records of each input to a file of its own; files that exist are kept.

    A file is named after its input. If that is ambiguous, the input's suffix is part of the name.
    A note in the folder has the settings that determine the records, and the input of each file.

    Raises:
        UserError: if two files would have one name, the folder was written with other settings, or
            a file that exists is of another input.
    """

    def __init__(self, path: Path, format: str, files: Sequence[Path], settings: Record) -> None:
        self.format = format
        stems = Counter(file.stem for file in files)
        names = [file.stem if stems[file.stem] == 1 else file.name for file in files]
        for name, count in Counter(names).items():
            if count > 1:
                raise UserError(
                    f"{count} inputs are named {name}, so their outputs would overwrite each "
                    "other: give --output FILE, or fewer folders at a time"
                )
        self.targets = {
            file: path / f"{name}.{format}" for file, name in zip(files, names, strict=True)
        }
        path.mkdir(parents=True, exist_ok=True)
        self.note, text = path / ".predictions.json", json.dumps(settings)
        if not self.note.exists():
            write_whole(self.note, [text])
        found, *lines = self.note.read_text(encoding="utf-8").splitlines()
        if found != text:
            raise UserError(
                f"{path} holds predictions of another run, checkpoint or option: give another "
                "--output"
            )
        entries = [json.loads(line) for line in lines if line.endswith("}")]  # not half written
        inputs = {entry["output"]: entry["input"] for entry in entries}
        self.names = {file: identify(file) for file in files}
        for file, target in self.targets.items():
            if target.exists() and inputs.get(target.name) != self.names[file]:
                raise UserError(
                    f"{target} exists, and is not of {file} as it is now: delete it, or give "
                    "another --output"
                )

    def has(self, file: Path) -> bool:
        return self.targets[file].exists()

    def write(self, file: Path, records: list[Record]) -> None:
        entry = {"output": self.targets[file].name, "input": self.names[file]}
        with self.note.open("a", encoding="utf-8") as note:  # before the file that it describes
            note.write(f"\n{json.dumps(entry)}")
        parts = [render(self.format, record, named=len(records) > 1) for record in records]
        write_whole(self.targets[file], [header(self.format, records), *parts])

    def finish(self) -> None:
        pass


def write_whole(path: Path, parts: Iterator[str] | list[str]) -> None:
    """Write a file that appears only when it is complete."""
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(map(printable, parts))


def printable(text: str) -> str:
    r"""Return a text with ``\udc…`` for the bytes of file names that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def identify(file: Path) -> str:
    """Return a string that identifies a file and its version."""
    try:
        status = file.stat()
    except OSError:
        return str(file.absolute())
    return f"{file.absolute()} {status.st_size} {status.st_mtime_ns}"


def as_user_error(error: UserError | OSError, path: Path) -> UserError:
    """Return the reason why a file cannot be read as a `UserError`."""
    if isinstance(error, UserError):
        return error
    return UserError(f"{path} cannot be read ({error.strerror or error})")


def is_folder(output: str) -> bool:
    """Return whether an output is a folder: one that exists, or a name without a suffix."""
    path = Path(output)
    return path.is_dir() or output.endswith(("/", os.sep)) or not (path.suffix or path.exists())


def choose_format(output: str | None, format: str | None, formats: Sequence[str]) -> str:
    """Return the format: the given one, or the output's suffix, or else the task's first.

    Raises:
        UserError: if the task has no such format.
    """
    if format is None:
        suffix = "" if output is None or is_folder(output) else Path(output).suffix
        format = suffix.removeprefix(".").lower() or formats[0]
    if format not in formats:
        raise UserError(f"{format} is not one of this task's formats: {', '.join(formats)}")
    return format


def choose_output(
    output: str | None,
    format: str,
    files: Sequence[Path],
    settings: dict[str, Any],
    *,
    each_channel: bool,
) -> Output:
    """Return the destination of predictions.

    Args:
        output: file or folder; None prints.
        format: format.
        files: input files.
        settings: settings that determine the records.
        each_channel: whether an input may have several records.

    Raises:
        UserError: if the format does not fit the output, or the output exists.
    """
    if format in SUBTITLES and each_channel:
        raise UserError(f"a {format} file holds one transcript: give --channels mix")
    if output is not None and is_folder(output):
        # Files of several formats may stand side by side.
        others = {key: value for key, value in settings.items() if key != "format"}
        return Folder(Path(output), format, files, others)
    if format in SUBTITLES and len(files) > 1:
        raise UserError(f"a {format} file holds one transcript: give --output a folder")
    named = len(files) > 1 or each_channel
    if output is None:
        return Terminal(format, named=named)
    if Path(output).exists() and not Path(output).is_file():
        raise UserError(f"{output} is no regular file: leave out --output to print")
    return OneFile(Path(output), format, files, settings, named=named)
