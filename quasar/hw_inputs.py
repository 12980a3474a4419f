"""What the commands about hardware are given: their common options, networks, accelerators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwmodel.errors import UsageError

if TYPE_CHECKING:
    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.workload import Workload

What = Annotated[str, typer.Argument(help="Subnet file, bundle, PiT's shape file, or the name of a timm ViT or PiT.")]
DeviceName = Annotated[str, typer.Option("--device", help="Name of a device, or a device file.")]
Array = Annotated[str | None, typer.Option(help="DSP array as ROWSxINPUTS, for example 32x32.")]
BackendName = Annotated[str | None, typer.Option("--backend", help="dual or atomic.")]
Clock = Annotated[float | None, typer.Option(help="Clock in MHz; by default the device's.")]
Ratio = Annotated[float, typer.Option(help="Of a timm ViT or PiT: share of weight rows at 8 bits; the rest have 4.")]
Activations = Annotated[str, typer.Option(help="Where activations live between layers: onchip or ddr.")]


def workload_of(what: str, ratio: float) -> Workload:
    """The network in a subnet file or a bundle; or in a PiT's shape file, or of timm, with this share of 8-bit rows."""
    from supernet.lowering import lower
    from supernet.pit_shape import PitShape, lower_pit
    from supernet.subnet import Subnet
    from supernet.validation import read_yaml

    if not 0 <= ratio <= 1:
        raise UsageError(f"--ratio must lie in [0, 1], not {ratio}")
    path = Path(what)
    if (path / "config.yaml").is_file():
        raise UsageError(f"{path}: is a run folder; give a bundle, {path}/export/<target>")
    if path.is_dir():
        path = path / "subnet.yaml"
    if path.suffix in (".yaml", ".yml", ".json") or path.exists():
        document = read_yaml(path, what="subnet file")
        if isinstance(document, dict) and "widths" in document:  # stages: the shape of a PiT
            return lower_pit(PitShape.from_dict(document, source=str(path)), high_precision_ratio=ratio)
        if ratio != 1:
            raise UsageError(f"--ratio is for networks without row precisions, and {path} says its own; leave it out")
        return lower(Subnet.from_dict(document, source=str(path)))
    from supernet.timm_vit import workload_of_timm

    return workload_of_timm(what, high_precision_ratio=ratio)


def array_of(text: str | None) -> tuple[int, int] | None:
    """The rows and inputs that an option gives; None without one."""
    from hwmodel.accelerator import parse_array

    return None if text is None else parse_array(text)


def accelerator_of(array: str | None, backend: str | None, path: Path | None) -> AcceleratorConfig:
    """The configuration of a design: from a file, or from its shape and backend with the RTL's defaults."""
    from hwmodel.calibrate import design_config

    if path is None:
        shape = array_of(array)
        if shape is None or backend is None:
            raise UsageError("give --array and --backend of the design, or --accelerator")
        return design_config(array=shape, backend=backend)
    if array or backend:
        raise UsageError("--accelerator says array and backend itself; leave out --array and --backend")
    return read_accelerator(path)[1]


def read_accelerator(path: Path) -> tuple[str, AcceleratorConfig]:
    """Device and accelerator in the `cost.json` of a bundle or in what `quasar hw estimate --json` printed."""
    import json

    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.errors import DamagedInputError

    remedy = "write it with 'quasar hw estimate --json'"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"accelerator file '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedInputError(f"{path}: not JSON; {remedy}") from error
    for key, kind in (("accelerator", dict), ("device", str)):
        if not isinstance(document, dict) or not isinstance(document.get(key), kind):
            raise DamagedInputError(f"{path}: has no key '{key}'; {remedy}")
    try:
        return document["device"], AcceleratorConfig.from_dict(document["accelerator"])
    except UsageError as error:
        raise DamagedInputError(f"{path}: {error}") from error
