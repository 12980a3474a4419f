"""What a switch between subnets costs, what eight of them take, and how the server stands twice its load.

    python experiments/benchmarks/runtime.py [--quick] [--minutes 3] [--run RUN]

Eight subnets of DeiT-tiny's size (10 to 12 blocks, 2 or 3 heads, no, a quarter or half of the rows at 8 bits) with
random weights are exported to a temporary folder. `--quick` (under a minute on 2 cores) switches 100 times instead of
1,000 and leaves the server out. `--run` adds a bursty trace on the bundles of a run, such as the quickstart's. The last
line is JSON:

    switch_ms, switch_p99_ms      time of `Runtime.switch` in an idle process (mark: 0.3)
    copied_bytes                  what torch wrote anywhere during all those switches (mark: 0)
    first_answer_ratio            time of the first prediction after a switch over that of the second
    resident_ratio                resident memory of a process with all eight subnets, each of which has answered, over
                                  that of one with the largest alone (mark: 1.1)
    tensor_ratio                  the same of the networks' tensors alone: the store and what subnets have beside it.
                                  Rows that are at 8 bits in one subnet and at 4 in another are there twice
    wrong_answers, checked_answers   while subnets change at random under 8 clients; wrong are those that are not, bit
                                  for bit, what the module of that subnet's own bundle gives (mark: 0)
    server_*                      asked twice as often as it answered in the last five seconds: requests a second that
                                  were offered and answered, how many got 503, other ends than 200 and 503 (mark: 0),
                                  the slowest answer, also over what the queue allows at the mean rate, and growth of
                                  resident memory from the first fifth of the time on, in MB
    burst_*                       the controller against the most accurate subnet alone that meets every deadline
"""

import argparse
import http.client
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import explore
from quasar.export.bundle import Bundle, load_bundle
from quasar.export.source import BundleInfo
from quasar.export.write import write_bundle
from quasar.runtime.follow import Answer, compare, controller, simulate
from quasar.runtime.runtime import Runtime
from quasar.runtime.store import share, tensor_bytes
from quasar.runtime.trace import read_trace
from supernet.data.config import DataConfig
from supernet.data.splits import open_test
from supernet.functional import Observer
from supernet.lowering import lower
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.vit import SupernetViT

QUASAR = Path(sys.executable).with_name("quasar")
SPACE = SearchSpace(
    num_classes=1000,
    in_chans=3,
    patch_size=16,
    head_dim=64,
    image_size=(224,),
    embed_dim=(192,),
    depth=(10, 11, 12),
    num_heads=(2, 3),
    mlp_ratio=(3.0, 3.5, 4.0),
    high_precision_ratio=(0.0, 0.25, 0.5),
)
SUBNETS = 8
CLIENTS = 8
#: of the server under load; more clients than can be pending, so that some must be refused
QUEUE = 8
LOAD_CLIENTS = 64


@torch.no_grad()
def export(folder: Path) -> list[Path]:
    """Bundles of the largest subnet and of random ones, with random weights."""
    torch.manual_seed(0)
    supernet = SupernetViT(SPACE, layer_scale=0.1)
    supernet.refresh_clips()
    images = torch.randn(2, 3, 224, 224)
    observer = Observer(quantize=False)
    supernet(images, SPACE.largest(), observer)
    observer.update(momentum=0.0)
    device = load_device("zcu102")
    accelerator = explore([lower(SPACE.largest())], device, limit=1)[0].accelerator
    drawn = SPACE.sample(np.random.default_rng(0), SUBNETS - 1)
    paths = []
    for index, subnet in enumerate([SPACE.largest(), *(SPACE.decode(genotype) for genotype in drawn)]):
        info = BundleInfo(
            latency_ms=None,
            fps=None,
            device=device.name,
            cost=FpgaCostModel(device, accelerator).estimate(lower(subnet)),
            accelerator=accelerator,
            data=DataConfig(name="folder", root="."),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            classes=None,
            training_image_size=224,
            checkpoint_digest="",
            data_digests={},
            val_accuracy=None,
            test_accuracy=None,
        )
        paths.append(
            write_bundle(extract(supernet, subnet), folder / f"subnet-{index}", info=info, images=images, formats=())
        )
    return paths


