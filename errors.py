"""The one exception for what a user can cause and mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A path, a configuration value or a file's content is wrong.

    The message is one sentence that names the offender and the way out; ``cli.py`` prints it
    without a traceback and exits with 1.
    """


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import optional packages in this context; if one is missing, name the extra that has it.

    Args:
        name: extra of ``setup.cfg``.
        what: what needs the packages.

    Raises:
        UserError: if a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}: pip install '.[{name}]'") from error
