"""Subnets over HTTP: a queue that is bounded, reasons for what is refused, metrics, and a page that shows it all.

    POST /predict   an image file, PNG or JPEG, as the body or as the file of a multipart form
    GET, POST /budget   which subnet answers and why; {"latency_ms": 5} or {"energy_mj": 2} changes it
    GET /stats      what `Runtime.stats` says, and the queue
    GET /metrics    the same for Prometheus
    GET /healthz    200 while the server takes requests
    GET /           the page

All errors are `{"error": "one line"}`. At most `workers + queue` requests are pending; one more gets 503 with
Retry-After. So one that was accepted waits for `queue / workers` others at most, whatever comes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from hwmodel.errors import UsageError
from quasar.runtime.metrics import Metrics
from quasar.runtime.runtime import Costs, Runtime
from quasar.runtime.upload import ImageRefusedError, decode

_IMAGE_TYPES = ("image/png", "image/jpeg", "application/octet-stream")
_FORM_TYPE = "multipart/form-data"
#: classes in an answer
_TOP = 5
#: so many more files may be on their way than can be pending, lest slow clients keep others out
_MORE_UPLOADS = 32
#: how long what is left of a refused request is read
_DROP_S = 2.0
#: the weight of the newest request in the mean service time
_NEWEST = 0.1
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'"
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a server takes.

    Args:
        queue: requests that may wait.
        workers: requests that are worked on at a time.
        max_bytes, max_pixels: of an image file.
        upload_s: for a whole request to arrive.

    Raises:
        UsageError: a value that is not positive; the queue may be 0.
    """

    queue: int = 16
    workers: int = 1
    max_bytes: int = 10_000_000
    max_pixels: int = 20_000_000
    upload_s: float = 10.0

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise UsageError(f"the queue must not be negative, not {self.queue}")
        for name in ("workers", "max_bytes", "max_pixels", "upload_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")


class BudgetRequest(BaseModel):
    """The body of POST /budget."""

    model_config = ConfigDict(extra="forbid")

    latency_ms: float | None = None
    energy_mj: float | None = None


class _RefusedError(Exception):
    """A request that is not answered with a prediction."""

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.response = _error(status, message)
        if retry_after_s is not None:
            self.response.headers["Retry-After"] = str(retry_after_s)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


