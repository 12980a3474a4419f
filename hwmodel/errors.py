"""The mistakes that a user can mend, each with the exit code that the command line gives it.

Everything below the command line raises one of these for bad input, with one line that says what is wrong, where,
and what would help. Any other exception is a bug in the program.
"""


class QuasarError(Exception):
    """Base of all errors that end in one clear line instead of a traceback (exit code 1: the machine failed us)."""

    exit_code = 1


class RefusedError(QuasarError):
    """The system refused to write a file: a full disk, no permission."""


class WorkerLostError(QuasarError):
    """Of several processes at the same work another one has ended."""


class UsageError(QuasarError, ValueError):
    """A wrong option, configuration key or value."""

    exit_code = 2


class DamagedInputError(QuasarError, ValueError):
    """A file that exists but cannot be what it should be: truncated, foreign, or changed since it was written."""

    exit_code = 3


class InfeasibleError(QuasarError):
    """No configuration meets the limits; the message names the limit and the nearest feasible value."""

    exit_code = 4
