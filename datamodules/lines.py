"""Text files with one line per clip."""

from collections.abc import Iterator
from pathlib import Path

from errors import UserError

LONGEST_LINE = 100_000
"""Maximum number of characters in a line; LJ Speech's longest has under 400."""


def read_lines(path: Path, expected: str) -> Iterator[str]:
    """Yield the lines of a text file without line endings and trailing blank lines.

    Reading stops at a line that is too long, so an endless line does not fill memory.

    Args:
        path: file to read.
        expected: what a line should hold, for messages.

    Raises:
        UserError: if the file is missing, is not UTF-8, or has a line longer than `LONGEST_LINE`.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            number = blank = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path} line {number} has more than {LONGEST_LINE:,} characters instead "
                        f"of {expected}"
                    )
                if line == "\n":
                    blank += 1
                    continue
                yield from [""] * blank
                blank = 0
                yield line.rstrip("\n")
    except OSError as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"is no file ({error})"
        )
        raise UserError(f"{path} {reason}: it should hold one line {expected} per clip") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