class Written(TorchDispatchMode):
    """Adds up the bytes of all that operations give, unless it is a view of what they got."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.total += x.nbytes
        return result


def switches(runtime: Runtime) -> dict[str, float]:
    """Switches of a process that does nothing else, and the answers after them."""
    rng, names = random.Random(0), runtime.subnets
    times = []
    with Written() as written:
        for _ in range(1000):
            name = rng.choice(names)
            started = time.perf_counter()
            runtime.switch(name)
            times.append(1e3 * (time.perf_counter() - started))
        copied = written.total
        runtime.predict(torch.zeros(1, 3, 224, 224))
        assert written.total > copied  # it does see what is written
    image, ratios = torch.randn(1, 3, 224, 224), []
    for index in range(12):
        runtime.switch(names[index % len(names)])
        first, second = (runtime.predict(image).latency_ms for _ in range(2))
        ratios.append(first / second)
    return {
        "switch_ms": statistics.median(times),
        "switch_p99_ms": sorted(times)[989],
        "copied_bytes": copied,
        "first_answer_ratio": statistics.median(ratios),
    }


def wrong_answers(runtime: Runtime, bundles: Sequence[Bundle], *, count: int) -> dict[str, int]:
    """So many switches at random, one after each answer, while clients ask and check."""
    images = torch.randn(2, 1, 3, 224, 224)
    with torch.inference_mode():
        expected = {bundle.folder.name: [bundle.module()(image) for image in images] for bundle in bundles}
    done, answered, wrong = threading.Event(), threading.Semaphore(0), Counter()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            index = rng.randrange(len(images))
            prediction = runtime.predict(images[index])
            wrong[not torch.equal(prediction.logits, expected[prediction.subnet][index])] += 1
            answered.release()

    rng = random.Random(99)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, seed) for seed in range(CLIENTS)]
        for _ in range(count):
            runtime.switch(rng.choice(runtime.subnets))
            answered.acquire(timeout=60)
        done.set()
    for finished in clients:
        finished.result()
    return {"wrong_answers": wrong[True], "checked_answers": wrong.total()}


def resident_mb(paths: Sequence[Path]) -> float:
    """Of a new process whose subnets have all answered."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom quasar.runtime.runtime import Runtime\n"
        "runtime = Runtime.load([Path(path) for path in sys.argv[1:]])\n"
        "for name in runtime.subnets * 2:\n"
        "    runtime.switch(name)\n    runtime.predict(torch.zeros(1, 3, 224, 224))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) / 1e3


def memory(paths: Sequence[Path], bundles: Sequence[Bundle]) -> dict[str, float]:
    """The first bundle is that of the largest subnet, of which all others are parts."""
    largest, all_of_them = resident_mb(paths[:1]), resident_mb(paths)
    print(f"resident: {largest:.0f} MB with the largest subnet, {all_of_them:.0f} MB with all")
    stored = {count: tensor_bytes(share(bundles[:count])) for count in (1, len(bundles))}
    alone = sum(tensor_bytes([bundle.module()]) for bundle in bundles)
    print(f"tensors: {stored} bytes by number of subnets, {alone} without a store")
    return {"resident_ratio": all_of_them / largest, "tensor_ratio": stored[len(bundles)] / stored[1]}


