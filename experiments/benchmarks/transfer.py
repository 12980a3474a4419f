"""Whether what is good on one device is good on another, over eight devices, and how long it takes to ask.

    python experiments/benchmarks/transfer.py [CONFIG_OR_RUN]

`quasar transfer` runs in a process of its own, with 200 random subnets of the space (by default that of
imagenet-quasar-small.yaml, from DeiT-tiny to DeiT-small); nothing is trained. The last line is JSON: `transfer_s`, its
wall time (mark: 10 s on 2 cores), and `transfer_cpu_s`; the least and the median of Kendall's tau over the pairs of
devices; what choices are judged by (`score`), the most that one of them loses, and between which devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

QUASAR = Path(sys.executable).with_name("quasar")
SPACE = Path(__file__).resolve().parents[1] / "imagenet-quasar-small.yaml"
DEVICES = ("zcu102", "zcu104", "u50", "jetson_nano", "jetson_tx2", "raspberry_pi_5", "v100", "h100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default=SPACE, help="configuration file or run folder")
    path = parser.parse_args().path
    with tempfile.TemporaryDirectory() as folder:
        command = [QUASAR, "transfer", path, "--devices", ",".join(DEVICES), "--subnets", "200"]
        before, started = os.times(), time.perf_counter()
        subprocess.run([*command, "--out", Path(folder, "transfer.png")], check=True)
        wall_s, after = time.perf_counter() - started, os.times()
        document = json.loads(Path(folder, "transfer.json").read_text(encoding="utf-8"))
    pairs = np.array(document["kendall"])[np.triu_indices(len(DEVICES), k=1)]
    lost = np.array(document["lost"])
    chosen_for, run_on = np.unravel_index(lost.argmax(), lost.shape)
    figures = {
        "transfer_s": round(wall_s, 2),
        "transfer_cpu_s": round(
            after.children_user + after.children_system - before.children_user - before.children_system, 2
        ),
        "devices": len(DEVICES),
        "subnets": document["subnets"],
        "tau_least": round(float(pairs.min()), 3),
        "tau_median": round(float(np.median(pairs)), 3),
        "score": document["score"],
        "lost_most": round(float(lost.max()), 4),
        "chosen_for": DEVICES[chosen_for],
        "run_on": DEVICES[run_on],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
