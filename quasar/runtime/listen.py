"""An address that is taken before anything slow happens, and uvicorn on it until a signal ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from hwmodel.errors import UsageError

#: for requests in work when a server is told to end
GRACE_S = 30
#: more get 503 from uvicorn, so that no flood of them uses up memory or file descriptors
_CONNECTIONS = 512


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket with an address, on which nobody listens yet."""

    socket: socket.socket

    @property
    def url(self) -> str:
        """Where a client finds it."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[Listener]:
    """A listener, closed at the end; raises `UsageError` where the address cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port} cannot be listened on ({error.strerror or error}); choose others with --host and --port"
            ) from None
        yield Listener(opened)


def run(app: FastAPI, listener: Listener) -> None:
    """Serves until SIGINT or SIGTERM: then takes no more connections, and answers what has been accepted."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=_CONNECTIONS,
        server_header=False,
    )
    # When uvicorn has ended it sends itself the signal again, which nobody shall die of.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener.socket])
    finally:
        signal.signal(signal.SIGTERM, before)