@contextmanager
def server(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """`quasar serve` in a process of its own: its port and its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([QUASAR, "serve", *paths, "--port", str(port), "--queue", str(QUEUE)])
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
            time.sleep(0.2)
        yield port, process.pid
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(600)  # a busy machine is slow


def asker(port: int, image: bytes) -> Callable[[], tuple[int, float]]:
    """Asks once for a prediction: the status (0 for a failed connection) and the seconds."""

    def ask() -> tuple[int, float]:
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/predict", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            return response.status, time.perf_counter() - started
        except OSError:
            return 0, time.perf_counter() - started
        finally:
            connection.close()

    return ask


def under_load(paths: Sequence[Path], *, minutes: float) -> dict[str, float]:
    """Twice what the server can do, for so long."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(content, "JPEG")
    with server(paths) as (port, pid), ThreadPoolExecutor(LOAD_CLIENTS) as pool:
        ask = asker(port, content.getvalue())
        for _ in range(2):
            warm = [future.result() for future in [pool.submit(ask) for _ in range(QUEUE)]]
        rate, replies, resident = 2 / min(seconds for _, seconds in warm), [], []
        waiting: deque[Future[tuple[int, float]]] = deque()
        started = window = time.perf_counter()
        due, answered = started, 0
        while (now := time.perf_counter()) - started < 60 * minutes:
            waiting.append(pool.submit(ask))
            while waiting and waiting[0].done():
                replies.append(waiting.popleft().result())
            if now - window >= 5:
                # The machine may have other work to do: twice what the server can do by now.
                of_all = sum(status == 200 for status, _ in replies)
                rate, window, answered = 2 * max(1, of_all - answered) / (now - window), now, of_all
                resident.append(_resident_mb(pid))
            due = max(due, now - 1) + 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))
        replies += [future.result() for future in waiting]
        taken_s = time.perf_counter() - started
    statuses = Counter(status for status, _ in replies)
    times = sorted(seconds for status, seconds in replies if status == 200)
    allowed_s = (QUEUE + 1) / (statuses[200] / taken_s)
    print(f"statuses {dict(statuses)}, median of the answers {times[len(times) // 2]:.2f} s, resident MB {resident}")
    return {
        "server_minutes": minutes,
        "server_offered_per_s": len(replies) / taken_s,
        "server_answered_per_s": statuses[200] / taken_s,
        "server_refused": statuses[503],
        "server_failures": len(replies) - statuses[200] - statuses[503],
        "server_slowest_s": times[-1],
        "server_slowest_over_allowed": times[-1] / allowed_s,
        "server_growth_mb": resident[-1] - resident[len(resident) // 5],
    }


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1e3


def bursts(run: Path, folder: Path) -> dict[str, float]:
    """60 s at 1,000 images a second: calm for 0.8 s in the mean, then for 0.2 s only the fastest subnet is in time."""
    bundles = [load_bundle(path.parent) for path in sorted(run.glob("export/*/manifest.json"))]
    runtime = Runtime(bundles)
    offers = runtime.offers()
    rng, time_s, path = random.Random(0), 0.0, folder / "bursts.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("time_s,latency_ms\n")
        while time_s < 60:
            for offer, mean_s in ((offers[-1], 0.8), (offers[0], 0.2)):
                file.write(f"{time_s},{1.05 * offer.latency_ms}\n")
                time_s += rng.expovariate(1 / mean_s)
    frames = read_trace(path).frames(1000)
    comparison = compare(offers, frames, fps=1000)
    against = comparison.against_best
    print(json.dumps(comparison.to_dict()))
    split = open_test(bundles[0].config.data, image_size=bundles[0].config.training_image_size)
    right = {}
    for name in runtime.subnets:
        runtime.switch(name)
        batches = (runtime.predict(images).logits.argmax(1) == labels for images, labels in split.batches(250))
        right[name] = torch.cat(list(batches)).numpy()

    def accuracy(answers: Sequence[Answer]) -> float:
        """Of the test images in turn."""
        return float(np.mean([right[a.offer.subnet][n % len(split)] for n, a in enumerate(answers)]))

    best = next(offer for offer in offers if offer.subnet == comparison.best_static)
    switching, alone = simulate(frames, controller(offers, fps=1000)), simulate(frames, lambda *_: best)
    return {
        "burst_missed": comparison.controller.missed,
        "burst_switches": comparison.controller.switches,
        "burst_points": against["accuracy_points"],
        "burst_measured_points": 100 * (accuracy(switching) - accuracy(alone)),
        "burst_energy_percent": against["energy_percent"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer switches, and no server")
    parser.add_argument("--minutes", type=float, default=3, help="how long the server is under load")
    parser.add_argument("--run", type=Path, help="a run with bundles, for the bursty trace")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = export(folder)
        bundles = [load_bundle(path) for path in paths]
        runtime = Runtime(bundles)
        figures = switches(runtime) | wrong_answers(runtime, bundles, count=100 if options.quick else 1000)
        figures |= memory(paths, bundles)
        if not options.quick:
            figures |= under_load(paths, minutes=options.minutes)
        if options.run is not None:
            figures |= bursts(options.run, folder)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
