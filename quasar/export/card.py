"""The model card of a bundle: what the subnet is, what it costs, how to run it and how to check it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hwmodel.cost import FpgaCostEstimate
from supernet.lowering import lower
from supernet.subnet import Subnet

#: which the snippet runs
_SNIPPET_MODEL = "model_qdq.onnx"
_SNIPPET = '''\
import json

import numpy as np
import onnxruntime

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
options = onnxruntime.SessionOptions()
# Exact sums on any x86 CPU. One with VNNI has them without this line too, and is faster then.
options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession("model_qdq.onnx", options, providers=["CPUExecutionProvider"])


def classify(images):
    """Labels (N,) of uint8 images ({shape})."""
    mean, std = (np.array(config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    normalised = ((images / 255 - mean) / std).astype(np.float32)
    (logits,) = session.run(["logits"], {{"images": normalised}})
    return logits.argmax(axis=1)


images = np.random.default_rng(0).integers(0, 256, ({example}), dtype=np.uint8)  # put your own here
labels = classify(images)
print(labels, config["classes"] and [config["classes"][label] for label in labels])
'''


def _resized(image_size: int, training_image_size: int) -> str:
    """What happens to images before a network of another size sees them; empty if nothing does."""
    if training_image_size == image_size:
        return ""
    return (
        f"\nThe network was trained on images of {training_image_size} pixels that were resized to {image_size}, "
        "bilinearly and with antialiasing, after normalization.\n"
    )


def model_card(
    subnet: Subnet,
    *,
    cost: FpgaCostEstimate,
    device: str,
    target: str,
    accuracies: Mapping[str, float | None],
    training_image_size: int,
    forms: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """The card in Markdown.

    Args:
        target: the limit that the subnet was chosen for, in words.
        accuracies: top-1 as shares in [0, 1] by split, None where not measured.
        training_image_size: pixels of the images before they are resized to the subnet's size.
        forms: of the network for other programs that the bundle holds: what each is, and its files.
    """
    workload, resources = lower(subnet), cost.resources
    facts = {
        "Target": target,
        "Device": device,
        "Latency": f"{cost.latency_ms:.4g} ms for one image ({cost.cycles:,} cycles, predicted)",
        **({"Does not fit": "; ".join(cost.violations)} if cost.violations else {}),
        "Throughput": f"{cost.fps:,.1f} frames per second",
        "DSP / BRAM18 / LUT": f"{resources.dsp:,} / {resources.bram18:,} / {resources.lut:,}",
        **{
            f"Top-1 accuracy, {split}": "not measured" if share is None else f"{share:.2%}"
            for split, share in accuracies.items()
        },
        "Weights": f"{workload.weight_bytes:,} bytes, each row at its own precision",
        "Multiply-accumulates": f"{workload.macs:,} for one image",
        "Input": f"{subnet.in_chans} x {subnet.image_size} x {subnet.image_size} pixels",
    }
    shape = f"{subnet.in_chans}, {subnet.image_size}, {subnet.image_size}"
    return "\n".join(
        [
            f"# Subnet {subnet.digest}",
            "",
            f"A Vision Transformer of {subnet.depth} blocks and {subnet.embed_dim} channels for images of "
            f"{subnet.image_size} pixels in {subnet.num_classes} classes.",
            f"Its weight rows have {subnet.high_bits} or {subnet.low_bits} bits, its activations {subnet.act_bits}.",
            "",
            *_table(("", ""), facts.items()),
            "",
            "## Rows and bits",
            "",
            *_table(
                ("linear", "inputs", "rows", f"at {subnet.high_bits} bits", f"at {subnet.low_bits} bits"),
                (
                    (gemm.name, gemm.inputs, gemm.rows, gemm.rows_high, gemm.rows_low)
                    for gemm in workload.gemms
                    if gemm.stored
                ),
            ),
            "",
            "## Run it",
            "",
            *(_run_it(shape) if any(_SNIPPET_MODEL in files for _, files in forms) else ()),
            _resized(subnet.image_size, training_image_size),
            "In torch, `quasar.export.bundle.load_bundle(folder).module()` is the same network with its integer codes.",
            "",
            "## Verify it",
            "",
            "`quasar verify FOLDER` checks every file against `manifest.json`, compares all forms of the network with",
            "each other, integer by integer where they are exact, and their accuracies on the whole test set. With",
            "`--rtl` it also simulates the RTL. The cost is in `cost.json`; `quasar hw estimate FOLDER` recomputes it",
            "for the accelerator there.",
            "",
            "## Forms of the network",
            "",
            *_table(("form", "files"), ((what, _listed(files)) for what, files in forms)),
            "",
            "`docs/bundle.md` of Quasar describes every file.",
            "",
        ]
    )


def _run_it(shape: str) -> list[str]:
    return [
        "In this folder, after `pip install onnxruntime numpy`:",
        "",
        "```python",
        _SNIPPET.format(shape=f"N, {shape}", example=f"2, {shape}") + "```",
    ]


def _listed(files: Sequence[str]) -> str:
    """Files by name; a folder with many files by its name alone."""
    return ", ".join(dict.fromkeys(f"`{name.split('/')[0]}/`" if "/" in name else f"`{name}`" for name in files))


def _table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]