class Desk:
    """Takes image files, as many as there is room for, and answers them in turn.

    Its methods but `_work` run on the event loop, so that counts need no lock.
    """

    def __init__(self, runtime: Runtime, limits: Limits) -> None:
        self.runtime = runtime
        self.limits = limits
        self.capacity = limits.workers + limits.queue
        self.pending = 0
        self._uploads = 0
        self._service_s = 0.0
        self._executor = ThreadPoolExecutor(limits.workers, thread_name_prefix="predict")

    def close(self) -> None:
        """Waits for what is being worked on."""
        self._executor.shutdown()

    async def answer(self, headers: Headers, body: AsyncIterator[bytes]) -> dict[str, Any]:
        """The prediction for the image in a request; raises `_RefusedError`."""
        self._check_room(max(self.pending, self._uploads - _MORE_UPLOADS))
        self._uploads += 1
        try:
            data = await self._file(headers, body)
        finally:
            self._uploads -= 1
        self._check_room(self.pending)
        self.pending += 1
        try:
            loop = asyncio.get_running_loop()
            result, seconds = await loop.run_in_executor(self._executor, self._work, data)
        except ImageRefusedError as error:
            raise _RefusedError(error.status, str(error)) from None
        except UsageError as error:
            raise _RefusedError(422, str(error)) from None
        finally:
            self.pending -= 1
        self._service_s += (seconds - self._service_s) * (_NEWEST if self._service_s else 1.0)
        return result

    def _check_room(self, taken: int) -> None:
        if taken >= self.capacity:
            wait_s = math.ceil(self.pending * self._service_s / self.limits.workers)
            raise _RefusedError(503, "the queue is full; try again later", retry_after_s=max(1, wait_s))

    def _work(self, data: bytes) -> tuple[dict[str, Any], float]:
        """What a thread does for one file, and the seconds that it took."""
        started = time.perf_counter()
        image = decode(data, max_pixels=self.limits.max_pixels)
        prediction = self.runtime.predict(self.runtime.preprocessing.image(image)[None])
        shares, labels = torch.topk(prediction.logits[0].softmax(0), min(_TOP, prediction.logits.shape[1]))
        classes = self.runtime.classes
        top = [
            {"label": label, "class": None if classes is None else classes[label], "probability": share}
            for label, share in zip(labels.tolist(), shares.tolist(), strict=True)
        ]
        result = {**top[0], "top": top, "subnet": prediction.subnet, "network_ms": prediction.latency_ms}
        return result, time.perf_counter() - started

    async def _file(self, headers: Headers, body: AsyncIterator[bytes]) -> bytes:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (*_IMAGE_TYPES, _FORM_TYPE):
            raise _RefusedError(415, f"send image/png, image/jpeg or {_FORM_TYPE}, not '{kind or 'no type'}'")
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_s):
                async for chunk in body:
                    data += chunk
                    if len(data) > self.limits.max_bytes:
                        raise _RefusedError(413, f"the request has more than {self.limits.max_bytes:,} bytes")
        except TimeoutError:
            raise _RefusedError(408, f"the request did not arrive within {self.limits.upload_s:g} s") from None
        return await _form_file(headers, bytes(data)) if kind == _FORM_TYPE else bytes(data)

    async def drop(self, body: AsyncIterator[bytes]) -> None:
        """Reads what is left of a refused request, within limits: who is still sending would not hear the answer."""
        left = self.limits.max_bytes
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DROP_S):
                async for chunk in body:
                    left -= len(chunk)
                    if left < 0:
                        return


async def _form_file(headers: Headers, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(headers, stream(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise _RefusedError(400, f"the form cannot be read: {error.message}") from None
    try:
        for _, value in form.multi_items():
            if not isinstance(value, str):
                return await value.read()
    finally:
        await form.close()
    raise _RefusedError(400, "the form has no file; send the image as one")


def create_app(runtime: Runtime, *, limits: Limits, costs: Costs = "modelled") -> FastAPI:
    """The application.

    Args:
        costs: what latency budgets are compared with, see `Runtime.set_budget`.
    """
    desk = Desk(runtime, limits)
    metrics = Metrics(runtime, capacity=desk.capacity, pending=lambda: desk.pending)
    page = files("quasar.runtime").joinpath("page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # The pages with documentation load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="Quasar", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        started, body = time.perf_counter(), request.stream()
        try:
            response = JSONResponse(await desk.answer(request.headers, body))
            metrics.seconds.observe(time.perf_counter() - started)
        except _RefusedError as refused:
            await desk.drop(body)
            response = refused.response
        except ClientDisconnect:
            response = _error(400, "the client went away")
        metrics.requests.labels(str(response.status_code)).inc()
        return response

    @app.get("/budget")
    async def show_budget() -> dict[str, Any]:
        stats = runtime.stats()
        return {"subnet": stats["current"], "choice": stats["choice"]}

    @app.post("/budget")
    async def set_budget(budget: BudgetRequest) -> JSONResponse:
        try:
            choice = runtime.set_budget(latency_ms=budget.latency_ms, energy_mj=budget.energy_mj, costs=costs)
        except UsageError as error:
            return _error(422, str(error))
        return JSONResponse(choice.to_dict())

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        queue = {"pending": desk.pending, "capacity": desk.capacity, "workers": limits.workers}
        return runtime.stats() | {"queue": queue, "costs_used": costs}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _error(422, f"{where}: {first['msg']}" if where else first["msg"])

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    return app
