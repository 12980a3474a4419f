"""The server over real sockets: answers, refusals, its bound on what is pending, and its end."""

import http.client
import io
import json
import re
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from hwmodel.errors import UsageError
from quasar.runtime.listen import bound
from quasar.runtime.server import Limits, create_app

#: a busy machine is slow
PATIENCE_S = 120
#: a request whose body does not all come
BEGUN = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n1"


class Reply:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None, kind=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {} if kind is None else {"Content-Type": kind, **(headers or {})})
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def predict(self, data, kind="image/png"):
        return self("POST", "/predict", data, kind)

    def budget(self, **budget):
        return self("POST", "/budget", json.dumps(budget), "application/json")


@pytest.fixture
def serve(runtime):
    """Starts a server with these limits in a thread, and gives a client."""

    @contextmanager
    def running(**limits):
        server = uvicorn.Server(uvicorn.Config(create_app(runtime, limits=Limits(**limits)), log_level="warning"))
        with bound("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.socket]})
            thread.start()
            try:
                until(lambda: server.started)
                yield Client(listener.socket.getsockname()[1])
            finally:
                server.should_exit = True
                thread.join(PATIENCE_S)
        assert not thread.is_alive()

    return running


@pytest.fixture
def held(runtime, monkeypatch):
    """Predictions wait until the event is set."""
    go_on, predict = threading.Event(), runtime.predict

    def waiting(images):
        assert go_on.wait(PATIENCE_S)
        return predict(images)

    monkeypatch.setattr(runtime, "predict", waiting)
    return go_on


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def form(data, *, name="file", filename="a.png"):
    named = f'name="{name}"' + (f'; filename="{filename}"' if filename else "")
    head = f"--edge\r\nContent-Disposition: form-data; {named}\r\n\r\n"
    return head.encode() + data + b"\r\n--edge--\r\n"


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answers_are_those_of_the_runtime(serve, runtime):
    expected = runtime.predict(pixels()[..., None])
    shares = expected.logits[0].softmax(0)
    with serve() as client:
        replies = [
            client.predict(png(pixels())),
            client.predict(form(png(pixels())), "multipart/form-data; boundary=edge"),
            client.predict(png(pixels()), "application/octet-stream"),
        ]
    for reply in replies:
        answer = reply.json
        assert reply.status == 200
        assert answer["label"] == int(shares.argmax())
        assert answer["class"] == f"class {answer['label']}"
        assert answer["subnet"] == expected.subnet
        assert [top["probability"] for top in answer["top"]] == pytest.approx(torch.topk(shares, 5).values.tolist())


def test_bad_requests_are_refused_in_one_line(serve):
    rgb = png(np.zeros((8, 8, 3), dtype=np.uint8))
    multipart = "multipart/form-data; boundary=edge"
    cases = [
        (415, "send image/png", client_args(png(pixels()), "text/plain")),
        (415, "send image/png.* not 'no type'", client_args(png(pixels()), None)),
        (415, "neither PNG nor JPEG", client_args(b"hello", "image/png")),
        (400, "damaged", client_args(png(pixels())[:50], "image/png")),
        (413, "at most 100 are taken", client_args(png(np.zeros((11, 10), dtype=np.uint8)), "image/png")),
        (413, "more than 2,000 bytes", client_args(bytes(2001), "image/png")),
        (413, "more than 2,000 bytes", client_args(bytes(300_000), "image/png")),
        (422, r"3 channels \(RGB\)", client_args(rgb, "image/png")),
        (400, "the form cannot be read", client_args(b"nothing", "multipart/form-data")),
        (400, "the form has no file", client_args(form(b"text", filename=None), multipart)),
        (400, "the form cannot be read", client_args(form(b"a")[:-10] + form(b"b"), multipart)),
    ]
    with serve(max_bytes=2000, max_pixels=100) as client:
        for status, message, arguments in cases:
            reply = client("POST", "/predict", *arguments)
            assert (reply.status, bool(re.search(message, reply.json["error"]))) == (status, True), reply.body
            assert "\n" not in reply.json["error"]
        assert client("GET", "/predict").status == 405
        assert client("GET", "/nowhere").json == {"error": "Not Found"}
        assert client.predict(png(pixels())).status == 200


def client_args(body, kind):
    return body, kind


def test_a_full_queue_gets_503_and_who_was_accepted_is_answered(serve, held):
    with serve(queue=2, workers=1) as client:
        replies = []
        clients = [threading.Thread(target=lambda: replies.append(client.predict(png(pixels())))) for _ in range(3)]
        for thread in clients:
            thread.start()
        until(lambda: client("GET", "/stats").json["queue"]["pending"] == 3)
        refused = client.predict(png(pixels()))
        assert (refused.status, refused.json) == (503, {"error": "the queue is full; try again later"})
        assert int(refused.headers["Retry-After"]) >= 1
        # also a large one hears it, which is still being sent when it is refused
        assert client.predict(bytes(5_000_000)).status == 503
        held.set()
        for thread in clients:
            thread.join()
        assert [reply.status for reply in replies] == [200] * 3
        assert client.predict(png(pixels())).status == 200
        metrics = client("GET", "/metrics").body.decode()
    assert 'quasar_requests_total{status="200"} 4.0' in metrics
    assert 'quasar_requests_total{status="503"} 2.0' in metrics


def test_a_slow_upload_is_given_up_and_keeps_no_place(serve):
    with serve(queue=0, upload_s=0.5) as client, socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.settimeout(PATIENCE_S)
        slow.sendall(BEGUN)
        assert client.predict(png(pixels())).status == 200
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert client.predict(png(pixels())).status == 200


def test_clients_that_go_away_do_no_harm(serve):
    with serve(queue=0) as client:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", client.port)) as gone:
                gone.sendall(
                    b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n1"
                )
        until(lambda: client.predict(png(pixels())).status == 200)
        stats = client("GET", "/stats").json
    assert stats["queue"]["pending"] == 0
    assert sum(stats["predictions"].values()) == 1


def test_a_budget_changes_who_answers(serve, runtime):
    fastest = runtime.subnets[0]
    with serve() as client:
        reply = client.budget(latency_ms=1e-6)
        assert reply.status == 200
        assert reply.json["subnet"] == fastest
        assert not reply.json["met"]
        assert client("GET", "/budget").json["choice"] == reply.json
        assert client.predict(png(pixels())).json["subnet"] == fastest
        assert client.budget(energy_mj=1000).json["met"]
        for wrong, message in (
            ({}, "needs latency_ms or energy_mj"),
            ({"latency_ms": -1}, "positive"),
            ({"latency": 1}, "latency"),
            ({"latency_ms": "fast"}, "latency_ms"),
        ):
            reply = client.budget(**wrong)
            assert reply.status == 422
            assert message in reply.json["error"]
        assert client("POST", "/budget", "{", "application/json").status == 422
        stats = client("GET", "/stats").json
    assert stats["current"] == "s4"
    assert stats["choice"]["budget"] == {"energy_mj": 1000}
    assert stats["switches"] == 2


def test_metrics_health_and_page(serve, runtime):
    with serve() as client:
        client.predict(png(pixels()))
        metrics = client("GET", "/metrics")
        assert metrics.headers["Content-Type"].startswith("text/plain")
        values = dict(line.rsplit(" ", 1) for line in metrics.body.decode().splitlines() if not line.startswith("#"))
        assert float(values['quasar_predictions_total{subnet="s4"}']) == 1
        assert float(values['quasar_current{subnet="s4"}']) == 1
        assert float(values["quasar_request_seconds_count"]) == 1
        assert float(values["quasar_pending"]) == 0
        assert client("GET", "/healthz").json == {"status": "ok"}
        page = client("GET", "/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|src=|@import|url\(", page.body.decode())


@pytest.mark.parametrize("limits", [{"queue": -1}, {"workers": 0}, {"max_bytes": 0}, {"max_pixels": -1}])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(UsageError, match="must"):
        Limits(**limits)


@pytest.mark.slow
def test_a_signal_lets_what_was_accepted_end(bundles, start, tmp_path):
    """SIGTERM while requests are pending: all of them are answered, and the program ends with code 0."""
    with bound("127.0.0.1", 0) as listener:
        port = listener.socket.getsockname()[1]
    folders = [bundle.folder for bundle in bundles]
    process = start("serve", *folders, "--port", port, "--queue", 64, "--json")
    client, replies = Client(port), []

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    large = png(np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8))  # takes a while to decode

    def ask():
        with suppress(ConnectionError):  # came too late
            replies.append(client.predict(large))

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for thread in clients:
        thread.start()
    until(lambda: client("GET", "/stats").json["queue"]["pending"] >= 2)
    result = process.end(signal.SIGTERM)
    for thread in clients:
        thread.join()
    assert result.code == 0, result.err
    answered = sum(reply.status == 200 for reply in replies)
    assert answered >= 2
    assert sum(json.loads(result.out)["predictions"].values()) == answered
