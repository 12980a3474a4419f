"""How fast the program answers, and how long the demo takes.

    python experiments/benchmarks/foundation.py [--quick]

`--quick` leaves out the demo. The last line is JSON: `help_s` and `devices_s` are the medians of wall time of
`quasar --help` and `quasar hw devices` (marks: 0.5 s each), `demo_s` the wall time of the quickstart (mark: 180 s on
2 cores, installation not counted), `slowest_test_accuracy` that of its slowest target (mark: 0.95).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUASAR = Path(sys.executable).with_name("quasar")
QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart.yaml"


def wall_s(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([QUASAR, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def median_s(*arguments: str, repeats: int = 7) -> float:
    wall_s(*arguments)  # the first call compiles
    return statistics.median(wall_s(*arguments) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the demo")
    quick = parser.parse_args().quick
    figures = {"help_s": median_s("--help"), "devices_s": median_s("hw", "devices")}
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            figures["demo_s"] = wall_s("run", str(QUICKSTART), f"output_dir={folder}")
            front = json.loads((Path(folder) / "quickstart" / "search" / "front.json").read_text())
        slowest = max(front["targets"], key=lambda target: target["latency_ms"])
        figures["slowest_test_accuracy"] = slowest["test_accuracy"]
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
