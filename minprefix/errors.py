"""The one exception that the house raises on bad input."""


class InputError(ValueError):
    """A sentence: what was wrong and where, what was expected, and what to do about it.

    The command line prints it after `minprefix: error:` and exits with status 2; a library user
    catches it as a ValueError.
    """
