"""What a bundle weighs, how long it takes to write and to check, and how near its integers are to the trained network.

    python experiments/benchmarks/export.py [--quick] [--run RUN]

A subnet of DeiT-tiny's size with a quarter of its rows at 8 bits and random weights is exported for the fastest
accelerator on a ZCU102 (under a minute on 2 cores). Without `--quick`, the bundles of the quickstart are exported and
verified too, in `--run` or in a new run (a few minutes). The last line is JSON:

    packed_over_ideal             weight streams in weights.bin over the bits of all rows and 7 bytes of parameters a
                                  row; the rest fills row tiles, k tiles and beats (mark: 1.03)
    qdq_mb, int_mb, packed_mb     sizes of model_qdq.onnx (mark: 4.3), model_int.onnx and weights.bin in 10^6 bytes
    ort_time_ratio                model_qdq.onnx over timm's DeiT-tiny in fp32, both in ONNX Runtime, one image on one
                                  thread (mark: 0.55)
    export_cpu_s                  CPU time of writing that bundle (mark: 30)
    int_minus_fakequant_points    top-1 of the integer network less that of the fake-quantized subnet over all digits
                                  test images, where they differ most (mark: at most 0.3 either way)
    integer_max_logit_difference, integer_mean_logit_difference   of the two, largest over the bundles
    digits_export_cpu_s, digits_verify_cpu_s                      CPU time of the two commands for all bundles, of the
                                                                  second with an empty cache of compiled kernels
    digits_bundle_kb                                              all files of the largest bundle, in 10^3 bytes
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import onnxruntime
import timm
import torch

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import explore
from hwmodel.parameter_streams import ROW_BYTES
from quasar.export.bundle import load_bundle
from quasar.export.formats.integer import INTEGER_ONNX
from quasar.export.formats.packed import PACKED
from quasar.export.formats.qdq import QDQ_ONNX
from quasar.export.source import BundleInfo
from quasar.export.write import write_bundle
from supernet.data.config import DataConfig
from supernet.functional import Observer
from supernet.lowering import lower
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.vit import SupernetViT

QUASAR = Path(sys.executable).with_name("quasar")
QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart.yaml"
DEIT_TINY = SearchSpace(
    num_classes=1000,
    in_chans=3,
    patch_size=16,
    head_dim=64,
    image_size=(224,),
    embed_dim=(192,),
    depth=(12,),
    num_heads=(3,),
    mlp_ratio=(4.0,),
    high_precision_ratio=(0.25,),
)


@torch.no_grad()
def deit_tiny() -> dict[str, float]:
    torch.manual_seed(0)
    subnet = DEIT_TINY.largest()
    supernet = SupernetViT(DEIT_TINY, layer_scale=0.1)
    supernet.refresh_clips()
    images = torch.randn(8, 3, 224, 224)
    observer = Observer(quantize=False)
    supernet(images, subnet, observer)
    observer.update(momentum=0.0)
    device, workload = load_device("zcu102"), lower(subnet)
    accelerator = explore([workload], device, limit=1)[0].accelerator
    info = BundleInfo(
        latency_ms=None,
        fps=None,
        device=device.name,
        cost=FpgaCostModel(device, accelerator).estimate(workload),
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
    module = extract(supernet, subnet)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        path = write_bundle(module, Path(folder, "bundle"), info=info, images=images)
        export_cpu_s = time.process_time() - started
        bundle = load_bundle(path)
        megabytes = {name: bundle.manifest.files[name].bytes / 1e6 for name in (QDQ_ONNX, INTEGER_ONNX, PACKED)}
        quantized = (path / QDQ_ONNX).read_bytes()
    streams = sum(section.bytes for section in bundle.manifest.weights.sections if section.content == "rows")
    rows = sum(gemm.rows for gemm in workload.gemms if gemm.stored)
    print(f"accelerator: {accelerator.array_rows}x{accelerator.array_inputs} {accelerator.backend}")
    return {
        "packed_over_ideal": streams / (workload.weight_bytes + ROW_BYTES * rows),
        "qdq_mb": megabytes[QDQ_ONNX],
        "int_mb": megabytes[INTEGER_ONNX],
        "packed_mb": megabytes[PACKED],
        "ort_time_ratio": ort_time_ratio(quantized, images[:1]),
        "export_cpu_s": export_cpu_s,
    }


def ort_time_ratio(quantized: bytes, image: torch.Tensor) -> float:
    """Medians of runs that take turns, so that both meet the same disturbances."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            timm.create_model("deit_tiny_patch16_224").eval(), (image,), buffer, dynamo=False, input_names=["images"]
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(model, options) for model in (quantized, buffer.getvalue())]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(30):
        for session, own in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(None, {"images": image.numpy()})
            own.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


def quickstart(run: Path) -> dict[str, float]:
    def quasar(*arguments: str) -> tuple[dict, float]:
        started = cpu_s()
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"XDG_CACHE_HOME": cache}
            done = subprocess.run([QUASAR, *arguments, "--json"], check=True, stdout=subprocess.PIPE, env=environment)
        return json.loads(done.stdout), cpu_s() - started

    if not run.exists():
        quasar("run", str(QUICKSTART), f"output_dir={run.parent}", f"name={run.name}")
    _, export_s = quasar("export", str(run), "--overwrite")
    verified, verify_s = quasar("verify", str(run))
    reports = verified["bundles"].values()
    for name, report in verified["bundles"].items():
        checks = ", ".join(f"{check['name']} {check['status']}" for check in report["checks"])
        print(f"{name}: {sum(report['file_bytes'].values()):,} bytes in {len(report['file_bytes'])} files; {checks}")
    return {
        "int_minus_fakequant_points": max((report["integer_difference_points"] for report in reports), key=abs),
        "integer_max_logit_difference": max(report["integer_max_logit_difference"] for report in reports),
        "integer_mean_logit_difference": max(report["integer_mean_logit_difference"] for report in reports),
        "digits_export_cpu_s": export_s,
        "digits_verify_cpu_s": verify_s,
        "digits_bundle_kb": max(sum(report["file_bytes"].values()) for report in reports) / 1e3,
    }


def cpu_s() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the quickstart")
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart; its bundles are exported again")
    options = parser.parse_args()
    figures = deit_tiny()
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder:
            figures |= quickstart(options.run or Path(folder, "quickstart"))
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
