"""The Ray cluster that a command computes on: the one at RAY_ADDRESS, or one that is started here and ends with it.

Its machines need the package with its extra `ray`, and must see the data, the working directory and the run folder at
the same paths.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

from hwmodel.errors import QuasarError, UsageError


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
    import ray

    # Without "local", Ray would take a cluster that someone started on this machine for the one that is meant.
    own = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": cpus}
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


def first_line(error: BaseException) -> str:
    """The last line of what an error of Ray says, which names the cause, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
