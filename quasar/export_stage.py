"""The third stage of a run: a bundle for the subnet that the search chose for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import DamagedInputError
from quasar.config import RunConfig
from quasar.export.bundle import BundleInfo, target_folder_name, write_bundle
from quasar.pipeline import calibration_images, check_same_images, load_supernet, open_test_split
from quasar.progress import stage
from quasar.run_folder import RunFolder
from supernet.data.splits import Split
from supernet.lowering import lower
from supernet.standalone import extract
from supernet.subnet import Subnet


def target_folder(target: dict[str, Any]) -> str:
    """The folder name of a target of `front.json`."""
    fps = target["fps"]
    return target_folder_name(latency_ms=target["latency_ms"] if fps is None else None, fps=fps)


def export_stage(run: RunFolder, config: RunConfig, splits: tuple[Split, Split], *, overwrite: bool) -> dict[str, Path]:
    """Writes a bundle for the chosen subnet of each feasible target; gives the folders by the targets' folder names.

    Raises:
        UsageError: a bundle exists and is not to be overwritten, or a package is missing.
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
            write_bundle(
                extract(supernet, subnet),
                bundles[name],
                overwrite=overwrite,
                images=images,
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
                    val_accuracy=target["val_accuracy"],
                    test_accuracy=target["test_accuracy"],
                ),
            )
        progress(len(bundles), len(feasible), "")
    return bundles


def _device_reference(device: str) -> str:
    """A device as a bundle names it: its name, or its file wherever the bundle will be read on this machine."""
    return str(Path(device).absolute()) if Path(device).suffix in (".yaml", ".yml") else device
