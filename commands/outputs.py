"""Where predictions go: the terminal, one file, or a folder with a file for each input."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from commands.formats import SUBTITLES, Record, header, render
from errors import UserError


class Output(Protocol):
    """Receives the records of each file."""

    def has(self, file: Path) -> bool:
        """Return whether the records of a file are written already."""

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
        print(start + "".join(parts), end="", flush=True)  # no layout, for pipes

    def finish(self) -> None:
        pass


class OneFile:
    """Write all records to one file.

    They are collected in ``<file>.partial``, so that the same command continues after an
    interruption; the file itself appears when everything is done.

    Args:
        path: file to write.
        files: input files, in order.
        origin: what the records depend on, to refuse to continue another command's.

    Raises:
        UserError: if the file exists, or another command left its partial file.
    """

    def __init__(
        self, path: Path, format: str, files: Sequence[Path], origin: Record, *, named: bool
    ) -> None:
        if path.exists():
            raise UserError(f"{path} already exists: delete it, or give another --output")
        self.path = path
        self.format = format
        self.files = files
        self.named = named
        self.partial = path.with_name(f"{path.name}.partial")
        self.records: dict[str, list[Record]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.exists():
            self._continue(origin)
        else:
            self._append(origin)

    def _continue(self, origin: Record) -> None:
        text = self.partial.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        try:
            first, *lines = (json.loads(line) for line in whole.splitlines())
            self.records = {line["file"]: line["records"] for line in lines}
        except (ValueError, KeyError, TypeError):
            first = None
        if first != origin:
            raise UserError(
                f"{self.partial} was started by another command: delete it, or give another "
                "--output"
            )
        os.truncate(self.partial, len(whole))

    def _append(self, line: Record) -> None:
        with self.partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def has(self, file: Path) -> bool:
        return str(file) in self.records

    def write(self, file: Path, records: list[Record]) -> None:
        self.records[str(file)] = records
        self._append({"file": str(file), "records": records})

    def finish(self) -> None:
        found = [r for file in self.files for r in self.records.get(str(file), [])]
        parts = (render(self.format, record, named=self.named) for record in found)
        write_whole(self.path, header(self.format, found) + "".join(parts))
        self.partial.unlink()


class Folder:
    """Write the records of each input to a file of its own; files that exist are kept.

    A file is named after its input. If that is ambiguous, the input's suffix is part of the name.
    """

    def __init__(self, path: Path, format: str, files: Sequence[Path]) -> None:
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

    def has(self, file: Path) -> bool:
        return self.targets[file].exists()

    def write(self, file: Path, records: list[Record]) -> None:
        parts = (render(self.format, record, named=len(records) > 1) for record in records)
        write_whole(self.targets[file], header(self.format, records) + "".join(parts))

    def finish(self) -> None:
        pass


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def choose_output(
    output: str | None,
    format: str | None,
    formats: Sequence[str],
    files: Sequence[Path],
    origin: Record,
    *,
    each_channel: bool,
) -> Output:
    """Return where predictions go.

    Args:
        output: file or folder; None prints. A name without a suffix is a folder.
        format: format; by default the output's suffix, or else the first of ``formats``.
        formats: formats of the task.
        files: input files.
        origin: what the records depend on.
        each_channel: whether an input may have several records.

    Raises:
        UserError: if the format is not one of the task's or does not fit the output.
    """
    path = None if output is None else Path(output)
    is_folder = path is not None and (path.is_dir() or not path.suffix)
    suffix = "" if path is None or is_folder else path.suffix.removeprefix(".")
    format = format or suffix or formats[0]
    if format not in formats:
        raise UserError(f"{format} is not one of this task's formats: {', '.join(formats)}")
    if format in SUBTITLES and each_channel:
        raise UserError(f"a {format} file holds one transcript: give --channels mix")
    if path is not None and is_folder:
        return Folder(path, format, files)
    if format in SUBTITLES and len(files) > 1:
        raise UserError(f"a {format} file holds one transcript: give --output a folder")
    named = len(files) > 1 or each_channel
    if path is None:
        return Terminal(format, named=named)
    return OneFile(path, format, files, origin, named=named)
