"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """A path, a configuration value or a file's content is wrong.

    The message is one sentence that names the offender and the way out; ``cli.py`` prints it
    without a traceback and exits with 1.
    """
