"""The third stage of a run: a bundle for the subnet that the search chose for each target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import DamagedInputError
from quasar.config import RunConfig
from quasar.export.formats.base import Format
from quasar.export.formats.registry import choose_formats
from quasar.export.source import BundleInfo
from quasar.export.write import write_bundle
from quasar.finetune_stage import finetuned
from quasar.pipeline import calibration_images, check_same_images, load_supernet, open_test_split
from quasar.progress import stage
from quasar.run_folder import RunFolder
from supernet.data.splits import Split
from supernet.lowering import lower
from supernet.standalone import extract
from supernet.subnet import Subnet


def target_folder(target: dict[str, Any]) -> str:
    """The folder name of a target of `front.json`: "latency-0.2ms" or "fps-5000"."""
    if target["fps"] is None:
        return f"latency-{np.format_float_positional(target['latency_ms'], trim='-')}ms"
    return f"fps-{np.format_float_positional(target['fps'], trim='-')}"


def named_formats(given: Sequence[str] | None) -> tuple[Format, ...]:
    """The forms that `--format` names, each time one or several by commas; see `choose_formats`."""
    return choose_formats(None if given is None else [name.strip() for text in given for name in text.split(",")])


def export_stage(
    run: RunFolder,
    config: RunConfig,
    splits: tuple[Split, Split],
    *,
    formats: Sequence[Format] | None = None,
    overwrite: bool,
) -> dict[str, Path]:
    """Writes a bundle for the chosen subnet of each feasible target; gives the folders by the targets' folder names.

    A subnet that was fine-tuned, and gained by it, is exported so, with the accuracies that it has then.

    Raises:
        UsageError: a bundle exists and is not to be overwritten, or a subnet has no form of `formats`.
        DamagedInputError: `front.json` is of another supernet, or damaged.
    """
    front = run.read_front()
    supernet, checkpoint = load_supernet(run, config)
    train_split, val_split = splits
    check_same_images(train_split, checkpoint, run)
    test_digest = open_test_split(config).digest
    images = calibration_images(train_split)
    device = load_device(front["device"])
    feasible = [target for target in front["targets"] if target["status"] == "ok"]
    bundles: dict[str, Path] = {}
    with stage("export") as progress:
        for target in feasible:
            name = target_folder(target)
            if target["accelerator"] is None:
                raise DamagedInputError(f"{run.front}: the target {name} has no accelerator; search again")
            progress(len(bundles), len(feasible), name)
            subnet = Subnet.from_dict(target["subnet"], source=str(run.front))
            accelerator = AcceleratorConfig.from_dict(target["accelerator"])
            bundles[name] = run.export / name
            trained_further = finetuned(run, checkpoint, subnet)
            if trained_further is None:
                module, accuracies = extract(supernet, subnet), (target["val_accuracy"], target["test_accuracy"])
            else:
                module, record = trained_further
                accuracies = (record.val_after, record.test_accuracy)
            write_bundle(
                module,
                bundles[name],
                overwrite=overwrite,
                images=images,
                formats=formats,
                info=BundleInfo(
                    latency_ms=None if target["fps"] else target["latency_ms"],
                    fps=target["fps"],
                    device=_device_reference(front["device"]),
                    cost=FpgaCostModel(device, accelerator).estimate(lower(subnet)),
                    accelerator=accelerator,
                    data=config.data,
                    mean=train_split.normalization.mean,
                    std=train_split.normalization.std,
                    classes=train_split.classes,
                    training_image_size=config.space.image_size[-1],
                    checkpoint_digest=checkpoint.digest,
                    data_digests={"train": train_split.digest, "val": val_split.digest, "test": test_digest},
                    val_accuracy=accuracies[0],
                    test_accuracy=accuracies[1],
                ),
            )
        progress(len(bundles), len(feasible), "")
    return bundles


def _device_reference(device: str) -> str:
    """A device as a bundle names it: its name, or its file wherever the bundle will be read on this machine."""
    return str(Path(device).absolute()) if Path(device).suffix in (".yaml", ".yml") else device
