"""What all commands share: their output, their errors and exit codes, and the options for both."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from hwmodel.errors import QuasarError, WorkerLostError

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

INTERRUPTED = 130

#: seconds in which torchrun ends the workers beside one that failed
WORKER_GRACE_S = 5.0


class CheckFailedError(QuasarError):
    """A check ran to its end and found a difference; `document` is what `--json` prints nevertheless."""

    def __init__(self, message: str, document: dict[str, Any]) -> None:
        super().__init__(message)
        self.document = document


def command(function: Callable[P, Any]) -> Callable[P, None]:
    """Turns what a command returns into output, and errors into one line and an exit code.

    A command returns the document for `--json`, having printed what a person reads only without it.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json, debug = bool(kwargs.get("as_json")), bool(kwargs.get("debug"))
        try:
            document = function(*args, **kwargs)
            if as_json:
                print(json.dumps(document))
            sys.stdout.flush()  # what stdout refuses is to be noticed here, not at exit
        except CheckFailedError as error:
            if as_json:
                print(json.dumps(error.document))
            fail(str(error), error.exit_code, as_json=False)
        except QuasarError as error:
            if debug:
                traceback.print_exc()
            if not isinstance(error, WorkerLostError):
                _let_first_worker_speak()
            fail(str(error), error.exit_code, as_json=as_json)
        except KeyboardInterrupt:
            kept = "; what was finished is kept, continue with --resume" if "resume" in kwargs else ""
            fail(f"interrupted{kept}", INTERRUPTED, as_json=as_json)
        except BrokenPipeError:
            raise  # whoever read stdout has seen enough, as `| head` does; typer ends quietly
        except OSError as error:
            # A full disk or a vanished folder is no bug of ours; anything else shows its traceback.
            if debug:
                traceback.print_exc()
            fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1, as_json=as_json)

    return run


def _let_first_worker_speak() -> None:
    """Workers of torchrun mostly fail alike: gives the first one the time to say why, and to be ended for it."""
    if int(os.environ.get("RANK", "0")) > 0 and "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(WORKER_GRACE_S)


def fail(message: str, code: int, *, as_json: bool) -> NoReturn:
    """Ends the program with one line on stderr (and, for scripts, as JSON on stdout)."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if as_json:
        with contextlib.suppress(OSError):  # stdout may be what failed
            print(json.dumps({"error": message, "exit_code": code}), flush=True)
    raise typer.Exit(code)
