"""The Ray cluster that a command computes on: the one at RAY_ADDRESS, or one that is started here and ends with it.

Its machines need the package with its extra `ray`, and must see the data, the working directory and the run folder at
the same paths.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from urllib.parse import urlsplit

from hwmodel.errors import QuasarError, UsageError

#: seconds in which the cluster at RAY_ADDRESS must answer; Ray itself tries for minutes
ANSWER_S = 10.0
#: what opens a connection of HTTP/2, on which gRPC runs (RFC 9113, 3.4): the preface and an empty frame of settings
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER = 9
_SETTINGS = 4


def check_ray(what: str, module: str) -> None:
    """Raises `UsageError`, with what to install, if the part of Ray that `what` needs is missing."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs Ray ({error}); install it with: pip install 'quasar-nas[ray]'") from None


@contextmanager
def cluster(*, cpus: int, worker_output: bool) -> Iterator[Mapping[str, float]]:
    """Connects to the cluster and gives its resources by name: "CPU" in cores, "GPU" in devices, where it has any.

    What Ray prints meanwhile goes to stderr: stdout is for the command's document.

    Args:
        cpus: that a cluster started here says it has.
        worker_output: show what workers print, and what Ray says of itself.

    Raises:
        QuasarError: the cluster cannot be reached.
    """
    if "RAY_ADDRESS" in os.environ:
        check_answers(os.environ["RAY_ADDRESS"])
    import ray

    # Without "local", Ray would take a cluster that someone started on this machine for the one that is meant.
    own = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": cpus}
    if own:  # workers are as nice as this process; by default they give way to all that runs beside them
        os.environ.setdefault("RAY_worker_niceness", "0")
    quiet = {} if worker_output else {"log_to_driver": False, "logging_level": "ERROR"}
    with redirect_stdout(sys.stderr):
        try:
            ray.init(include_dashboard=False if own else None, **own, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise QuasarError(f"Ray cannot be reached: {first_line(error)}") from error
        try:
            yield ray.cluster_resources()
        finally:
            ray.shutdown()


def check_answers(address: str, *, within_s: float = ANSWER_S) -> None:
    """Raises `QuasarError` unless a server of gRPC, such as Ray's, answers at `address` within some seconds.

    Addresses that name no host and port ("auto") are left to Ray.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError as error:
        raise QuasarError(f"Ray cannot be reached: RAY_ADDRESS={address}: {error}") from None
    if host is None or port is None:
        return
    started = time.monotonic()
    answer = b""
    try:
        with socket.create_connection((host, port), timeout=within_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_PREFACE)
            while len(answer) < _FRAME_HEADER and (left := within_s - (time.monotonic() - started)) > 0:
                connection.settimeout(left)
                part = connection.recv(_FRAME_HEADER - len(answer))
                if not part:
                    break
                answer += part
        reason = "what answers is not Ray" if answer else "no answer"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    if len(answer) < _FRAME_HEADER or answer[3] != _SETTINGS:
        waited = time.monotonic() - started
        raise QuasarError(
            f"Ray cannot be reached at RAY_ADDRESS={address}: {reason} (waited {waited:.0f} s of at most "
            f"{within_s:.0f} s); start the cluster, correct the address, or unset RAY_ADDRESS to compute here"
        )


def first_line(error: BaseException) -> str:
    """The last line of what an error of Ray says, which names the cause, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
